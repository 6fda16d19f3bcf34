"""Which code a start runs, and what a deployment copies: versions, links, secrets, space."""

import json
import os
import shutil
import stat
import subprocess
import sys
from pathlib import Path

import pytest

from conftest import write_app
from roost.node.tree import copy, digest, read_tree
from roost.node.versions import Source, Versions
from roost.testing import running, wait_for

SOURCE = """
import os
from workers import DurableObject, Response, WorkerEntrypoint

VERSION = 0

class Default(WorkerEntrypoint):
    async def fetch(self, request):
        return Response(f"{VERSION} {getattr(self.env, 'SECRET', '-')}")
"""


def version(folder, number, *, mtime_only=False):
    if mtime_only:
        os.utime(folder / "worker.py")
        return folder
    return write_app(folder, SOURCE.replace("VERSION = 0", f"VERSION = {number}"))


def roost(*arguments, code=0):
    done = subprocess.run([sys.executable, "-m", "roost", *arguments], capture_output=True, text=True, timeout=120)
    assert done.returncode == code, done.stdout + done.stderr
    return done.stdout + done.stderr


def answer(node):
    return node.get("/")[2].decode().split()[0]


def known(node):
    """[(number, active)]"""
    lines = roost("versions", "--data", node.data).splitlines()
    return [(int(line.split()[0]), " active " in line) for line in lines]


@pytest.fixture
def data(tmp_path):
    return str(tmp_path / "data")


def test_a_rollback_outlives_a_restart(tmp_path, data):
    app = version(tmp_path / "app", 1)
    with running(app, data=data) as node:
        version(app, 2)
        assert "version 2 runs" in roost("deploy", str(app), "--data", data, "-m", "bad")
        assert answer(node) == "2"
        assert "version 1 runs" in roost("rollback", "--data", data)
        assert known(node) == [(1, True), (2, False)]
    version(app, 2, mtime_only=True)
    with running(app, data=data) as node:
        assert answer(node) == "1"
        (line,) = [line for line in node.log if "warning" in line]
        assert "version 1 runs" in line
        assert "is version 2, which was replaced or rolled back from" in line
        assert "roost deploy" in line
        os.kill(node.pid("host 0"), 9)
        assert answer(node) == "1"
    with running(app, "--from-folder", data=data) as node:
        assert answer(node) == "2"
        wait_for(lambda: known(node) == [(1, False), (2, False), (3, True)])


def test_edited_code_is_never_passed_over(tmp_path, data):
    app = version(tmp_path / "app", 1)
    with running(app, data=data) as node:
        wait_for(lambda: known(node) == [(1, True)])
    with running(app, data=data) as node:
        assert answer(node) == "1"
        assert not [line for line in node.log if "warning" in line]
    version(app, 5)
    with running(app, data=data) as node:
        assert answer(node) == "5"
        assert node.logged("is not version 1, which ran last: it is run as a new version")
        wait_for(lambda: known(node) == [(1, False), (2, True)])
        assert "version 1 runs" in roost("rollback", "--data", data)
        assert answer(node) == "1"
    # A new folder over old data, as a container's new image.
    with running(version(tmp_path / "image", 6), data=data) as node:
        assert answer(node) == "6"
    (tmp_path / "image/.env").write_text("SECRET=s3")  # an edit, too
    with running(tmp_path / "image", data=data) as node:
        assert node.get("/")[2] == b"6 s3"


def test_dev_always_runs_the_folder(tmp_path, data):
    app = version(tmp_path / "app", 1)
    with running(app, data=data):
        version(app, 2)
        roost("deploy", str(app), "--data", data)
        roost("rollback", "--data", data)
    with running(app, data=data, command="dev") as node:
        assert answer(node) == "2"


def test_a_host_that_dies_is_replaced_by_what_runs_not_by_an_edit(tmp_path, data):
    app = version(tmp_path / "app", 1)
    with running(app, "--hosts", "2", data=data) as node:
        wait_for(lambda: known(node) == [(1, True)])
        (app / "worker.py").write_text("def (:")
        for host in ("host 0", "host 1"):
            os.kill(node.pid(host), 9)
        for _ in range(20):
            assert answer(node) == "1"
        os.kill(node.pid("gateway 0"), 9)

        def answers():
            try:
                return answer(node) == "1"
            except OSError:
                return False

        wait_for(answers)


