"""After `make coverage`: which modules the unit and contract tests run too little, and whether each has a reason.

`coverage_exceptions.json` names the modules of which less than 60 % are run there, with what runs them instead. One that is
not named fails; one that is named and needs it no more fails, too.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Final

from coverage import Coverage

ROOT: Final = Path(__file__).parent.parent
FLOOR: Final = 60.0


def main() -> int:
    coverage = Coverage(data_file=sys.argv[1] if len(sys.argv) > 1 else ".coverage")
    coverage.load()
    out = ROOT / "build/coverage.json"
    out.parent.mkdir(exist_ok=True)
    coverage.json_report(outfile=str(out))
    files = json.loads(out.read_text())["files"]
    shares = {
        file.removeprefix("src/").removesuffix(".py").replace("/", "."): about["summary"]["percent_covered"]
        for file, about in files.items()
        if about["summary"]["num_statements"]
    }
    reasons = json.loads((ROOT / "tools/coverage_exceptions.json").read_text())
    low = {module: share for module, share in shares.items() if share < FLOOR}
    for module in sorted(low.keys() - reasons.keys()):
        print(f"{module}: {low[module]:.0f} % of it runs in the quick tests; write some, or say in"
              " tools/coverage_exceptions.json what runs it", file=sys.stderr)  # fmt: skip
    for module in sorted(reasons.keys() - low.keys()):
        print(f"{module}: needs no exception any more ({shares.get(module, 0):.0f} %)", file=sys.stderr)
    print(f"{len(low)} of {len(shares)} modules are below {FLOOR:.0f} %")
    return 1 if low.keys() != reasons.keys() else 0


if __name__ == "__main__":
    sys.exit(main())
