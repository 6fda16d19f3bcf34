"""`python -m roost` is the `roost` command. The folder where it is started is nobody's place to import from."""

import os
import sys

if __name__ == "__main__" and not sys.flags.safe_path and sys.path[:1] == [os.getcwd()]:
    del sys.path[0]

from roost.cli.main import main

if __name__ == "__main__":
    raise SystemExit(main())
