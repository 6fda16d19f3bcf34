"""The tutorial's third program: a game room that sleeps while its players stay connected.

Each player's id, name and score are the attachment of their socket, so that a new instance finds them after a sleep.
"""

import json
import uuid

from js import WebSocketPair, WebSocketRequestResponsePair

from workers import DurableObject, Response, WorkerEntrypoint

MAX_POINTS = 100


class GameSession(DurableObject):
    def __init__(self, ctx, env):
        super().__init__(ctx, env)
        ctx.setWebSocketAutoResponse(WebSocketRequestResponsePair.new("ping", "pong"))

    async def fetch(self, request):
        if (request.headers.get("Upgrade") or "").lower() != "websocket":
            return Response.json({"players": self.standings()})
        client, server = WebSocketPair.new().object_values()
        self.ctx.acceptWebSocket(server, ["player"])
        player = {"id": str(uuid.uuid4()), "score": 0}
        server.serializeAttachment(player)
        server.send(
            json.dumps(
                {
                    "type": "connected",
                    "playerId": player["id"],
                    "activePlayers": len(self.ctx.getWebSockets("player")),
                    "players": self.standings(),
                }
            )
        )
        self.tell_others(server, {"type": "joined", **player, "activePlayers": len(self.ctx.getWebSockets("player"))})
        return Response(None, status=101, web_socket=client)

    async def webSocketMessage(self, ws, message):
        try:
            move = json.loads(message)
            points = move["points"]
            if move["type"] != "move" or type(points) is not int or not -MAX_POINTS <= points <= MAX_POINTS:
                raise ValueError
        except (ValueError, KeyError, TypeError):
            ws.send(
                json.dumps({"type": "error", "text": f'send {{"type": "move", "points": -{MAX_POINTS} to {MAX_POINTS}}}'})
            )
            return
        player = ws.deserializeAttachment()
        player["score"] += points
        ws.serializeAttachment(player)
        ws.send(json.dumps({"type": "moved", "score": player["score"]}))
        self.tell_others(ws, {"type": "score_update", "playerId": player["id"], "score": player["score"]})

    async def webSocketClose(self, ws, code, reason, wasClean):
        player = ws.deserializeAttachment()
        left = len(self.ctx.getWebSockets("player")) - 1
        self.tell_others(ws, {"type": "left", "playerId": player["id"], "activePlayers": left})

    def standings(self):
        return [ws.deserializeAttachment() for ws in self.ctx.getWebSockets("player")]

    def tell_others(self, sender, message):
        text = json.dumps(message)
        for ws in self.ctx.getWebSockets("player"):
            if ws is not sender:
                ws.send(text)


class Default(WorkerEntrypoint):
    async def fetch(self, request):
        path = request.url.split("://", 1)[1].partition("/")[2].split("?", 1)[0]
        kind, _, name = path.partition("/")
        if kind != "room" or not name:
            return Response("Rooms are at /room/NAME", status=404)
        return await self.env.GAMES.getByName(name).fetch(request)
