"""What is measured: one hibernating object a path; /echo/NAME echoes, /fan/NAME broadcasts by the plain loop."""

from js import WebSocketPair

from workers import DurableObject, Response, WorkerEntrypoint


class Room(DurableObject):
    async def fetch(self, request):
        client, server = WebSocketPair.new().object_values()
        fan = "/fan/" in request.url
        self.ctx.acceptWebSocket(server, ["fan" if fan else "echo"])
        server.serializeAttachment("x" * 56)
        self.fan = fan
        return Response(None, status=101, web_socket=client)

    def __init__(self, ctx, env):
        super().__init__(ctx, env)
        self.fan = any(ctx.getWebSockets("fan"))

    async def webSocketMessage(self, ws, message):
        if self.fan:
            for socket in self.ctx.getWebSockets():
                socket.send(message)
        else:
            ws.send(message)


class Default(WorkerEntrypoint):
    async def fetch(self, request):
        if request.headers.get("Upgrade") != "websocket":
            return Response("hello")
        path = request.url.split("/", 3)[3]
        return await self.env.ROOMS.getByName(path).fetch(request)
