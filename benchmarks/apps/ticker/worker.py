"""A live ticker: one object takes ticks from upstream feeds, drops odd lots, adds up each symbol, tells those who asked.

/start?feed=URL&feed=URL dials the feeds; /SYMBOL is a subscriber's WebSocket.
"""

import json
from urllib.parse import parse_qs, urlsplit

from js import WebSocketPair

from workers import DurableObject, Response, WorkerEntrypoint, fetch

ROUND_LOT = 10


class Ticker(DurableObject):
    def __init__(self, ctx, env):
        super().__init__(ctx, env)
        self.symbols = {}

    async def fetch(self, request):
        url = urlsplit(request.url)
        if url.path == "/start":
            for feed in parse_qs(url.query)["feed"]:
                response = await fetch(feed, headers={"Upgrade": "websocket"})
                self.ctx.acceptWebSocket(response.web_socket, ["feed"])
                response.web_socket.send("go")
            return Response("started")
        client, server = WebSocketPair.new().object_values()
        self.ctx.acceptWebSocket(server, [url.path[1:]])
        return Response(None, status=101, web_socket=client)

    async def webSocketMessage(self, ws, message):
        tick = json.loads(message)
        if tick["size"] < ROUND_LOT:
            return
        symbol, price = tick["symbol"], tick["price"]
        state = self.symbols.setdefault(symbol, {"count": 0, "volume": 0, "low": price, "high": price})
        state["count"] += 1
        state["volume"] += tick["size"]
        state["low"] = min(state["low"], price)
        state["high"] = max(state["high"], price)
        news = json.dumps({"at": tick["at"], "symbol": symbol, "last": price, **state})
        for subscriber in self.ctx.getWebSockets(symbol):
            subscriber.send(news)


class Default(WorkerEntrypoint):
    async def fetch(self, request):
        return await self.env.TICKER.getByName("all").fetch(request)
