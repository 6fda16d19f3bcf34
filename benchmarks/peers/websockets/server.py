"""`websockets` on uvloop: /echo echoes, /fan broadcasts. PEER_DEFLATE compresses, PEER_TLS is a folder with cert.pem and
key.pem."""

import asyncio
import os
import ssl
import sys

import uvloop
from websockets.asyncio.server import broadcast, serve

everybody = set()
OPTIONS = {} if os.environ.get("PEER_DEFAULTS") else {"compression": None, "ping_interval": None}
if os.environ.get("PEER_DEFLATE"):
    OPTIONS["compression"] = "deflate"
if folder := os.environ.get("PEER_TLS"):
    OPTIONS["ssl"] = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    OPTIONS["ssl"].load_cert_chain(f"{folder}/cert.pem", f"{folder}/key.pem")


async def handle(ws):
    fan = ws.request.path.startswith("/fan")
    if fan:
        everybody.add(ws)
    try:
        async for message in ws:
            if fan:
                broadcast(everybody, message)
            else:
                await ws.send(message)
    finally:
        everybody.discard(ws)


async def main():
    async with serve(handle, "127.0.0.1", int(sys.argv[1]), backlog=4096, **OPTIONS):
        print("ready", flush=True)
        await asyncio.Future()


uvloop.run(main())
