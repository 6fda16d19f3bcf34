"""aiohttp on uvloop: /echo echoes, /fan sends to everybody by the plain loop, /hello is plain HTTP."""

import asyncio
import os
import sys

import uvloop
from aiohttp import WSMsgType, web

everybody = set()
DEFAULTS = bool(os.environ.get("PEER_DEFAULTS"))


async def handle(request):
    ws = web.WebSocketResponse(compress=DEFAULTS)
    await ws.prepare(request)
    fan = request.path.startswith("/fan")
    if fan:
        everybody.add(ws)
    try:
        async for message in ws:
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
    await web.TCPSite(runner, "127.0.0.1", int(sys.argv[1]), backlog=4096).start()
    print("ready", flush=True)
    await asyncio.Future()


uvloop.run(main())
