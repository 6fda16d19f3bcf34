"""The tutorial's GameSession line by line, mistakes included: a listener after acceptWebSocket, state in a dictionary.

On the platform nothing ever happens. Roost calls the listener, keeps the object awake for it, and warns; see
`../game` for how to write it.
"""

import json
import uuid

from js import WebSocketPair
from pyodide.ffi import create_proxy

from workers import DurableObject, Response, WorkerEntrypoint


class GameSession(DurableObject):
    def __init__(self, ctx, env):
        super().__init__(ctx, env)
        self.players = {}

    async def fetch(self, request):
        client, server = WebSocketPair.new().object_values()

        self.ctx.acceptWebSocket(server)
        player_id = str(uuid.uuid4())
        self.players[server] = {"id": player_id, "score": 0}

        def on_message(event):
            msg = json.loads(event.data)
            if msg["type"] == "move":
                self.players[server]["score"] += msg["points"]
                mover = self.players[server]
                for ws in self.players:
                    if ws is not server:
                        ws.send(json.dumps({"type": "score_update", "playerId": mover["id"], "score": mover["score"]}))

        server.addEventListener("message", create_proxy(on_message))
        server.send(json.dumps({"type": "connected", "playerId": player_id, "activePlayers": len(self.players)}))
        return Response(None, status=101, web_socket=client)


class Default(WorkerEntrypoint):
    async def fetch(self, request):
        return await self.env.GAMES.getByName("room").fetch(request)
