"""Origins, TLS and reverse proxies: who may connect, and how."""

import json
import os
import shutil
import socket
import ssl
import subprocess
import time

import pytest

from conftest import make_certificate, write_app
from roost.testing import HandshakeRefused, open_socket, running, wait_for

SOURCE = """
from js import WebSocketPair
from workers import DurableObject, Response, WorkerEntrypoint

class Room(DurableObject):
    async def fetch(self, request):
        client, server = WebSocketPair.new()
        self.ctx.acceptWebSocket(server)
        return Response(None, status=101, web_socket=client)

    async def webSocketMessage(self, ws, message):
        if message == "flood":
            for number in range(4000):
                ws.send(f"{number} " + "x" * 1000)
        else:
            ws.send(message)

class Default(WorkerEntrypoint):
    async def fetch(self, request):
        if request.headers.get("Upgrade"):
            return await self.env.ROOM.getByName("x").fetch(request)
        body = len(await request.bytes())
        return Response.json([request.url, request.headers.get("CF-Connecting-IP"), body])
"""


@pytest.fixture
def certificate(tmp_path):
    return make_certificate(tmp_path)


def trusting(cert):
    return ssl.create_default_context(cafile=cert)


def served(tmp_path, settings="", *arguments):
    return running(write_app(tmp_path / "app", SOURCE, "Room", settings=settings), *arguments)


def test_origins(tmp_path):
    with served(tmp_path) as node:
        with node.connect(headers={"Origin": f"http://127.0.0.1:{node.port}"}) as ws:
            ws.send("mine")
            assert ws.recv() == "mine"
        for evil in ("http://evil.example", "null", f"http://localhost:{node.port}"):
            with pytest.raises(HandshakeRefused, match=r"network\.allowed_origins") as caught:
                node.connect(headers={"Origin": evil, "Cookie": "session=1"})
            assert caught.value.status == 403
        assert node.get(headers={"Origin": "http://evil.example"})[0] == 200, "only handshakes are checked"
        assert node.counter("refused_origin") == 3


def test_allowed_origins(tmp_path):
    settings = '[network]\nallowed_origins = ["https://rooms.example"]\n'
    with served(tmp_path, settings) as node:
        node.connect(headers={"Origin": "https://rooms.example"}).abort()
        with pytest.raises(HandshakeRefused):
            node.connect(headers={"Origin": f"http://127.0.0.1:{node.port}"})


def test_forwarded_only_from_trusted_proxies(tmp_path):
    forwarded = {"X-Forwarded-For": "198.51.100.7", "X-Forwarded-Proto": "https"}
    with served(tmp_path) as node:
        assert b'"127.0.0.1"' in node.get(headers=forwarded)[2]
    with served(tmp_path, '[network]\ntrusted_proxies = ["127.0.0.0/8"]\n') as node:
        body = node.get(headers=forwarded)[2]
        assert b'"198.51.100.7"' in body
        assert b'"https://127.0.0.1' in body


@pytest.mark.parametrize("mode", [(), ("--inline",)], ids=["split", "inline"])
def test_tls(tmp_path, certificate, mode):
    cert, key = certificate
    with served(tmp_path, "", "--tls-cert", str(cert), "--tls-key", str(key), *mode) as node:
        node.tls = trusting(cert)
        assert node.get()[2].startswith(b'["https://127.0.0.1')
        with node.connect() as ws:
            for message in ("text", b"\xff\x00", "x" * 500_000):
                ws.send(message)
                assert ws.recv() == message
            ws.ping(b"are you there")
            assert ws.event(5).payload == b"are you there"
            ws.close(4001, "done")
            assert ws.recv_close() == (4001, "done")
            assert ws.at_end(), "with close_notify: else ssl raises"
        with open_socket(node.port, tls=node.tls) as sock:  # in the smallest pieces, and two requests in one record
            request = b"GET /a HTTP/1.1\r\nHost: x\r\n\r\n"
            for byte in request[:-1]:
                sock.send(bytes((byte,)))
            sock.send(request[-1:] + request)
            data = b""
            while data.count(b"https://x/a") < 2:
                data += sock.recv(65536)
        with open_socket(node.port) as plain:
            plain.sendall(b"GET / HTTP/1.1\r\nHost: x\r\n\r\n")
            plain.settimeout(5)
            assert not plain.recv(65536).startswith(b"HTTP/1.1 2")
        wait_for(lambda: node.counter("closed_tls") == 1)
        wait_for(lambda: node.counter("connections") == 0)


def test_a_tls_handshake_has_the_deadline_of_the_head(tmp_path, certificate):
    cert, key = certificate
    settings = f'[network]\ntls_cert = "{cert}"\ntls_key = "{key}"\n[timeouts]\nhead_s = 1.0\n'
    with served(tmp_path, settings) as node, open_socket(node.port) as silent:
        silent.settimeout(5)
        assert silent.recv(1) == b""
        wait_for(lambda: node.counter("closed_head_timeout") == 1)


def test_a_slow_reader_over_tls(tmp_path, certificate):
    cert, key = certificate
    settings = "[limits]\nmax_outbound_bytes = 200000\n"
    with served(tmp_path, settings, "--tls-cert", str(cert), "--tls-key", str(key)) as node:
        node.tls = trusting(cert)
        with node.connect() as ws:  # who reads gets everything, in order, however slowly the kernel takes it
            ws.send("flood")
            numbers = []
            try:
                while len(numbers) < 4000:
                    numbers.append(int(ws.recv(5).split()[0]))
            except ConnectionError as closed:
                assert "1013" in str(closed)
            assert numbers == list(range(len(numbers)))
        with node.connect() as ws:
            for _ in range(8):
                ws.send("flood")
            wait_for(lambda: node.counter("closed_slow_reader") >= 1)


