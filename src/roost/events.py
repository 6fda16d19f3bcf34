"""The whole vocabulary between a gateway and a host.

Every struct is frozen and holds only numbers, text and bytes: no Python object, callback or file descriptor crosses the
link, so a host in another language can speak it. `protocol/envelope.py` gives each its bytes; `link/` moves them.

Numbers on the wire
- `socket`: a gateway's number for one client connection, unique for the life of that gateway process. It grows with the
  time at which the client connected, so that sockets of several gateways have an order.
- `actor`: a gateway's number for one object that has sockets there; 0 means a socket that no object hibernates with.
- `event`: a gateway process' running number of an event, whatever host it goes to; the host answers it with `Done`.
- `request`, `dial`: chosen by the asking side; gateways use even numbers, hosts odd ones, so they never meet.

Text in `SocketMessage.data` is `str` (already checked UTF-8); outbound `Send.payload` is bytes plus a flag, because the
host must copy at `send()` anyway and the gateway only frames it.

Long because it is a vocabulary: one list, nothing else.
"""

from __future__ import annotations

import msgspec

Headers = list[tuple[str, str]]
"""Header fields in order, names as received. Values are Latin-1 text (RFC 9110 §5.5)."""

ENVELOPE_VERSION = 6
"""Of `protocol/envelope.py` and the events here: raised when what travels has another shape or meaning. Processes of
different versions refuse each other (`tests/unit/test_versions.py` notices a new shape)."""

BEGUN_OFFSET = 3072
"""Where in the file that a `Hello` names the counts of begun requests are: 8 bytes a link, in the machine's byte order."""
BEGUN_END = 4096


class ObjectRef(msgspec.Struct, frozen=True, array_like=True):
    """Which Durable Object: its class, its id (64 hex digits), and the name it was made from if known."""

    class_name: str
    id: str
    name: str | None = None

    @property
    def label(self) -> str:
        """For logs: `Room(lobby)`, or with the beginning of the id."""
        return f"{self.class_name}({self.name or self.id[:8]})"


class AutoResponse(msgspec.Struct, frozen=True, array_like=True):
    """A text that the gateway answers with another, without waking the object. Each at most 2,048 bytes."""

    request: str
    response: str


class Fault(msgspec.Struct, frozen=True, array_like=True):
    """An exception on its way to a caller: its type's name and its message."""

    name: str
    message: str


class Chain(msgspec.Struct, frozen=True, array_like=True):
    """Through what a call has come: how many calls deep it is, and the objects whose `blockConcurrencyWhile` waits for it
    (as `Class/id#request`, the section's own call): one that has to wait for such a section would wait for ever."""

    depth: int = 0
    blocked: tuple[str, ...] = ()


# --- both directions ---------------------------------------------------------------------------------------------


class Request(msgspec.Struct, frozen=True, array_like=True):
    """An HTTP request: from a client to a worker (gateway → host), or to an object through a stub (either way).

    `socket` is the number that the connection will have if it is answered with 101, 0 if it cannot be upgraded.
    `body` is what had arrived; with `more_body` the rest follows as `BodyData`.
    """

    request: int
    method: str
    url: str
    headers: Headers
    body: bytes
    more_body: bool
    upgrade: bool
    socket: int
    peer: str
    target: ObjectRef | None = None
    chain: Chain = Chain()


class Binding(msgspec.Struct, frozen=True, array_like=True):
    """What the server end of an upgraded connection is.

    `object` set: a hibernatable socket of that object. `relay` set: the connection is spliced to that other socket
    (an unaccepted upstream returned to the client). Neither: a plain `accept()`ed socket in the host's memory.
    """

    object: ObjectRef | None = None
    tags: tuple[str, ...] = ()
    attachment: bytes | None = None
    auto_response: AutoResponse | None = None
    relay: int = 0


class Response(msgspec.Struct, frozen=True, array_like=True):
    """The answer to a `Request`. With status 101 and no binding, `socket` names a connection bound elsewhere."""

    request: int
    status: int
    reason: str
    headers: Headers
    body: bytes
    more_body: bool
    binding: Binding | None = None
    socket: int = 0


class BodyData(msgspec.Struct, frozen=True, array_like=True):
    """The next piece of the body of request `request` (or of its response); `last` ends it."""

    request: int
    data: bytes
    last: bool


class BodyCredit(msgspec.Struct, frozen=True, array_like=True):
    """The receiver of a body has consumed `size` bytes; the sender may have `BODY_WINDOW_BYTES` outstanding."""

    request: int
    size: int


