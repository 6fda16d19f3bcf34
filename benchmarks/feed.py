"""Upstream feeds for the ticker: WebSockets on one port (any path), each sending its share of the ticks on "go".

    python feed.py PORT FEEDS TICKS_PER_S SYMBOLS SECONDS

Prints `ready`, and after the last tick one JSON line: how many round lots were sent of each symbol.
"""

import asyncio
import json
import sys
import time

from websockets.asyncio.server import serve

PORT, FEEDS, RATE, SYMBOLS, SECONDS = (int(argument) for argument in sys.argv[1:])


async def main():
    lots = dict.fromkeys(range(SYMBOLS), 0)
    finished = asyncio.Semaphore(0)
    feeds = 0

    async def handle(ws):
        nonlocal feeds
        feeds += 1
        seed = feeds
        await ws.recv()
        began = time.monotonic()
        for number in range(RATE * SECONDS // FEEDS):
            due = began + number * FEEDS / RATE
            if (left := due - time.monotonic()) > 0:
                await asyncio.sleep(left)
            seed = (seed * 1103515245 + 12345) & 0x7FFFFFFF
            symbol, size = (seed >> 8) % SYMBOLS, 1 + (seed >> 4) % 100
            lots[symbol] += size >= 10
            tick = {"symbol": f"S{symbol}", "size": size, "price": 100 + (seed >> 12) % 50, "at": time.monotonic_ns()}
            await ws.send(json.dumps(tick))
        finished.release()
        await ws.wait_closed()

    async with serve(handle, "127.0.0.1", PORT, compression=None, ping_interval=None):
        print("ready", flush=True)
        for _ in range(FEEDS):
            await finished.acquire()
        print(json.dumps({f"S{symbol}": count for symbol, count in lots.items()}), flush=True)
        await asyncio.sleep(3600)


asyncio.run(main())