def test_the_certificate_is_read_again(tmp_path, certificate):
    cert, key = certificate
    with served(tmp_path, "", "--tls-cert", str(cert), "--tls-key", str(key)) as node:
        node.tls = trusting(cert)
        with node.connect() as ws:
            first = ws.sock.getpeercert(binary_form=True)
            (tmp_path / "new").mkdir()
            for new, old in zip(make_certificate(tmp_path / "new"), certificate, strict=True):
                os.replace(new, old)

            def seen():
                context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
                context.check_hostname = False
                context.verify_mode = ssl.CERT_NONE
                with open_socket(node.port, tls=context) as sock:
                    return sock.getpeercert(binary_form=True)

            wait_for(lambda: seen() != first)
            ws.send("still here")
            assert ws.recv() == "still here"
            shutil.copy(cert, key)  # no key at all
            os.utime(key)

            def complained():
                seen()
                return node.logged("The one before goes on")

            wait_for(complained)
            ws.send("and here")
            assert ws.recv() == "and here"


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (("--tls-cert", "{cert}"), "go together"),
        (("--tls-cert", "/nowhere.pem", "--tls-key", "{key}"), "No such file"),
        (("--tls-cert", "{key}", "--tls-key", "{cert}"), "cannot be used"),
    ],
)
def test_wrong_certificates_are_usage_errors(tmp_path, certificate, arguments, says):
    cert, key = certificate
    with (
        pytest.raises(RuntimeError, match=says) as caught,
        served(tmp_path, "", *(argument.format(cert=cert, key=key) for argument in arguments)),
    ):
        pass
    assert "(2)" in str(caught.value)


# behind the proxies of docs/guides/proxies.md


def free_port():
    with socket.socket() as sock:
        sock.bind(("127.0.0.1", 0))
        return sock.getsockname()[1]


def nginx(tmp_path, port, upstream):
    config = tmp_path / "nginx.conf"
    config.write_text(f"""
daemon off; pid {tmp_path}/nginx.pid; error_log {tmp_path}/error.log; worker_processes 1;
events {{}}
http {{
    access_log off; client_body_temp_path {tmp_path}/body; proxy_temp_path {tmp_path}/proxy;
    fastcgi_temp_path {tmp_path}/f; uwsgi_temp_path {tmp_path}/u; scgi_temp_path {tmp_path}/s;
    map $http_upgrade $connection_upgrade {{ default upgrade; "" close; }}
    server {{
        listen 127.0.0.1:{port};
        location / {{
            proxy_pass http://127.0.0.1:{upstream};
            proxy_http_version 1.1;
            proxy_set_header Upgrade $http_upgrade;
            proxy_set_header Connection $connection_upgrade;
            proxy_set_header Host $http_host;
            proxy_set_header X-Forwarded-For $proxy_add_x_forwarded_for;
            proxy_set_header X-Forwarded-Proto $scheme;
            proxy_read_timeout 1d;
        }}
    }}
}}
""")
    return ["nginx", "-c", str(config), "-e", str(tmp_path / "error.log")]


def caddy(tmp_path, port, upstream):
    config = tmp_path / "Caddyfile"
    config.write_text(f"""
{{
    admin off
    auto_https off
}}
http://127.0.0.1:{port} {{
    reverse_proxy 127.0.0.1:{upstream}
}}
""")
    return ["caddy", "run", "--adapter", "caddyfile", "--config", str(config)]


@pytest.mark.parametrize("proxy", [nginx, caddy])
def test_behind(tmp_path, proxy):
    if shutil.which(proxy.__name__) is None:
        if os.environ.get("CI"):
            pytest.fail(f"CI must have {proxy.__name__}: see the Makefile")
        pytest.skip(f"no {proxy.__name__} on this machine")
    with served(tmp_path, '[network]\ntrusted_proxies = ["127.0.0.1"]\n') as node:
        port = free_port()
        with subprocess.Popen(
            proxy(tmp_path, port, node.port),
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            env={**os.environ, "HOME": str(tmp_path)},
        ) as process:
            try:
                wait_for(lambda: listens(port))
                direct, node.port = node.port, port
                status, _, body = node.get("/hello?x=1")
                assert status == 200
                assert json.loads(body)[:2] == [f"http://127.0.0.1:{port}/hello?x=1", "127.0.0.1"]
                with node.connect(headers={"Origin": f"http://127.0.0.1:{port}"}) as ws:
                    for message in ("through", b"\x00\xff", "x" * 300_000):
                        ws.send(message)
                        assert ws.recv() == message
                    ws.close(4005, "bye")
                    assert ws.recv_close() == (4005, "bye")
                with pytest.raises(HandshakeRefused) as caught:
                    node.connect(headers={"Origin": "http://evil.example"})
                assert caught.value.status == 403
                # Smuggling: the proxy and we must see the same requests, so one answer and no second request.
                node.port = direct
                before = node.counter("requests")
                with open_socket(port) as sock:
                    sock.sendall(
                        b"POST / HTTP/1.1\r\nHost: x\r\nContent-Length: 4\r\nTransfer-Encoding: chunked\r\n\r\n"
                        b"0\r\n\r\nGET /smuggled HTTP/1.1\r\nHost: x\r\n\r\n"
                    )
                    sock.settimeout(2)
                    try:
                        while sock.recv(65536):
                            pass
                    except TimeoutError:
                        pass
                assert node.counter("requests") - before <= 2
                assert not node.logged("/smuggled 500")
            finally:
                process.terminate()


def listens(port):
    try:
        open_socket(port).close()
    except OSError:
        time.sleep(0.02)
        return False
    return True
