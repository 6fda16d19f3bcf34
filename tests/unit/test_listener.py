"""gateway/io/listener.py: what is accepted has the options of what accepts, which are set once."""

import select
import socket
import sys
from types import SimpleNamespace

import pytest

from roost.gateway.io.admission import watch_over
from roost.gateway.io.listener import Listener
from roost.gateway.limits import GatewayLimits

linux = pytest.mark.skipif(sys.platform != "linux", reason="elsewhere each one's options are set")


class Accepting:
    """What a listener needs of its gateway: a turn, and an admission."""

    limits = GatewayLimits(tcp_keepalive_s=7, tcp_timeout_s=8)

    def __init__(self):
        self.taken = []
        self.reactor = SimpleNamespace(register=lambda fd, listener: None, unregister=lambda fd: None)

    def accepted(self, sock, peer):
        self.taken.append((sock, peer))


def accept_one(*, listens_to_all):
    """A client of this machine, of a listener that is for this machine only or (as far as it knows) for everybody."""
    gateway = Accepting()
    listener = Listener(gateway, gateway, socket.create_server(("127.0.0.1", 0)))
    if listens_to_all:
        listener._local = False
        watch_over(listener._sock, gateway.limits, local=False)
    with socket.create_connection(listener._sock.getsockname()):
        assert select.select([listener._sock], [], [], 5)[0]
        listener.ready(1)
    listener.close()
    ((sock, peer),) = gateway.taken
    assert peer == "127.0.0.1"
    return sock


@linux
@pytest.mark.parametrize("listens_to_all", [False, True])
def test_a_client_on_this_machine_is_not_probed(listens_to_all):
    with accept_one(listens_to_all=listens_to_all) as sock:
        assert sock.getsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY)
        assert not sock.getsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE)
        assert sock.getsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT) == 0


@linux
def test_others_inherit_the_probes():
    """The kernel's part: a client's options are those of the listener when it connected."""
    gateway = Accepting()
    with socket.create_server(("127.0.0.1", 0)) as listening:
        watch_over(listening, gateway.limits)
        with socket.create_connection(listening.getsockname()):
            sock, _ = listening.accept()
            with sock:
                assert sock.getsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY)
                assert sock.getsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE)
                assert sock.getsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPIDLE) == 7
                assert sock.getsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT) == 15_000
