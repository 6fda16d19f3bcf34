"""aiohttp on uvloop: /echo echoes, /fan sends to everybody by the plain loop, /hello is plain HTTP. PEER_DEFLATE
compresses, PEER_TLS is a folder with cert.pem and key.pem."""

import asyncio
import os
import ssl
import sys

import uvloop
from aiohttp import WSMsgType, web

everybody = set()
DEFAULTS = bool(os.environ.get("PEER_DEFAULTS") or os.environ.get("PEER_DEFLATE"))
TLS = None
if folder := os.environ.get("PEER_TLS"):
    TLS = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    TLS.load_cert_chain(f"{folder}/cert.pem", f"{folder}/key.pem")


async def handle(request):
    ws = web.WebSocketResponse(compress=DEFAULTS)
    await ws.prepare(request)
    fan = request.path.startswith("/fan")
    if fan:
        everybody.add(ws)
    try:
        async for message in ws:
            if message.type is WSMsgType.BINARY:
                await ws.send_bytes(message.data)
                continue
            if message.type is not WSMsgType.TEXT:
                continue
            if fan:
                for other in everybody:
                    await other.send_str(message.data)
            else:
                await ws.send_str(message.data)
    finally:
        everybody.discard(ws)
    return ws


async def hello(request):
    return web.Response(text="hello")


async def main():
    app = web.Application()
    app.router.add_get("/hello", hello)
    app.router.add_get("/{tail:.*}", handle)
    runner = web.AppRunner(app, access_log=None)
    await runner.setup()
    await web.TCPSite(runner, "127.0.0.1", int(sys.argv[1]), backlog=4096, ssl_context=TLS).start()
    print("ready", flush=True)
    await asyncio.Future()


uvloop.run(main())
