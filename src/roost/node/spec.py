"""What the node tells a child process to be (`orders.Start`)."""

from __future__ import annotations

import msgspec

from roost.node.config import App
from roost.node.settings import Settings


class ChildSpec(msgspec.Struct, frozen=True):
    """A gateway's or a host's orders. `sockets` are the gateways' unix socket paths; a gateway listens on its own."""

    role: str
    index: int
    slots: int
    app: App
    settings: Settings
    sockets: list[str]
    run_folder: str
    listen_fds: list[int]
    data: str
    log_format: str
    debug: bool
    ca_file: str | None = None
    not_again: list[tuple[int, int]] = []  # events (epoch, number) that a host hung in
    quarantined: list[tuple[str, str]] = []  # objects (class, id)
    mark: str | None = None  # the file that tells, after its death, what a host was doing
    hold: bool = False  # load (a host: the worker), say "loaded", and connect only when told to
    first_names: dict[str, str] = {}  # of renamed classes: the names that their ids are bound to
    elsewhere: list[tuple[str, str]] = []  # objects (class, id) that an earlier host of the place still has
    dev: bool = False  # `roost dev`: requests may run crons
    take_over: str = ""  # a gateway with `hold`: where the one that runs hands over

    def marked(self, path: str) -> ChildSpec:
        """With the file in which a host notes what it does; it is named by its process."""
        return msgspec.structs.replace(self, mark=path)
