"""What AutobahnTestSuite talks to: a hibernatable echo, in split mode with all gates on."""

from js import WebSocketPair

from workers import DurableObject, Response, WorkerEntrypoint


class Echo(DurableObject):
    async def fetch(self, request):
        client, server = WebSocketPair.new()
        self.ctx.acceptWebSocket(server)
        return Response(None, status=101, web_socket=client)

    async def webSocketMessage(self, ws, message):
        ws.send(message)


class Default(WorkerEntrypoint):
    async def fetch(self, request):
        if (request.headers.get("Upgrade") or "").lower() != "websocket":
            return Response("an echo for WebSockets")
        return await self.env.ECHO.getByName("echo").fetch(request)
