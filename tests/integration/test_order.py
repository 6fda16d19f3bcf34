"""`getWebSockets()` has the same order after every wake, with several gateways, too."""

import json
import os
import signal

import pytest

from conftest import write_app
from roost.testing import running, wait_for

SOURCE = """
import json
from js import WebSocketPair
from workers import DurableObject, Response, WorkerEntrypoint

class Room(DurableObject):
    async def fetch(self, request):
        client, server = WebSocketPair.new()
        self.ctx.acceptWebSocket(server, ["t"])
        server.serializeAttachment(int(request.url.split("=")[1]))
        return Response(None, status=101, web_socket=client)

    async def webSocketMessage(self, ws, message):
        every, tagged = self.ctx.getWebSockets(), self.ctx.getWebSockets("t")
        numbers = [[each.deserializeAttachment() for each in found] for found in (every, tagged)]
        ws.send(json.dumps([*numbers, every.length]))

class Default(WorkerEntrypoint):
    async def fetch(self, request):
        return await self.env.ROOM.getByName("r").fetch(request)
"""


@pytest.mark.parametrize("mode", [("--inline",), ("--hosts", "2", "--gateways", "3")], ids=" ".join)
def test_the_order_of_sockets(tmp_path, mode):
    app = write_app(tmp_path / "app", SOURCE, "Room", settings="[hibernation]\nidle_s = 0.2\n")
    with running(app, *mode) as node:
        sockets = [node.connect(f"/?n={number}") for number in range(12)]
        oldest_first = list(range(12))

        def order():
            sockets[3].send("?")
            return json.loads(sockets[3].recv(10))

        expected = [oldest_first[::-1], oldest_first, 12]
        assert order() == expected
        wait_for(lambda: not node.awake())
        assert order() == expected
        if "--inline" not in mode:
            for host in ("host 0", "host 1"):
                os.kill(node.pid(host), signal.SIGKILL)
            assert order() == expected
        for ws in sockets:
            ws.sock.close()
