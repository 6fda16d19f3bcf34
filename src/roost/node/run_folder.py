"""`run/` in the data folder: the sockets between a node's processes, gateways' journals, hosts' marks.

Not in the temporary directory, which others clean. If somebody removes it all the same, it is made anew. A unix socket's
address has about 100 bytes: in a data folder with a longer path it is reached through a descriptor of that folder, which
every process of the node has under the same number (Linux).
"""

from __future__ import annotations

import os
import shutil
import sys
from typing import TYPE_CHECKING, Final

from roost.errors import ConfigError

if TYPE_CHECKING:
    from pathlib import Path

LONGEST_ADDRESS: Final = 100
_NAME: Final = "run"


class RunFolder:
    """A node's. `close` removes it."""

    def __init__(self, data: Path) -> None:
        self.path = data / _NAME
        shutil.rmtree(self.path, ignore_errors=True)  # of a node that was killed: this one holds the folder's lock
        self.path.mkdir(mode=0o700)
        self.data_fd = os.open(data, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)

    def address(self, name: str) -> str:
        """Where a socket of that name is, for `bind` and `connect` in any process of the node. Raises ConfigError."""
        path = str(self.path / name)
        if len(os.fsencode(path)) < LONGEST_ADDRESS:
            return path
        if sys.platform != "linux":
            raise ConfigError(f"{path} is too long for a socket's address; choose a shorter --data.", key="--data")
        return f"/proc/self/fd/{self.data_fd}/{_NAME}/{name}"

    def make_again(self) -> bool:
        """Make it if it was removed; whether that was so."""
        try:
            self.path.mkdir(mode=0o700)
        except FileExistsError:
            return False
        return True

    def close(self) -> None:
        shutil.rmtree(self.path, ignore_errors=True)
        os.close(self.data_fd)
