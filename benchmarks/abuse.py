"""What misbehaving clients do to Roost and to its peers: the table of behaviour 4.1, measured anew by one script.

    python benchmarks/abuse.py [--only ATTACK;…] [--peers NAME,…] [--json FILE]

Each attack meets a fresh server with its default settings. Printed are what the server did, and by how much the memory of
all its processes grew at most (PSS). `tests/faults/test_abuse.py` holds Roost to its bounds; here they are beside others'.
"""

import argparse
import json
import os
import socket
import threading
import time
import zlib

from servers import SERVERS, Server

from roost.protocol.websocket import mask_frame
from roost.testing import HandshakeRefused, RawWebSocket, open_socket

MIB = 1024 * 1024
PATIENCE_S = 25.0
PATH = "/echo/abuse"


def pss_bytes(pids):
    total = 0
    for pid in pids:
        try:
            with open(f"/proc/{pid}/smaps_rollup") as file:
                total += next(int(line.split()[1]) * 1024 for line in file if line.startswith("Pss:"))
        except (OSError, StopIteration):
            pass
    return total


class Peak(threading.Thread):
    """The most that a server has grown by, sampled until it is stopped."""

    def __init__(self, server):
        super().__init__(daemon=True)
        self._pids = server.pids()
        self._before = pss_bytes(self._pids)
        self._over = threading.Event()
        self.bytes = 0
        self.start()

    def run(self):
        while not self._over.wait(0.1):
            self.bytes = max(self.bytes, pss_bytes(self._pids) - self._before)

    def stop(self):
        self._over.set()
        self.join()
        return max(self.bytes, pss_bytes(self._pids) - self._before)


def push(ws, data, total, timeout_s=4.0):
    """Send until `total` bytes, or until the server stops taking or cuts: how much it took, and which."""
    sock = getattr(ws, "sock", ws)
    sock.settimeout(timeout_s)
    sent = 0
    try:
        while sent < total:
            sent += sock.send(data)
    except TimeoutError:
        return f"stops taking at {sent / MIB:.1f} MB"
    except OSError:
        return f"cut at {sent / MIB:.1f} MB"
    return f"takes all {sent / MIB:.0f} MB"


def how_it_ends(ws, timeout_s=PATIENCE_S):
    """What the server does next: a close code, an end, or nothing."""
    start = time.monotonic()
    try:
        code = ws.recv_close(timeout_s)[0]
    except TimeoutError:
        return f"nothing in {timeout_s:g} s"
    except (OSError, AssertionError):
        return "reset"
    return f"{'end' if code == 1006 else code} after {time.monotonic() - start:.1f} s"


def first_line(sock, timeout_s=5.0):
    sock.settimeout(timeout_s)
    try:
        data = sock.recv(65536)
    except TimeoutError:
        return "no answer"
    except OSError:
        return "reset"
    return " ".join(data.split(b"\r\n")[0].decode("latin-1").split()[1:2]) or "cut, no answer"


def idle(server):
    before = pss_bytes(server.pids())
    sockets = [RawWebSocket(server.port, PATH) for _ in range(4000)]
    time.sleep(1.0)
    each = (pss_bytes(server.pids()) - before) / 4000
    for ws in sockets:
        ws.abort()
    return f"{each / 1024:.1f} KiB each"


def half_a_handshake(server):
    with open_socket(server.port) as sock:
        sock.sendall(b"GET / HTTP/1.1\r\nHost: a\r\n")
        sock.settimeout(PATIENCE_S)
        start = time.monotonic()
        try:
            while sock.recv(65536):
                pass
        except TimeoutError:
            return f"not closed in {PATIENCE_S:g} s"
        except OSError:
            pass
        return f"closed after {time.monotonic() - start:.0f} s"


def endless_headers(server):
    with open_socket(server.port) as sock:
        sock.sendall(b"GET / HTTP/1.1\r\nHost: a\r\n")
        taken = push(sock, b"X-Junk: " + b"y" * 1000 + b"\r\n", 32 * MIB)
        return f"{taken}, {first_line(sock, 1.0)}"


def smuggling(server):
    with open_socket(server.port) as sock:
        sock.sendall(
            b"POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 6\r\nTransfer-Encoding: chunked\r\n\r\n"
            b"0\r\n\r\nGET /smuggled HTTP/1.1\r\nHost: a\r\n\r\n"
        )
        return first_line(sock)


def protocol_header(value):
    def attack(server):
        start = time.monotonic()
        try:
            RawWebSocket(server.port, PATH, headers={"Sec-WebSocket-Protocol": value}).abort()
            what = "101"
        except HandshakeRefused as refused:
            what = str(refused.status or "cut")
        except OSError:
            what = "reset"
        return f"{what} in {time.monotonic() - start:.1f} s"

    return attack


def with_socket(attack):
    def run(server):
        ws = RawWebSocket(server.port, PATH)
        try:
            return attack(ws)
        finally:
            ws.abort()

    return run