class Abort(msgspec.Struct, frozen=True, array_like=True):
    """The request is over before its response was complete: the client left, or the response's source broke."""

    request: int
    reason: str
    fault: Fault | None = None  # what an object's fetch raised, for the object that asked


BODY_WINDOW_BYTES = 256 * 1024


class Call(msgspec.Struct, frozen=True, array_like=True):
    """A method call on an object elsewhere. `arguments` is the encoded `[args, kwargs]`, empty to read a property."""

    request: int
    target: ObjectRef
    method: str
    arguments: bytes
    chain: Chain


class Result(msgspec.Struct, frozen=True, array_like=True):
    """The answer to a `Call`: an encoded value, or what was raised."""

    request: int
    value: bytes
    fault: Fault | None = None


class Leaving(msgspec.Struct, frozen=True, array_like=True):
    """The host ends in order: it finishes what it has, and its successor gets what comes from now on. The gateway echoes it
    behind the last thing that it has given to the host."""


# --- gateway → host ----------------------------------------------------------------------------------------------


class SocketMessage(msgspec.Struct, frozen=True, gc=False):
    """A whole text (str) or binary (bytes) message from the client of `socket`."""

    event: int
    actor: int
    socket: int
    data: str | bytes


class SocketClose(msgspec.Struct, frozen=True, array_like=True):
    """The client's end is over: a Close frame (`clean`), or the stream ended without one (1006)."""

    event: int
    actor: int
    socket: int
    code: int
    reason: str
    clean: bool


class SocketError(msgspec.Struct, frozen=True, array_like=True):
    """The client broke the protocol or a limit; the gateway has already closed with `code`. No close event follows."""

    event: int
    actor: int
    socket: int
    code: int
    message: str


class SocketOpened(msgspec.Struct, frozen=True, array_like=True):
    """A kept upstream that had ended is connected again, by the `attempts`-th dial since then."""

    event: int
    actor: int
    socket: int
    attempts: int


SocketEvent = SocketMessage | SocketClose | SocketError | SocketOpened
"""What a gateway numbers, keeps until it is done, and gives to a successor."""


class RosterEntry(msgspec.Struct, frozen=True, array_like=True):
    """One hibernatable socket of an object as its gateway knows it. `auto_at_ms` is 0 if never auto-answered."""

    socket: int
    tags: tuple[str, ...]
    attachment: bytes | None
    auto_at_ms: int
    url: str
    protocol: str
    close_sent: bool


class Roster(msgspec.Struct, frozen=True, array_like=True):
    """The sockets that an object has at this gateway, oldest first; the answer to `RosterRequest`. Of very many there are
    several in a row: `piece` counts them from 0, and all but the last have `more`."""

    actor: int
    object: ObjectRef | None
    sockets: list[RosterEntry]
    auto_response: AutoResponse | None
    piece: int = 0
    more: bool = False


class WakingMessage(msgspec.Struct, frozen=True, array_like=True):
    """A `SocketMessage`, its data as `string` or `binary`, for an object that sleeps as far as its gateway knows, and the
    roster that it needs to wake."""

    event: int
    socket: int
    string: str | None
    binary: bytes | None
    roster: Roster


class AutoAnswered(msgspec.Struct, frozen=True, array_like=True):
    """The gateway auto-answered for a socket of an object that may be awake. Not an event: it wakes nothing."""

    actor: int
    socket: int
    at_ms: int


class Dialled(msgspec.Struct, frozen=True, array_like=True):
    """The outcome of a `Dial`: an open WebSocket (`status` 101), a refusal (its status, and the beginning of its body: at
    most 64 KiB), or an error text (status 0)."""

    dial: int
    socket: int
    status: int
    headers: Headers
    error: str
    body: bytes = b""


class Welcome(msgspec.Struct, frozen=True, array_like=True):
    """A gateway's answer to `Hello`. `epoch`, below 2^53, names this gateway process (0: its hosts cannot die without it).
    Events up to `given_before` may have been given to an earlier host, and those of them that are not done, `redelivered`,
    follow. Of the groups that the host before, `life`, has ended (`GroupEnd`), those up to `groups_upto` have arrived, and
    `groups_besides`."""

    epoch: int
    given_before: int
    redelivered: list[int] = []
    life: int = 0
    groups_upto: int = 0
    groups_besides: list[int] = []


# --- host → gateway ----------------------------------------------------------------------------------------------


class Hello(msgspec.Struct, frozen=True, array_like=True):
    """A host's first envelope on a link: which slot of how many it serves. `mark` is a file in which it counts the requests
    of each link that it has begun, this link's at `link`; empty if nobody can outlive it. `life` names the process.
    `one_host`: the worker keeps sockets in memory, so requests that name no object all go to slot 0."""

    version: int
    slot: int
    slots: int
    mark: str = ""
    link: int = 0
    life: int = 0
    one_host: bool = False


