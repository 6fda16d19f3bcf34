"""picows on uvloop: /echo echoes, /fan sends to everybody by the plain loop."""

import sys

import uvloop
from picows import WSListener, WSMsgType, ws_create_server

everybody = set()


class Echo(WSListener):
    def on_ws_frame(self, transport, frame):
        if frame.msg_type in (WSMsgType.TEXT, WSMsgType.BINARY):
            transport.send(frame.msg_type, frame.get_payload_as_bytes())
        elif frame.msg_type == WSMsgType.CLOSE:
            transport.send_close(frame.get_close_code(), frame.get_close_message())
            transport.disconnect()


class Fan(Echo):
    def on_ws_connected(self, transport):
        everybody.add(transport)

    def on_ws_disconnected(self, transport):
        everybody.discard(transport)

    def on_ws_frame(self, transport, frame):
        if frame.msg_type != WSMsgType.TEXT:
            super().on_ws_frame(transport, frame)
            return
        payload = frame.get_payload_as_bytes()
        for other in everybody:
            other.send(WSMsgType.TEXT, payload)


async def main():
    def listener(request):
        return Fan() if request.path.startswith(b"/fan") else Echo()

    server = await ws_create_server(listener, "127.0.0.1", int(sys.argv[1]), backlog=4096)
    print("ready", flush=True)
    await server.serve_forever()


uvloop.run(main())
