"""Workers as Cloudflare's documentation and examples write them (reference 1.6), in their various dialects."""

import pytest

from roost.testing import HandshakeRefused, running, wait_for


def test_legacy_handlers(make_app):
    """Source 13: `@handler on_fetch(request, env, ctx)`, an object without super().__init__ and with on_fetch."""
    app = make_app(
        """
        from workers import DurableObject, Response, handler

        class Counter(DurableObject):
            def __init__(self, ctx, env):
                self.ctx = ctx
                self.hits = 0

            async def on_fetch(self, request, env=None, ctx=None):
                self.hits += 1
                return Response(f"hit {self.hits}")

        @handler
        async def on_fetch(request, env, ctx):
            id = env.COUNTER.idFromName("foo")
            return await env.COUNTER.get(id).fetch(request.url)
        """,
        "Counter",
        config='compatibility_flags = ["disable_python_no_global_handlers"]',
    )
    with running(app, "--inline") as node:
        assert node.get("/a")[2] == b"hit 1"
        assert node.get("/a")[2] == b"hit 2"


def test_chatroom(make_app):
    """Source 2: self.state set in __init__, send before the 101, len(getWebSockets()), a file beside the worker."""
    app = make_app(
        """
        from pathlib import Path
        from js import WebSocketPair
        from workers import DurableObject, Response, WorkerEntrypoint

        class ChatRoom(DurableObject):
            def __init__(self, state, env):
                super().__init__(state, env)
                self.state = state

            async def fetch(self, request):
                client, server = WebSocketPair.new().object_values()
                self.state.acceptWebSocket(server)
                server.send(f"welcome, {len(self.state.getWebSockets())} here")
                return Response(None, status=101, web_socket=client)

            async def webSocketMessage(self, ws, message):
                for other in self.state.getWebSockets():
                    other.send(message)

            async def webSocketClose(self, ws, code, reason, wasClean):
                ws.close(code, reason)

            async def webSocketError(self, ws, error):
                ws.close(1011, "error")

        class Default(WorkerEntrypoint):
            async def fetch(self, request):
                if request.headers.get("Upgrade") == "websocket":
                    return await self.env.CHATROOM.get(self.env.CHATROOM.idFromName("r")).fetch(request.js_object)
                page = (Path(__file__).parent / "page.html").read_text()
                return Response(page, headers={"Content-Type": "text/html"})
        """,
        "ChatRoom",
    )
    (app / "page.html").write_text("<p>chat</p>")
    with running(app) as node:
        assert node.get()[2] == b"<p>chat</p>"
        with node.connect() as one, node.connect() as two:
            assert [one.recv(), two.recv()] == ["welcome, 1 here", "welcome, 2 here"]
            one.send("hi")
            assert [one.recv(), two.recv()] == ["hi", "hi"]
            one.close(4001, "bye")
            assert one.recv_close() == (4001, "bye")


def test_websocket_documentation(make_app):
    """Sources 5 and 14: unpacked pair, snake_case getWebSockets, 426 with a status text, js Response, Object.values."""
    app = make_app(
        """
        from js import Object, Response as JsResponse, WebSocketPair
        from pyodide.ffi import create_proxy, to_js
        from workers import DurableObject, Response, WorkerEntrypoint

        class WebSocketServer(DurableObject):
            async def fetch(self, request):
                client, server = Object.values(WebSocketPair.new())
                self.ctx.acceptWebSocket(server, to_js(["room"]))
                return JsResponse.new(None, status=101, webSocket=client)

            async def webSocketMessage(self, ws, message):
                ws.send(f"[Durable Object] message: {message}, connections: {len(self.ctx.get_websockets())}")

        class Default(WorkerEntrypoint):
            async def fetch(self, request):
                if request.url.endswith("/websocket"):
                    if request.headers.get("Upgrade") != "websocket":
                        return Response(None, status=426, status_text="Expected Upgrade",
                                        headers={"Content-Type": "text/plain"})
                    return await self.env.WEBSOCKETSERVER.getByName("foo").fetch(request)
                if request.url.endswith("/standard"):
                    client, server = WebSocketPair.new()
                    server.accept()
                    server.addEventListener("message", create_proxy(lambda event: server.send("got " + event.data)))
                    return Response(None, status=101, web_socket=client)
                return Response(f"Supported endpoints: /websocket, {request.method == 'GET'}", status=200)
        """,
        "WebSocketServer",
    )
    with running(app) as node:
        with pytest.raises(HandshakeRefused, match=r"200"):
            node.connect("/nowhere")
        status, headers, _ = node.get("/websocket")
        assert (status, headers["content-type"]) == (426, "text/plain")
        assert node.get("/")[2] == b"Supported endpoints: /websocket, True"
        with node.connect("/websocket") as ws:
            ws.send("hello")
            assert ws.recv() == "[Durable Object] message: hello, connections: 1"
        with node.connect("/standard") as ws:
            ws.send("x")
            assert ws.recv() == "got x"


def test_stream_consumer(make_app):
    """Source 3: an object that dials a feed, stores what it hears with kv, and resets itself with ctx.abort."""
    from websockets.sync.server import serve

    def feed(ws):
        for number in range(3):
            ws.send(str(number))
        ws.recv()

    server = serve(feed, "127.0.0.1", 0, compression=None)
    import threading

    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    app = make_app(
        """
        import js
        from pyodide.ffi import create_proxy
        from workers import DurableObject, Response, WorkerEntrypoint

        class Consumer(DurableObject):
            async def fetch(self, request):
                if request.url.endswith("/start"):
                    self.ws = js.WebSocket.new(self.env.FEED)
                    async def on_message(event):
                        seen = self.ctx.storage.kv.get("seen") or []
                        self.ctx.storage.kv.put("seen", [*seen, event.data])
                    self.ws.addEventListener("message", create_proxy(on_message))
                    self.ws.addEventListener("close", create_proxy(lambda event: print("feed closed", event.code)))
                    return Response("started")
                if request.url.endswith("/abort"):
                    self.ctx.abort("asked")
                return Response.json(self.ctx.storage.kv.get("seen"))

        class Default(WorkerEntrypoint):
            async def fetch(self, request):
                return await self.env.CONSUMER.getByName("one").fetch(request)
        """,
        "Consumer",
    )
    try:
        with running(app, "--var", f"FEED:ws://127.0.0.1:{server.socket.getsockname()[1]}/") as node:
            assert node.get("/start")[2] == b"started"
            wait_for(lambda: node.get("/seen")[2] == b'["0","1","2"]')
            assert node.get("/abort")[0] == 500
            assert node.get("/seen")[2] == b'["0","1","2"]'
    finally:
        server.shutdown()
        thread.join()
