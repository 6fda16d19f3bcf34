"""The same worker as worker.js, line by line."""

import json
from urllib.parse import parse_qs, urlsplit

from js import JSON, WebSocketPair, WebSocketRequestResponsePair

from workers import DurableObject, Response, WorkerEntrypoint


class Lab(DurableObject):
    def __init__(self, ctx, env):
        super().__init__(ctx, env)
        self.log = []

    async def fetch(self, request):
        url = urlsplit(request.url)
        query = parse_qs(url.query, keep_blank_values=True)
        if url.path.endswith("/log"):
            return Response.json(self.log)
        client, server = WebSocketPair.new().object_values()
        if "/plain" in url.path:
            server.accept()
            server.binaryType = "arraybuffer"
            server.addEventListener("message", lambda event: self.message(server, event.data))
            server.addEventListener(
                "close",
                lambda event: self.log.append(
                    [
                        "close",
                        event.code,
                        event.reason,
                        event.wasClean,
                        server.readyState if event.wasClean or "readyState" in url.path else "cut",
                    ]
                ),
            )
            server.addEventListener("error", lambda event: self.log.append(["error"]))
        else:
            self.ctx.acceptWebSocket(server, ["tag", *query.get("tag", [])])
            server.serializeAttachment({"path": url.path})
        headers = {}
        if "protocol" in query:
            headers["Sec-WebSocket-Protocol"] = query["protocol"][0]
        return Response(None, status=101, web_socket=client, headers=headers)

    def message(self, ws, message):
        self.log.append(["message", message[:50] if isinstance(message, str) else len(message)])
        if not isinstance(message, str):
            return ws.send(message)
        verb, *rest = message.split(" ")
        if verb == "close":
            return ws.close(*([int(rest[0]), " ".join(rest[1:])] if rest else []))
        if verb == "throw":
            raise ValueError("on purpose")
        if verb == "after":
            ws.close(4000, "x")
            try:
                ws.send("never")
                self.log.append("sent")
            except Exception as error:
                self.log.append([error.name, error.message[:42]])
            return None
        if verb == "codes":
            found = []
            for code in (999, 1004, 1005, 1006, 1015, 5000):
                try:
                    ws.close(code)
                    found.append("allowed")
                except Exception as error:
                    found.append(error.name)
            try:
                ws.close(1000, "x" * 124)
            except Exception as error:
                found.append(error.name)
            return ws.send(JSON.stringify(found))
        if verb == "state":
            sockets = self.ctx.getWebSockets()
            return ws.send(
                json.dumps(
                    [ws.readyState, len(sockets), len(self.ctx.getWebSockets("tag")), self.ctx.getTags(ws),
                     ws.deserializeAttachment()],
                    separators=(",", ":"),
                )
            )  # fmt: skip
        if verb == "auto":
            self.ctx.setWebSocketAutoResponse(WebSocketRequestResponsePair.new("ping", "pong"))
            return ws.send("set")
        return ws.send(message)

    def webSocketMessage(self, ws, message):
        self.message(ws, message)

    def webSocketClose(self, ws, code, reason, was_clean):
        self.log.append(["close", code, reason, was_clean, len(self.ctx.getWebSockets())])
        if reason == "answer me":
            ws.close(4321, "answered")

    def webSocketError(self, ws, error):
        self.log.append(["error"])


class Default(WorkerEntrypoint):
    async def fetch(self, request):
        path = urlsplit(request.url).path
        upgrade = request.headers.get("Upgrade")
        if not path.endswith("/log") and upgrade != "websocket":
            return Response("Expected WebSocket upgrade", status=426)
        return await self.env.LAB.getByName(path.split("/")[1]).fetch(request)
