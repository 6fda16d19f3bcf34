"""What the command line decided about a node."""

from __future__ import annotations

import msgspec

from roost.node.versions import Source


class Options(msgspec.Struct, frozen=True):
    """What the command line decided."""

    ip: str
    port: int
    data: str
    hosts: int
    gateways: int
    inline: bool
    log_format: str = "text"
    debug: bool = False
    ca_file: str | None = None
    admin: tuple[str, int] | None = None
    source: Source | None = None  # what versions are made of; None: the app is run as it is
    from_folder: bool = False  # run the folder, also if its code was rolled back from
