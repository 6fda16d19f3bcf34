"""`--admin`: nothing without the token, by no other name, and no change on GET."""

import json
import os
import re
import stat
from pathlib import Path

import pytest

from conftest import write_app
from roost.testing import http_get, open_socket, running, wait_for

SOURCE = """
from workers import Response, WorkerEntrypoint

class Default(WorkerEntrypoint):
    async def fetch(self, request):
        return Response("app")
"""


@pytest.fixture(scope="module")
def node(tmp_path_factory):
    folder = write_app(tmp_path_factory.mktemp("admin") / "app", SOURCE)
    with running(folder, "--admin", "127.0.0.1:0") as node:
        line = wait_for(lambda: next((line for line in node.log if "admin on" in line), None))
        node.admin = int(re.search(r":(\d+), its token", line)[1])
        node.token = Path(node.data, "admin-token").read_text().strip()
        yield node


def ask(node, path="/status", method="GET", token=None, **headers):
    if token is not None:
        headers["Authorization"] = f"Bearer {token}"
    status, fields, body = http_get(node.admin, path, headers, method)
    return status, fields, json.loads(body)


def test_status(node):
    status, fields, answer = ask(node, token=node.token)
    assert status == 200
    assert fields["cache-control"] == "no-store"
    assert answer["gateways"][0]["counters"]["connections"] == 0
    assert "node" in answer["pids"]
    (version,) = wait_for(lambda: ask(node, "/versions", token=node.token)[2]["versions"])
    assert version["number"] == 1
    assert version["active"]


@pytest.mark.parametrize("method", ["GET", "POST", "PUT", "DELETE", "PATCH", "OPTIONS"])
@pytest.mark.parametrize("path", ["/", "/status", "/versions", "/objects/release", "/nowhere", "/status?token=x"])
def test_nothing_without_the_token(node, method, path):
    for token in (None, "", "wrong", node.token[:-1], node.token + "x"):
        status, fields, answer = ask(node, path, method, token)
        assert status == 401
        assert fields["www-authenticate"] == "Bearer"
        assert "gateways" not in answer
    assert ask(node, f"{path}?token={node.token}", method)[0] == 401, "not in the URL"


@pytest.mark.parametrize(
    "headers",
    [
        {"Host": "evil.example"},
        {"Host": "127.0.0.1"},
        {"Origin": "http://evil.example"},
        {"Origin": "null"},
    ],
)
def test_by_no_other_name(node, headers):
    lines = {"Host": f"127.0.0.1:{node.admin}", "Authorization": f"Bearer {node.token}", **headers}
    with open_socket(node.admin) as sock:
        sock.sendall(("GET /status HTTP/1.1\r\n" + "".join(f"{k}: {v}\r\n" for k, v in lines.items()) + "\r\n").encode())
        assert sock.recv(65536).startswith(b"HTTP/1.1 403 ")


def test_methods_and_paths(node):
    status, fields, _ = ask(node, "/objects/release", token=node.token)
    assert (status, fields["allow"]) == (405, "POST")
    assert ask(node, "/status", "POST", node.token)[0] == 405
    assert ask(node, "/nowhere", token=node.token)[0] == 404
    assert ask(node, "/objects/release", "POST", node.token)[2] == {"released": 0}


def test_a_bad_body(node):
    request = f"POST /objects/release HTTP/1.1\r\nHost: 127.0.0.1:{node.admin}\r\nAuthorization: Bearer {node.token}\r\n"
    for body, expected in ((b"[1]", b" 400 "), (b"{", b" 400 "), (b'{"object": "nobody"}', b" 409 ")):
        with open_socket(node.admin) as sock:
            sock.sendall(f"{request}Content-Length: {len(body)}\r\n\r\n".encode() + body)
            assert expected in sock.recv(65536)
    with open_socket(node.admin) as sock:
        sock.sendall(f"{request}Content-Length: 1000000\r\n\r\n".encode() + b"x" * 100_000)
        assert b" 413 " in sock.recv(65536)


def test_the_token_is_its_owners_and_stays(node, tmp_path):
    mode = os.stat(os.path.join(node.data, "admin-token")).st_mode
    assert stat.S_IMODE(mode) == 0o600
    assert not node.logged(node.token)


def test_a_wrong_address(tmp_path):
    app = write_app(tmp_path / "app", SOURCE)
    with pytest.raises(RuntimeError, match="IP:PORT"), running(app, "--admin", "here"):
        pass
