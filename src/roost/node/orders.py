"""What a node and its children say to each other: one JSON object a line, both ways, over the child's control socket.

`docs/reference/control.md` has it for who writes a child in another language. The tag of an order is its `command`, that of
a message its `kind`. Orders with a `request` are answered by a `Report` with the same number.
"""

from __future__ import annotations

from typing import Final

import msgspec

from roost.node.config import App
from roost.node.spec import ChildSpec

CONTROL_LINE_BYTES: Final = 64 * 1024 * 1024
Key = tuple[str, str]
"""An object's class and id."""


class Order(msgspec.Struct, frozen=True, tag_field="command"):
    """The node → a child."""


# --- to both -------------------------------------------------------------------------------------------------------


class Start(Order, frozen=True, tag="start"):
    """The first order: what to be. With `spec.hold`: load, say `Loaded`, and wait for `Connect`."""

    spec: ChildSpec


class Connect(Order, frozen=True, tag="connect"):
    """A successor's turn has come: take the place. For a host: what it must know by now."""

    quarantined: list[Key] = []
    not_again: list[tuple[int, int]] = []  # events (epoch, number), both below 2^53, that an earlier host hung in
    objects: list[Key] = []  # that an earlier host of the place still has


class Ping(Order, frozen=True, tag="ping"):
    """Answer with `Pong`, at once."""


class AskReport(Order, frozen=True, tag="report"):
    """Report counters and what is open."""

    request: int


class Drain(Order, frozen=True, tag="drain"):
    """End in order, within so many seconds. `why`: for `preShutdown`, "" or "codeUpdated"."""

    timeout_s: float
    why: str = msgspec.field(default="", name="text")


# --- to a gateway --------------------------------------------------------------------------------------------------


class ServeApp(Order, frozen=True, tag="app"):
    """This app's static files are served from now on."""

    app: App


class ListenAgain(Order, frozen=True, tag="listen_again"):
    """The folder of its socket for hosts was removed and is there again."""


class Breaker(Order, frozen=True, tag="breaker"):
    """Why nobody should wait for the host of a slot; empty: the reason is gone."""

    slot: int
    reason: str = msgspec.field(default="", name="text")


class HandOver(Order, frozen=True, tag="hand_over"):
    """Give everything to the gateway that waits at a path. Answered by `Left`, or by a report with an `error`."""

    path: str = msgspec.field(name="text")
    timeout_s: float
    request: int


class ChangeClasses(Order, frozen=True, tag="classes"):
    """New code calls classes by other names, and some are gone."""

    renamed: dict[str, str]
    deleted: list[str]


class EndPumped(Order, frozen=True, tag="end_pumped"):
    """Close the clients whose TLS is another process'."""

    pid: int = msgspec.field(name="request")


# --- to a host -----------------------------------------------------------------------------------------------------


class EndSoon(Order, frozen=True, tag="end_soon"):
    """The node ends: gateways that go are no news."""


class Release(Order, frozen=True, tag="release"):
    """Let the objects go within `timeout_s`, say `Released`, then finish what else goes on."""

    timeout_s: float
    why: str = msgspec.field(name="text")


class Came(Order, frozen=True, tag="came"):
    """An earlier host of the place has let go of these objects."""

    objects: list[Key]


class Quarantine(Order, frozen=True, tag="quarantine"):
    """All objects that are not woken."""

    quarantined: list[Key]


class AskAwake(Order, frozen=True, tag="awake"):
    """How many objects are in memory."""

    request: int


class Evict(Order, frozen=True, tag="evict"):
    """Put objects to sleep: by label or id, without one all. `cut`: end their sockets, too."""

    request: int
    object: str | None = None
    cut: bool = False


class Restore(Order, frozen=True, tag="restore"):
    """A file was made for an object: put it in its place."""

    request: int
    class_name: str = msgspec.field(name="class")
    id: str
    name: str | None
    alarm_ms: int | None


ToBoth = Start | Connect | Ping | AskReport | Drain
ToGateway = ServeApp | ListenAgain | Breaker | HandOver | ChangeClasses | EndPumped
ToHost = EndSoon | Release | Came | Quarantine | AskAwake | Evict | Restore
ToChild = ToBoth | ToGateway | ToHost


# --- from a child --------------------------------------------------------------------------------------------------


class Message(msgspec.Struct, frozen=True, tag_field="kind"):
    """A child → the node."""


class Loaded(Message, frozen=True, tag="loaded"):
    """A successor is ready to take the place."""


class Ready(Message, frozen=True, tag="ready"):
    """It serves."""


class Failed(Message, frozen=True, tag="failed"):
    """It cannot start. `fault`: whose, "config" or "worker"."""

    text: str
    fault: str = "worker"
    traceback: str = ""


class Left(Message, frozen=True, tag="left"):
    """A gateway's successor has everything (but TLS sessions)."""


class Released(Message, frozen=True, tag="released"):
    """A host's objects are its successor's, but for these, which serve a request."""

    objects: list[Key]


class LetGo(Message, frozen=True, tag="came"):
    """Those are the successor's now, too."""

    objects: list[Key]


class Pong(Message, frozen=True, tag="pong"):
    """To a ping."""


class Stuck(Message, frozen=True, tag="stuck"):
    """It ends because of this: `report` is a `host.watchdog.Stuck`."""

    report: msgspec.Raw


class Report(Message, frozen=True, tag="report"):
    """The answer to an order with that `request`."""

    request: int
    report: msgspec.Raw


FromChild = Loaded | Ready | Failed | Left | Released | LetGo | Pong | Stuck | Report
