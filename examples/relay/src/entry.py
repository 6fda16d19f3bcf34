"""The tutorial's second program: a client on one side, an upstream WebSocket on the other, messages both ways.

Unlike the published sketch it carries close codes across, keeps binary binary, and says so when the upstream is down.
"""

import asyncio
import json

from js import WebSocket, WebSocketPair

from workers import Response, WorkerEntrypoint

UPSTREAM_DOWN = 1013  # try again later
UPSTREAM_BROKE = 1011


def carried(code):
    """The close code to pass on; codes that may not be sent become their nearest honest neighbour."""
    if code == 1005:
        return 1000
    return UPSTREAM_BROKE if code in (1006, 1015) else code


class Default(WorkerEntrypoint):
    async def fetch(self, request):
        if (request.headers.get("Upgrade") or "").lower() != "websocket":
            return Response("Expected WebSocket upgrade", status=426)

        client, server = WebSocketPair.new()
        server.binaryType = "arraybuffer"
        server.accept()

        upstream = WebSocket.new(self.env.UPSTREAM_URL)
        upstream.binaryType = "arraybuffer"
        opened = asyncio.get_running_loop().create_future()

        def say(text):
            server.send(json.dumps({"type": "system", "text": text}))

        def on_open(event):
            if not opened.done():
                opened.set_result(True)

        def on_upstream_error(event):
            if not opened.done():
                opened.set_result(False)

        def on_upstream_close(event):
            if server.readyState == WebSocket.OPEN and opened.done() and opened.result():
                say("Disconnected from upstream")
                server.close(carried(event.code), event.reason)

        upstream.addEventListener("open", on_open)
        upstream.addEventListener("error", on_upstream_error)
        upstream.addEventListener("message", lambda event: server.send(event.data))
        upstream.addEventListener("close", on_upstream_close)

        def on_client_message(event):
            if upstream.readyState == WebSocket.OPEN:
                upstream.send(event.data)

        def on_client_close(event):
            upstream.close(carried(event.code), event.reason)

        if not await opened:
            say("The upstream cannot be reached; try again later")
            server.close(UPSTREAM_DOWN, "upstream unavailable")
            return Response(None, status=101, web_socket=client)

        server.addEventListener("message", on_client_message)
        server.addEventListener("close", on_client_close)
        return Response(None, status=101, web_socket=client)