def top_bit(ws):
    ws.send_bytes(b"\x82\xff\x80" + bytes(11))
    return how_it_ends(ws, 5.0)


def fragments(payload):
    def attack(ws):
        ws.send_bytes(mask_frame(bytes((0x01, len(payload))) + payload, b"abcd"))
        rest = mask_frame(bytes((0x00, len(payload))) + payload, b"abcd")
        taken = push(ws, rest * 1000, 400_000 * len(rest))
        return f"{taken}, {how_it_ends(ws, 2.0)}"

    return attack


def pings(ws):
    return push(ws, mask_frame(b"\x89\x7d" + b"p" * 125, b"abcd") * 1000, 126 * MIB)


def unread_echo(ws):
    return push(ws, mask_frame(b"\x81\x7e\xff\xff" + b"z" * 65535, b"abcd"), 196 * MIB)


def unmasked(ws):
    ws.send_bytes(b"\x81\x02hi")
    try:
        message = ws.recv(3.0)
    except (OSError, AssertionError) as error:
        return str(error)[:20] or "nothing"
    return f"taken: {message!r}"


def after_close(ws):
    ws.close(1000)
    return push(ws, mask_frame(b"\x81\x7e\xff\xff" + b"z" * 65535, b"abcd"), 52 * MIB)


def silent_close(ws):
    ws.close(1000)
    start = time.monotonic()
    return f"ends after {time.monotonic() - start:.1f} s" if ws.at_end(PATIENCE_S) else "stays"


def bomb(server):
    deflate = {"Sec-WebSocket-Extensions": "permessage-deflate"}
    ws = RawWebSocket(server.port, PATH, headers=deflate)
    try:
        if "permessage-deflate" not in ws.headers.get("sec-websocket-extensions", ""):
            return "not negotiated"
        packer = zlib.compressobj(wbits=-15)
        packed = b"".join(packer.compress(bytes(MIB)) for _ in range(200)) + packer.flush(zlib.Z_SYNC_FLUSH)
        packed = packed[:-4]
        ws.send_bytes(mask_frame(b"\xc1\x7f" + len(packed).to_bytes(8, "big") + packed, b"abcd"))
        return how_it_ends(ws, 10.0)
    finally:
        ws.abort()


ATTACKS = {
    "4,000 idle sockets": idle,
    "half a handshake": half_a_handshake,
    "endless headers": endless_headers,
    "Content-Length + Transfer-Encoding": smuggling,
    "protocol header of 30 kB blanks": protocol_header(" " * 30_000),
    "non-ASCII subprotocol": protocol_header("protöcol"),
    "length with the top bit": with_socket(top_bit),
    "400,000 empty fragments": with_socket(fragments(b"")),
    "400,000 one-byte fragments": with_socket(fragments(b"x")),
    "126 MB of pings, pongs unread": with_socket(pings),
    "196 MB echoed, never read": with_socket(unread_echo),
    "200 MiB in a 200 kB frame": bomb,
    "unmasked frame": with_socket(unmasked),
    "52 MB after a close": with_socket(after_close),
    "a close and then silence": with_socket(silent_close),
}


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--only", default=";".join(ATTACKS), help="separated by ;")
    parser.add_argument("--peers", default="roost split,websockets,aiohttp,workerd")
    parser.add_argument("--json")
    options = parser.parse_args()
    peers = options.peers.split(",")
    os.environ["PEER_DEFAULTS"] = "1"  # the speed benchmarks switch compression off; here everybody has what users get
    found = {}
    for attack in options.only.split(";"):
        found[attack] = {}
        for peer in peers:
            command = SERVERS[peer]()
            if command is None:
                continue
            server = Server(command)
            try:
                with RawWebSocket(server.port, PATH) as ws:  # what a server loads at its first socket is nobody's fault
                    ws.send("warm")
                    ws.recv()
                time.sleep(0.5)
                peak = Peak(server)
                what = ATTACKS[attack](server)
                grown = peak.stop()
                alive = server.process.poll() is None
                found[attack][peer] = f"{what}; +{grown / MIB:.0f} MiB" + ("" if alive else "; THE SERVER DIED")
            except (OSError, RuntimeError, HandshakeRefused) as error:
                found[attack][peer] = f"failed: {error}"
            finally:
                server.stop()
        print(f"{attack}: " + " | ".join(f"{peer}: {what}" for peer, what in found[attack].items()), flush=True)
    print(f"\n| attack | {' | '.join(peers)} |\n|---|{'---|' * len(peers)}")
    for attack, row in found.items():
        print(f"| {attack} | {' | '.join(row.get(peer, 'not here') for peer in peers)} |")
    if options.json:
        with open(options.json, "w") as file:
            json.dump({"cpu_count": os.cpu_count(), "found": found}, file, indent=2)
    socket.setdefaulttimeout(None)


if __name__ == "__main__":
    main()
