"""The testing kit: run an app as users do, and speak to it with a raw client that may misbehave.

with running("examples/echo") as node, node.connect("/") as ws:
    ws.send("Hello")
    assert ws.recv() == "Echo: Hello"
"""

from roost.testing.node import RunningNode, running, wait_for
from roost.testing.rawws import HandshakeRefused, RawWebSocket, http_get, open_socket

__all__ = ["HandshakeRefused", "RawWebSocket", "RunningNode", "http_get", "open_socket", "running", "wait_for"]
