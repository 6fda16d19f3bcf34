"""The tutorial's first program: a WebSocket that echoes."""

from js import WebSocketPair, console
from pyodide.ffi import create_proxy

from workers import Response, WorkerEntrypoint


class Default(WorkerEntrypoint):
    async def fetch(self, request):
        upgrade = request.headers.get("Upgrade")
        if not upgrade or upgrade.lower() != "websocket":
            return Response("Expected WebSocket upgrade", status=426)

        client, server = WebSocketPair.new().object_values()
        server.binaryType = "arraybuffer"
        server.accept()

        def on_message(event):
            if isinstance(event.data, str):
                server.send(f"Echo: {event.data}")
            else:
                server.send(event.data)

        server.addEventListener("message", create_proxy(on_message))
        server.addEventListener("close", create_proxy(lambda event: console.log("Connection closed", event.code)))
        server.addEventListener("error", create_proxy(lambda event: console.error("WebSocket error:", event.message)))

        return Response(None, status=101, web_socket=client)
