"""Clients that people use, against a hibernatable echo: each opens, echoes text, binary, 1 MiB, unicode, closes cleanly."""

import asyncio
import os
import shutil
import subprocess
from pathlib import Path

import aiohttp
import pytest
import websocket
import websockets
from websockets.sync.client import connect

from roost.testing import running, wait_for

HERE = Path(__file__).parent
NPM = Path(os.environ.get("ROOST_NPM", Path.home() / ".cache/roost-npm")) / "node_modules"
MESSAGES = ["text", b"\x00\xff\x80", "x" * (1 << 20), "\U0001f600 é \0", "", b""]


@pytest.fixture(scope="module")
def node():
    with running(HERE / "echo") as node:
        yield node
        wait_for(lambda: node.counter("sockets") == 0, "every close was clean")


@pytest.fixture
def url(node):
    return f"ws://127.0.0.1:{node.port}/"


def test_websockets(url):
    with connect(url, max_size=None) as ws:
        for message in MESSAGES:
            ws.send(message)
            assert ws.recv(10) == message
        ws.close(4000, "done")
        assert (ws.close_code, ws.close_reason) == (4000, "done")


def test_websockets_asyncio(url):
    async def talk():
        async with websockets.connect(url, max_size=None, compression=None) as ws:
            for message in MESSAGES:
                await ws.send(message)
                assert await ws.recv() == message
            pong = await ws.ping()
            assert await asyncio.wait_for(pong, 5) >= 0
            await ws.close(4000, "done")
            assert ws.close_code == 4000

    asyncio.run(talk())


@pytest.mark.parametrize("compress", [0, 15])
def test_aiohttp(url, compress):
    async def talk():
        async with aiohttp.ClientSession() as session, session.ws_connect(url, max_msg_size=0, compress=compress) as ws:
            assert bool(ws.compress) is bool(compress)
            for message in MESSAGES:
                await (ws.send_str(message) if isinstance(message, str) else ws.send_bytes(message))
                assert (await ws.receive(10)).data == message
            await ws.close(code=4000, message=b"done")
            assert ws.close_code == 4000

    asyncio.run(talk())


def test_websocket_client(url):
    ws = websocket.create_connection(url, timeout=10)
    for message in MESSAGES:
        if isinstance(message, str):
            ws.send(message)
        else:
            ws.send_binary(message)
        assert ws.recv() == message
    ws.send_close(4000, b"done")
    opcode, data = ws.recv_data(control_frame=True)
    assert (opcode, data) == (8, (4000).to_bytes(2, "big") + b"done")
    ws.shutdown()


@pytest.mark.skipif(
    (not (NPM / "ws").exists() or shutil.which("node") is None) and not os.environ.get("CI"),
    reason="tests/conformance/install_npm.sh",
)
@pytest.mark.parametrize("name", ["ws", "ws without compression", "partysocket"])
def test_node(url, name):
    env = {**os.environ, "NODE_PATH": str(NPM)}
    done = subprocess.run(
        ["node", HERE / "node_clients.js", name, url], env=env, capture_output=True, text=True, timeout=60
    )
    lines = [line for line in done.stdout.splitlines() if not line.startswith("error")]
    assert lines == ["echo 1", "echo 2", "echo 3", "echo 4", "close 4000 true"], done.stdout + done.stderr


@pytest.mark.skipif(shutil.which("curl") is None, reason="no curl")
def test_curl(node, url):
    """curl speaks HTTP to it, and gets a 101 for an upgrade that it asks for by hand."""
    http = url.replace("ws:", "http:")
    plain = subprocess.run(["curl", "-s", http], capture_output=True, text=True, timeout=30)
    assert plain.stdout == "an echo for WebSockets"
    upgrade = ["-H", "Upgrade: websocket", "-H", "Connection: Upgrade", "-H", "Sec-WebSocket-Version: 13",
               "-H", "Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ=="]  # fmt: skip
    head = subprocess.run(
        ["curl", "-s", "-i", "-N", "--http1.1", "--max-time", "1", *upgrade, http],
        capture_output=True,
        text=True,
        timeout=30,
    )
    assert head.stdout.startswith("HTTP/1.1 101 Switching Protocols")
    assert "s3pPLMBiTxaQ9kYGzzhZRbK+xOo=" in head.stdout


@pytest.mark.browser
def test_chromium(node, url):
    if shutil.which("chromium") is None or shutil.which("chromedriver") is None:
        if os.environ.get("CI"):
            pytest.fail("no chromium under CI")
        pytest.skip("no chromium")
    from selenium import webdriver
    from selenium.webdriver.chrome.service import Service

    options = webdriver.ChromeOptions()
    for argument in ("--headless=new", "--no-sandbox", "--disable-dev-shm-usage", "--disable-gpu"):
        options.add_argument(argument)
    driver = webdriver.Chrome(options, Service(shutil.which("chromedriver")))
    try:
        driver.set_script_timeout(30)
        driver.get(url.replace("ws:", "http:"))
        seen = driver.execute_async_script(
            """
            const done = arguments[arguments.length - 1], seen = [];
            const socket = new WebSocket(arguments[0]);
            socket.binaryType = "arraybuffer";
            const sent = ["text", new Uint8Array([0, 255, 128]), "x".repeat(1 << 20), "\\u{1f600} é \\0"];
            const next = () => seen.length < sent.length ? socket.send(sent[seen.length]) : socket.close(4000, "done");
            socket.onopen = next;
            socket.onmessage = (event) => {
              const want = sent[seen.length];
              const got = typeof want === "string" ? event.data : String(new Uint8Array(event.data));
              seen.push(got === String(want));
              next();
            };
            socket.onclose = (event) => done([...seen, event.code, event.reason, event.wasClean, socket.extensions]);
            """,
            url,
        )
    finally:
        driver.quit()
    assert seen[:7] == [True, True, True, True, 4000, "done", True]
    assert "permessage-deflate" in seen[7]