def test_worker_that_does_not_start_is_no_version(tmp_path, data):
    app = version(tmp_path / "app", 1)
    (app / "worker.py").write_text("raise ValueError('no')")
    with pytest.raises(RuntimeError, match="no"), running(app, data=data):
        pass
    assert not list(Path(data, "versions").glob("*"))


def test_a_damaged_list_warns_and_goes_on(tmp_path, data):
    app = version(tmp_path / "app", 1)
    with running(app, data=data) as node:
        wait_for(lambda: known(node) == [(1, True)])
    Path(data, "versions/versions.json").write_text("[{]")
    with running(app, data=data) as node:
        assert answer(node) == "1"
        assert node.logged("the versions before this are not known")
        wait_for(lambda: known(node) == [(2, True)])  # its number is not one that was used


def test_an_app_without_a_name_keeps_the_one_of_its_folder(tmp_path, data):
    """Objects' ids come of the app's name: a copy in `versions/2` is no app named "2"."""
    app = version(tmp_path / "myapp", 1)

    def unnamed(number):
        version(app, number)
        lines = (app / "wrangler.toml").read_text().splitlines()
        (app / "wrangler.toml").write_text("\n".join(line for line in lines if not line.startswith("name = ")))

    unnamed(1)
    versions = Versions(Path(data))
    with running(app, data=data) as node:
        wait_for(lambda: known(node) == [(1, True)])
        unnamed(2)
        assert "version 2 runs" in roost("deploy", str(app), "--data", data)
        assert "version 1 runs" in roost("rollback", "--data", data)
        assert [versions.app(each).name for each in versions.all()] == ["myapp", "myapp"]
    with running(app, data=data) as node:
        assert answer(node) == "1"


def test_starts_that_fail_leave_no_copies(tmp_path, data):
    import socket

    app = version(tmp_path / "app", 1)
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = str(taken.getsockname()[1])
        for _ in range(3):
            said = roost("serve", str(app), "--data", data, "--port", port, code=1)
            assert "cannot listen" in said
    assert not list(Path(data, "versions").glob("*"))
    Path(data, "versions/7").mkdir(parents=True)  # of one that was killed in the middle
    Path(data, "versions/7.secrets").mkdir()
    with running(app, data=data) as node:
        wait_for(lambda: known(node) == [(1, True)])
        assert sorted(path.name for path in Path(data, "versions").iterdir()) == ["1", "versions.json"]


def test_no_room_for_a_copy_stops_no_start_but_a_deployment(tmp_path, data):
    app = version(tmp_path / "app", 1)
    (app / "roost.toml").write_text(f"[storage]\nmin_free_bytes = {2**60}\n")
    with running(app, data=data) as node:
        assert answer(node) == "1"
        wait_for(lambda: node.logged("what runs cannot be rolled back to"))
        version(app, 2)
        assert "storage.min_free_bytes" in roost("deploy", str(app), "--data", data, code=1)
        assert answer(node) == "1"
        assert not list(Path(data, "versions").glob("*"))


def test_a_data_folder_in_the_app_does_not_copy_itself(tmp_path):
    app = version(tmp_path / "app", 1)
    with running(app, data=str(app / "state")) as node:
        (app / "state/large").write_bytes(b"x" * 1_000_000)
        for number in (2, 3):
            version(app, number)
            roost("deploy", str(app), "--data", node.data)
        assert answer(node) == "3"
        size = sum(path.stat().st_size for path in Path(node.data, "versions").rglob("*") if path.is_file())
        assert size < 100_000


