"""What the node tells a child process to be, as JSON on the child's control socket."""

from __future__ import annotations

import msgspec

from roost.node.config import App
from roost.node.settings import Settings

CONTROL_LINE_BYTES = 64 * 1024 * 1024


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


class ToChild(msgspec.Struct, frozen=True):
    """The node → a child, one a line. `command`: "start" (with `spec`), "connect", "app" (to a gateway: `app` is
    served now), "listen_again" (to a gateway: its socket for hosts was removed), "breaker" (to a gateway: why nobody
    should wait for the host of `slot`), "hand_over" (to a gateway: everything to the one that waits at `text`), "classes"
    (to a gateway: those `renamed` and `deleted`), "drain" (`text`: why, for `preShutdown`), "end_soon", "release" (to a
    host: let the objects go within `timeout_s`, say so, then finish what else goes on), "came" (to a host: an earlier one
    has let go of these `objects`), "quarantine" (all `quarantined` objects), "end_pumped" (to a gateway: close the
    clients whose TLS is another process', `request` its id), "ping", "report", "evict" or "restore"
    (answered with a report)."""

    command: str
    app: App | None = None
    arguments: dict[str, str | int | None] = {}
    not_again: list[tuple[int, int]] = []
    quarantined: list[tuple[str, str]] = []
    spec: ChildSpec | None = None
    timeout_s: float = 0.0
    request: int = 0
    slot: int = 0
    text: str = ""
    renamed: dict[str, str] = {}
    deleted: list[str] = []
    objects: list[tuple[str, str]] = []  # (class, id)


class FromChild(msgspec.Struct, frozen=True):
    """A child → the node, one a line. `kind`: "loaded", "ready", "left" (a successor has everything), "released" (a host's
    objects are its successor's, but for these `objects`), "came" (those are now), "report",
    "pong" (to a ping), "stuck" (`report`: a `Stuck`) or "failed".

    `text` and `fault` ("config" or "worker") tell of a failure.
    """

    kind: str
    text: str = ""
    fault: str = ""
    traceback: str = ""
    request: int = 0
    report: msgspec.Raw = msgspec.Raw(b"null")
    objects: list[tuple[str, str]] = []
