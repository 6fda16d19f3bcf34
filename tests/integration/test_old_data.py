"""A data folder of version 0.1 (24d40d0, `tests/golden/data-0`) opens with everything in it; a newer one is refused."""

import json
import shutil
import subprocess
import sys
from pathlib import Path

import apsw
import pytest

from conftest import write_app
from roost.testing import running, wait_for

GOLDEN = Path(__file__).resolve().parent.parent / "golden" / "data-0"
SOURCE = (GOLDEN / "versions/1/worker.py").read_text()
LOOKS = """
class Room(Room):
    async def look(self):
        s = self.ctx.storage
        values = await s.list()
        rows = [[row.n, row.text] for row in s.sql.exec("SELECT n, text FROM said ORDER BY n")]
        return [repr(values), rows, await s.getAlarm(), self.ctx.id.name]

class Default(WorkerEntrypoint):
    async def fetch(self, request):
        looked = await self.env.ROOM.getByName("lobby").look()
        return Response.json([*looked, await self.env.KV.get("key"), self.env.SECRET])
"""


@pytest.fixture
def data(tmp_path):
    return str(shutil.copytree(GOLDEN, tmp_path / "data"))


def app(folder, source):
    config = 'kv_namespaces = [{ binding = "KV", id = "1" }]\nmigrations = [{ tag = "v1", new_sqlite_classes = ["Room"] }]'
    made = write_app(folder, source, "Room", config=config)
    (made / ".dev.vars").write_text("SECRET=old\n")
    return made


@pytest.mark.parametrize("mode", [("--hosts", "2"), ("--hosts", "3", "--gateways", "2"), ("--inline",)], ids=" ".join)
def test_everything_is_there(tmp_path, data, mode):
    with running(app(tmp_path / "app", SOURCE + LOOKS), *mode, data=data) as node:
        status, _, body = node.get("/")
        assert status == 200, node.log[-10:]
        values, rows, alarm_ms, name, kept, secret = json.loads(body)
        for part in ("'number': 5", "é🎉", "b'\\x00\\xff'", "datetime.datetime(2026, 1, 2", "{1, 2}"):
            assert part in values
        assert rows == [[1, "one"], [2, "two"]]
        assert (alarm_ms, name, kept, secret) == (4_000_000_000_000, "lobby", "value", "old")
        assert sum(host["alarms_set"] for host in node.status()["hosts"]) == 1


def test_its_version_is_known_by_its_code(tmp_path, data):
    """What the folder was copied from is the version that ran; a rollback runs the copy, with its own secrets."""
    with running(app(tmp_path / "app", SOURCE), data=data) as node:
        versions = json.loads(Path(data, "versions/versions.json").read_text())
        assert [version["number"] for version in versions] == [1]
        # Version 0.1 made an index only for a host that had an alarm.
        warnings = [line for line in node.log if "warning" in line]
        assert all("the alarm index is made anew" in line for line in warnings), warnings
    with running(app(tmp_path / "app", SOURCE + LOOKS), data=data) as node:
        wait_for(lambda: len(json.loads(Path(data, "versions/versions.json").read_text())) == 2)
        done = subprocess.run(
            [sys.executable, "-m", "roost", "rollback", "--data", data], capture_output=True, text=True, timeout=60
        )
        assert "version 1 runs" in done.stdout, done.stderr


@pytest.mark.parametrize("what", ["alarms", "migrations"])
def test_a_newer_folder_is_refused_in_one_line(tmp_path, data, what):
    path = Path(data, "alarms/state.json" if what == "alarms" else "migrations.json")
    path.write_text(json.dumps({**json.loads(path.read_text()), "format": 2}))
    done = subprocess.run(
        [sys.executable, "-m", "roost", "serve", str(app(tmp_path / "app", SOURCE)), "--port", "0", "--data", data],
        capture_output=True, text=True, timeout=60,
    )  # fmt: skip
    assert done.returncode == 2
    (line,) = done.stderr.splitlines()
    assert "has format 2; this Roost knows 1" in line


def test_a_newer_object_is_refused_and_stays_as_it_is(tmp_path, data):
    (path,) = Path(data).glob("objects/*/*/*.sqlite")
    connection = apsw.Connection(str(path))
    connection.pragma("user_version", 2)
    connection.close()
    before = path.read_bytes()
    with running(app(tmp_path / "app", SOURCE + LOOKS), data=data) as node:
        assert node.get("/")[0] == 500
        assert node.logged("has format 2; this Roost knows 1. Use the newer one.")
    assert path.read_bytes() == before