def test_links_that_leave_the_app_are_dropped_and_secrets_kept_apart(tmp_path, data):
    outside = tmp_path / "outside"
    outside.mkdir()
    (outside / "x.txt").write_text("secret")
    app = version(tmp_path / "app", 1)
    (app / "public").mkdir()
    (app / "public/inner.txt").write_text("inner")
    (app / "public/good.txt").symlink_to(app / "public/inner.txt")
    (app / "public/bad.txt").symlink_to(outside / "x.txt")
    (app / "public/badfolder").symlink_to(outside)
    (app / "public/round").symlink_to("round")
    (app / "public/up").symlink_to("..")
    (app / ".dev.vars").write_text("SECRET=s1\n")
    (app / "public/.env").write_text("SECRET=never\n")
    with open(app / "wrangler.toml", "a") as file:
        file.write('\n[assets]\ndirectory = "public"\n')
    with running(app, data=data) as node:
        assert node.get("/")[2] == b"1 s1"
        version(app, 2)
        with open(app / "wrangler.toml", "a") as file:
            file.write('\n[assets]\ndirectory = "public"\n')
        said = roost("deploy", str(app), "--data", data)
        for name in ("public/bad.txt", "public/badfolder", "public/round"):
            assert f"{name} is left out" in said
        assert node.get("/inner.txt")[2] == b"inner"
        assert node.get("/bad.txt")[2] == b"2 s1"  # the worker answers
        assert node.get("/badfolder/x.txt")[2] == b"2 s1"
        assert node.get("/.env")[2] == b"2 s1"
        kept = Path(data, "versions/2")
        assert not list(kept.rglob(".env")) + list(kept.rglob(".dev.vars"))
        assert os.readlink(kept / "public/good.txt") == "inner.txt"
        secret = Path(data, "versions/2.secrets/.dev.vars")
        assert stat.S_IMODE(secret.stat().st_mode) == 0o600
        (app / ".dev.vars").write_text("SECRET=s2\n")
        roost("deploy", str(app), "--data", data)
        assert node.get("/")[2] == b"2 s2"
        roost("rollback", "--data", data)
        assert node.get("/")[2] == b"2 s1"


def test_a_copy_that_fails_leaves_nothing(tmp_path, monkeypatch):
    app = version(tmp_path / "app", 1)
    (tmp_path / "data").mkdir()
    versions = Versions(tmp_path / "data")

    def full(source, target):
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(shutil, "copyfile", full)
        with pytest.raises(OSError, match="No space"):
            versions.add(Source(app))
    assert not list((tmp_path / "data/versions").glob("*"))
    made, _ = versions.add(Source(app), message="first")
    versions.activate(made)
    assert versions.active.number == 1
    assert versions.active.message == "first"


def test_changed_while_it_is_copied(tmp_path):
    app = version(tmp_path / "app", 1)
    (tmp_path / "data").mkdir()
    versions = Versions(tmp_path / "data")
    _, before = versions.look_at(Source(app))
    version(app, 2)
    with pytest.raises(Exception, match="changed meanwhile"):
        versions.add(Source(app), expected=before)
    assert not list((tmp_path / "data/versions").glob("*"))


def test_what_a_digest_tells_apart(tmp_path):
    app = version(tmp_path / "app", 1)
    (app / "a").mkdir()
    (app / "b").symlink_to("worker.py")
    seen = {digest(read_tree(app))}

    def other(*beside):
        found = digest(read_tree(app), *beside)
        assert found not in seen
        seen.add(found)

    other("config")
    (app / "worker.py").write_text("x = 1")
    other()
    (app / "a").rmdir()
    other()
    (app / "b").unlink()
    (app / "b").symlink_to("wrangler.toml")
    other()
    (app / ".env").write_text("A=1")
    other()
    before = digest(read_tree(app))
    (app / "__pycache__").mkdir()
    (app / "__pycache__/x.pyc").write_text("x")
    (app / ".roost").mkdir()
    (app / ".roost/y").write_text("y")
    assert digest(read_tree(app)) == before
    copy(read_tree(app), tmp_path / "copy", tmp_path / "secrets")
    assert digest(read_tree(tmp_path / "copy")).split("-")[0] == before.split("-")[0]
    assert (tmp_path / "secrets/.env").read_text() == "A=1"


def test_every_exception_of_a_control_command_is_answered(tmp_path, data):
    import socket

    app = version(tmp_path / "app", 1)
    with running(app, data=data) as node:
        restore = b'{"command": "restore", "id": "' + b"a" * 64 + b'"}'
        deploy = b'{"command": "deploy", "dir": 7}'
        short = (b"", b"[]", b"nothing", b"\xff\xfe", b'"deploy"', b'{"command": 5}')
        for garbage in (*short, b"[" * 50_000, deploy, restore):
            sock = socket.socket(socket.AF_UNIX)
            sock.settimeout(20)
            sock.connect(f"{data}/control.sock")
            sock.sendall(garbage + b"\n")
            said = json.loads(sock.makefile().readline())
            assert said["error"], garbage[:40]
            sock.close()
        assert answer(node) == "1"
