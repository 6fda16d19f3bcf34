"""gateway/io/connection.py: how frames leave at the end of a turn, whatever the kernel takes. Real descriptors."""

import asyncio
import socket

import pytest

from roost import events as e
from roost.clock import ManualClock
from roost.gateway.gateway import Gateway
from roost.gateway.io.channel import Backlog
from roost.gateway.io.connection import Connection, State
from roost.gateway.io.reactor import WRITE
from roost.gateway.limits import GatewayLimits
from roost.protocol.websocket import encode_message
from turns import received

REF = e.ObjectRef("Room", "ab" * 32, "x")


@pytest.fixture
def gateway():
    loop = asyncio.new_event_loop()
    made = Gateway(loop, ManualClock(), slots=1, epoch=7, limits=GatewayLimits())
    made.clients = []
    yield made
    for client in made.clients:
        client.close()
    for channel in made.turn.reactor.table:
        if channel is not None:
            channel.close_fd()
    made.turn.reactor.close()
    loop.close()


def connect(gateway):
    """A WebSocket of an object, and its client's end, which does not wait."""
    ours, client = socket.socketpair()
    ours.setblocking(False)
    client.setblocking(False)
    gateway.clients.append(client)
    fd = ours.detach()
    connection = Connection(gateway.turn, fd, gateway.turn.new_number(fd), gateway.slots[0].plain)
    gateway.turn.adopt(connection)
    gateway.sockets.bind(connection, REF, gateway.slots[0])
    return connection, client


def arrived(client):
    return received(client).removesuffix(b"<end>")


def queue(gateway, numbers, frame):
    for number in numbers:
        assert gateway.turn.find(number).send_frame(frame)


def flush(gateway):
    gateway.router.flush_connections()
    assert gateway.turn.dirty == []


def test_what_a_turn_says_is_joined_to_one_write(gateway):
    connection, client = connect(gateway)
    queue(gateway, [connection.number], b"\x81\x01a")
    queue(gateway, [connection.number], b"\x81\x01b")
    assert arrived(client) == b""
    assert gateway.turn.dirty == [connection]
    flush(gateway)
    assert arrived(client) == b"\x81\x01a\x81\x01b"


def test_nothing_leaves_before_the_journal_has_it(gateway):
    connection, client = connect(gateway)
    gateway.sockets.journal.lines.append(b"a line")
    queue(gateway, [connection.number], b"\x81\x01x")
    gateway.router.flush_connections()
    assert arrived(client) == b""
    assert gateway.turn.dirty == [connection]


def test_a_batch_of_a_host_leaves_in_order(gateway):
    connection, client = connect(gateway)
    other, other_client = connect(gateway)
    slot = gateway.slots[0]
    number = connection.number
    both = e.Send([number, other.number, number], b"a", True)
    gateway.router.from_host(slot, [both, e.Send([number], b"b", True), e.Done(0, ())])
    assert arrived(client) == b"\x81\x01a" * 2 + b"\x81\x01b"
    assert arrived(other_client) == b"\x81\x01a"
    gateway.router.from_host(slot, [e.Send([number], b"c", True), e.CloseSocket(number, 1000, "")])
    assert arrived(client) == b"\x81\x01c\x88\x02\x03\xe8"
    assert gateway.turn.counters.sends == 5


def test_what_the_kernel_does_not_take_waits_in_order(gateway):
    connection, client = connect(gateway)
    frames = [encode_message(bytes([65 + at]) * 700_000, False) for at in range(2)]
    for frame in frames:
        queue(gateway, [connection.number], frame)
        flush(gateway)
    assert type(connection.out) is Backlog
    received = b""
    while len(received) < sum(map(len, frames)):
        received += arrived(client)
        connection.ready(WRITE)
    assert received == b"".join(frames)
    assert connection.out is None


def test_a_client_that_is_gone_ends_its_own_socket_only(gateway):
    gone, client = connect(gateway)
    here, other = connect(gateway)
    client.close()
    frame = encode_message(b"hello", True)
    queue(gateway, [gone.number, here.number], frame)
    flush(gateway)
    assert gone.state == State.GONE
    assert gone.fd == -1
    assert arrived(other) == frame
    ends = [event for event in gateway.slots[0].unfinished if isinstance(event, e.SocketClose)]
    assert [(event.socket, event.code) for event in ends] == [(gone.number, 1006)]