class Send(msgspec.Struct, frozen=True, gc=False):
    """One message to one or many sockets, in order; the payload is encoded and copied once."""

    sockets: list[int]
    payload: bytes
    text: bool


class CloseSocket(msgspec.Struct, frozen=True, array_like=True):
    """Close the client's connection after what was sent before. Code 1005: an empty frame; 1006: cut, none."""

    socket: int
    code: int
    reason: str


class Attach(msgspec.Struct, frozen=True, array_like=True):
    """The socket's new attachment (encoded value), kept by the gateway while the object sleeps."""

    socket: int
    attachment: bytes | None


class SetAutoResponse(msgspec.Struct, frozen=True, array_like=True):
    """The object's auto-response at this gateway from now on; None removes it."""

    object: ObjectRef
    auto_response: AutoResponse | None


class DropSockets(msgspec.Struct, frozen=True, array_like=True):
    """The object was reset: cut all its sockets, with no Close frame."""

    object: ObjectRef


class GroupEnd(msgspec.Struct, frozen=True, array_like=True):
    """The end of a group: what an object said while some writes were on their way to the disk. Numbered on each link from
    1; groups may leave in another order than they were begun."""

    group: int


class Released(msgspec.Struct, frozen=True, array_like=True):
    """A host that is leaving: its objects' files are closed, and none of their handlers runs. What it was given and has not
    said to be done is its successor's, which may come. This link stays for the requests that it still answers."""


class Confirm(msgspec.Struct, frozen=True, array_like=True):
    """A host: say `Confirmed` with this number when you next have something to say. It stands at the end of a batch: once
    that has been read, every `Done` before it has been received."""

    number: int


class Confirmed(msgspec.Struct, frozen=True, array_like=True):
    """A gateway: everything that was sent before that `Confirm` (and those of lower numbers) has been received."""

    number: int


class RosterRequest(msgspec.Struct, frozen=True, array_like=True):
    """An object wakes: send its roster. By `actor` if that is all the host knows, else by object."""

    actor: int
    object: ObjectRef | None


class Asleep(msgspec.Struct, frozen=True, array_like=True):
    """The object of that `actor`, or `object` if given, sleeps: until its next roster or binding no `AutoAnswered` is sent,
    and that roster goes before the event that wakes it."""

    actor: int
    object: ObjectRef | None = None


class Dial(msgspec.Struct, frozen=True, array_like=True):
    """Open an outbound WebSocket to `url` (ws, wss, http or https)."""

    dial: int
    url: str
    protocols: list[str]
    headers: Headers


class Redial(msgspec.Struct, frozen=True, array_like=True):
    """How an upstream is dialled again: after `first_s`, twice as long each time up to `max_s`, each shortened by up to
    half at random; at most `attempts` times in a row (0: for ever)."""

    first_s: float = 0.5
    max_s: float = 60.0
    attempts: int = 0


class KeepSocket(msgspec.Struct, frozen=True, array_like=True):
    """A socket that was dialled is an object's from now on, and stays while it sleeps. `redial`: also beyond its end."""

    socket: int
    object: ObjectRef
    tags: tuple[str, ...]
    attachment: bytes | None
    redial: Redial | None


class DialKept(msgspec.Struct, frozen=True, array_like=True):
    """Open an outbound WebSocket that is an object's at once, as `keep` says (`keep.socket` is 0 here, `keep.redial` is
    there): dialled until it is open, which `SocketOpened` tells. Answered by `Dialled` with its number and status 0."""

    dial: Dial
    keep: KeepSocket


class Done(msgspec.Struct, frozen=True, gc=False):
    """Every event up to and including `event` is finished and its writes durable, but for `stragglers`."""

    event: int
    stragglers: tuple[int, ...]


ToHost = (
    Request
    | Response
    | BodyData
    | BodyCredit
    | Abort
    | Call
    | Result
    | SocketMessage
    | SocketClose
    | SocketError
    | SocketOpened
    | Roster
    | WakingMessage
    | Dialled
    | AutoAnswered
    | Welcome
    | Leaving
    | Confirmed
)
ToGateway = (
    Hello
    | Leaving
    | Request
    | Response
    | BodyData
    | BodyCredit
    | Abort
    | Call
    | Result
    | Send
    | CloseSocket
    | Attach
    | SetAutoResponse
    | DropSockets
    | RosterRequest
    | GroupEnd
    | Released
    | Confirm
    | Asleep
    | Dial
    | KeepSocket
    | DialKept
    | Done
)
Event = ToHost | ToGateway
