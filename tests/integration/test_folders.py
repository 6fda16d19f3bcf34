"""The data folder: who may read it, the run folder in it, a long path, what a node leaves behind."""

import os
import shutil
import signal
import stat
import sys
from pathlib import Path

import pytest

from conftest import write_app
from roost.testing import running, wait_for

SOURCE = """
from js import WebSocketPair
from workers import DurableObject, Response, WorkerEntrypoint

class Room(DurableObject):
    async def fetch(self, request):
        client, server = WebSocketPair.new()
        self.ctx.acceptWebSocket(server)
        return Response(None, status=101, web_socket=client)

    async def alarm(self):
        pass

    async def webSocketMessage(self, ws, message):
        await self.ctx.storage.put("n", (await self.ctx.storage.get("n") or 0) + 1)
        await self.ctx.storage.setAlarm(4_000_000_000_000)
        ws.send(str(await self.ctx.storage.get("n")))

class Default(WorkerEntrypoint):
    async def fetch(self, request):
        return await self.env.ROOM.getByName("x").fetch(request)
"""


def say(ws):
    ws.send("x")
    return ws.recv(30)


@pytest.mark.parametrize("mode", [("--gateways", "2", "--hosts", "2"), ("--inline",)], ids=" ".join)
def test_files_with_data_are_private(tmp_path, mode):
    app = write_app(tmp_path / "app", SOURCE, "Room", config='kv_namespaces = [{ binding = "KV", id = "1" }]')
    data = tmp_path / "data"
    data.mkdir(mode=0o755)
    with running(app, *mode, "--admin", "127.0.0.1:0", data=str(data)) as node, node.connect("/") as ws:
        assert say(ws) == "1"
        wait_for(lambda: (data / "versions/versions.json").exists())
        assert stat.S_IMODE(data.stat().st_mode) == 0o700
        open_to_others = []
        for path in data.rglob("*"):
            mode_of = stat.S_IMODE(path.lstat().st_mode)
            if mode_of & 0o077 and "versions/1/" not in str(path):  # code keeps the modes that it has
                open_to_others.append((str(path), oct(mode_of)))
        assert not open_to_others
        assert any(path.name.endswith(".sqlite-wal") for path in data.rglob("*"))
    assert not (data / "run").exists()


def test_the_default_folder_keeps_itself_out_of_repositories(tmp_path):
    import subprocess

    app = write_app(tmp_path / "app", SOURCE, "Room")
    process = subprocess.Popen(
        [sys.executable, "-m", "roost", "serve", str(app), "--port", "0"], stdout=subprocess.PIPE, text=True
    )
    try:
        assert "ready" in process.stdout.readline()
        assert (app / ".roost/.gitignore").read_text() == "*\n"
    finally:
        process.terminate()
        process.wait(20)
        process.stdout.close()


@pytest.mark.parametrize("token", ["", "short", " " * 40])
def test_a_token_that_could_be_guessed_is_refused(tmp_path, token):
    app = write_app(tmp_path / "app", SOURCE, "Room")
    data = tmp_path / "data"
    data.mkdir()
    (data / "admin-token").write_text(token)
    with pytest.raises(RuntimeError, match="needs 20"), running(app, "--admin", "127.0.0.1:0", data=str(data)):
        pass


@pytest.mark.skipif(sys.platform != "linux", reason="long addresses are reached through /proc")
def test_a_long_path_and_a_run_folder_that_is_removed(tmp_path):
    app = write_app(tmp_path / "app", SOURCE, "Room", settings="[timeouts]\nrestart_pause_s = 0.3\n")
    data = tmp_path / ("d" * 100) / ("e" * 100)
    data.parent.mkdir()
    with running(app, "--gateways", "2", data=str(data)) as node, node.connect("/") as ws:
        assert say(ws) == "1"
        for expected in ("2", "3"):
            shutil.rmtree(data / "run")
            os.kill(node.pid("host 0"), signal.SIGKILL)
            assert say(ws) == expected
        assert node.logged("was removed, and is made anew")
        shutil.rmtree(data / "run")
        (app / "worker.py").write_text((app / "worker.py").read_text() + "\nEDITED = True\n")
        import subprocess

        done = subprocess.run(
            [sys.executable, "-m", "roost", "deploy", str(app), "--data", str(data)], capture_output=True, text=True
        )
        assert done.returncode == 0, done.stderr
        assert say(ws) == "4"
        done = subprocess.run(
            [sys.executable, "-m", "roost", "upgrade", "--data", str(data)], capture_output=True, text=True
        )
        assert done.returncode == 0, done.stderr
        assert say(ws) == "5"


def test_a_killed_node_leaves_a_folder_that_the_next_one_makes_anew(tmp_path):
    app = write_app(tmp_path / "app", SOURCE, "Room")
    data = tmp_path / "data"
    with running(app, data=str(data)) as node, node.connect("/") as ws:
        assert say(ws) == "1"
        node.process.kill()
        node.process.wait(10)
    assert (data / "run").exists()
    with running(app, data=str(data)) as node, node.connect("/") as ws:
        assert say(ws) == "2"
        marks = [path for path in (data / "run").iterdir() if path.suffix == ".mark"]
        assert len(marks) == len([name for name in node.status()["pids"] if name.startswith("host")])
    assert not (data / "run").exists()


def test_a_journal_that_cannot_be_made_anew_is_given_up(tmp_path, monkeypatch, caplog):
    from roost.gateway.routing import journal

    monkeypatch.setattr(journal, "_ANEW_FROM", 2)
    made = journal.Journal(str(tmp_path / "gateway.journal"))
    made.start([])
    assert (tmp_path / "gateway.journal").exists()
    for number in range(10):
        made.forgotten(number)
    shutil.rmtree(tmp_path)
    made.flush(list)
    assert "given up" in caplog.text
    made.forgotten(11)
    assert not made.lines
    assert not Path(tmp_path / "gateway.journal").exists()
    made.end()
