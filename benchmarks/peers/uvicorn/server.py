"""uvicorn on uvloop with `websockets`, a bare ASGI app: /echo echoes, /fan sends to everybody by the plain loop.
PEER_DEFLATE compresses, PEER_TLS is a folder with cert.pem and key.pem."""

import os
import sys

import uvicorn

everybody = set()


async def app(scope, receive, send):
    if scope["type"] == "lifespan":
        while (await receive())["type"] != "lifespan.shutdown":
            await send({"type": "lifespan.startup.complete"})
        await send({"type": "lifespan.shutdown.complete"})
        return
    if scope["type"] == "http":
        fields = [(b"content-type", b"text/plain"), (b"content-length", b"5")]
        await send({"type": "http.response.start", "status": 200, "headers": fields})
        await send({"type": "http.response.body", "body": b"hello"})
        return
    fan = scope["path"].startswith("/fan")
    await receive()
    await send({"type": "websocket.accept"})
    if fan:
        everybody.add(send)
    try:
        while (event := await receive())["type"] == "websocket.receive":
            out = {"type": "websocket.send", "text": event.get("text"), "bytes": event.get("bytes")}
            for other in everybody if fan else (send,):
                await other(out)
    finally:
        everybody.discard(send)


folder = os.environ.get("PEER_TLS")
tls = {"ssl_certfile": f"{folder}/cert.pem", "ssl_keyfile": f"{folder}/key.pem"} if folder else {}
uvicorn.run(
    app, host="127.0.0.1", port=int(sys.argv[1]), log_level="error", access_log=False, backlog=4096, ws_ping_interval=None,
    ws_per_message_deflate=bool(os.environ.get("PEER_DEFLATE")), loop="uvloop", **tls,
)  # fmt: skip
