"""A turn without a loop, for unit tests of what lives in one: time that a test moves, a reactor that remembers, ports that
remember. Descriptors are real (socket pairs), as writing to one is what is tested."""

import socket
from functools import partial
from types import SimpleNamespace

from roost.clock import ManualClock
from roost.gateway.counters import Counters
from roost.gateway.io.access import Access
from roost.gateway.io.turn import Turn
from roost.gateway.limits import GatewayLimits


class Reactor:
    """What is registered, and what each descriptor is watched for."""

    def __init__(self):
        self.table = [None] * 4096
        self.masks = {}
        self.in_turn = False

    def register(self, fd, channel, mask=1):
        self.table[fd] = channel
        self.masks[fd] = mask

    def watch(self, fd, mask):
        assert fd in self.masks, "it is not registered"
        self.masks[fd] = mask

    def replace(self, fd, channel):
        self.table[fd] = channel

    def reserve(self, fd):
        assert fd < len(self.table)

    def unregister(self, fd):
        self.table[fd] = None
        del self.masks[fd]


class Told:
    """`turn.SocketEvents`, `turn.RequestSink` and `turn.Door` that remember what they are told."""

    def __init__(self):
        self.messages, self.ends, self.left_fds = [], [], []
        self.requests, self.followed, self.over = [], [], []
        self.last_request = 0

    def message(self, connection, data):
        self.messages.append(data)

    def closed(self, connection, code, reason, *, clean):
        self.ends.append(("closed", code, reason, clean))

    def failed(self, connection, code, reason):
        self.ends.append(("failed", code, reason))

    def descriptor_closed(self, connection):
        self.ends.append("descriptor closed")

    def new_request(self, connection):
        self.last_request += 2
        return self.last_request

    def request(self, request):
        self.requests.append(request)

    def to_host(self, request, event):
        self.followed.append(event)

    def request_over(self, request):
        self.over.append(request)

    def left(self, fd):
        self.left_fds.append(fd)


def make_turn(**limits):
    """A `Turn` whose loop is its clock; `turn.told` has what its ports were told, `turn.timers` what is due when."""
    clock = ManualClock()
    told = Told()
    turn = SimpleNamespace(
        loop=SimpleNamespace(
            time=clock.monotonic, call_later=lambda delay, call, *args: timers.append((delay, call, args))
        ),
        clock=clock,
        limits=GatewayLimits(**limits),
        counters=Counters(),
        reactor=Reactor(),
        random_bytes=lambda size: b"\x01" * size,
        assets=None,
        dirty=[],
        pipelined=[],
        early=[],
        held_back=set(),
        aliases={},
        closing_due={},
        draining=False,
        quiescing=False,
        generation=0,
        socket_events=told,
        requests=told,
        door=told,
        told=told,
        ended=0,
        log=[],
        faults=[],
        looked=[],
        _discarded={},
        _pings={},
        _large_at=0.0,
        _trimmed_at=0.0,
        _trims=False,
        _deadlines=SimpleNamespace(add=lambda due, number: None),  # tests call `expire` themselves
        _deflated=(b"", {}),
        _date=("", 0),
    )
    timers = turn.timers = []
    turn.access = Access(turn.limits.allowed_origins, turn.limits.trusted_proxies)
    for name in (
        "large_message",
        "_trim",
        "new_number",
        "new_virtual_number",
        "seen_number",
        "find",
        "adopt",
        "closed",
        "discarded",
        "allow_ping",
        "deflated",
        "close_deadline",
    ):
        setattr(turn, name, partial(getattr(Turn, name), turn))
    turn.http_date = lambda: "Thu, 01 Jan 1970 00:00:00 GMT"
    turn.log_request = lambda method, target, status: turn.log.append((method, target, status))
    turn.log_worker_fault = lambda target, text: turn.faults.append(text)
    turn.look_again = lambda number, in_s=None: turn.looked.append(in_s)

    def end():
        turn.ended += 1

    turn.end = end
    return turn


def flush(turn):
    """The end of a turn: all that is queued leaves, and pipelined requests begin."""
    while turn.dirty or turn.pipelined:
        dirty, turn.dirty = turn.dirty, []
        for channel in dirty:
            channel.flush()
        pipelined, turn.pipelined = turn.pipelined, []
        for http in pipelined:
            http.begin_pipelined()


def pair():
    """Two ends; neither waits."""
    ours, theirs = socket.socketpair()
    ours.setblocking(False)
    theirs.setblocking(False)
    return ours.detach(), theirs


def received(client):
    """All that has arrived at a client's end; None at the end if that has ended, too."""
    data = b""
    while True:
        try:
            piece = client.recv(1 << 20)
        except BlockingIOError:
            return data
        except ConnectionResetError:
            return data + b"<reset>"
        if not piece:
            return data + b"<end>"
        data += piece
