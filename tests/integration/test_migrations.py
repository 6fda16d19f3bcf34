"""Class migrations and `preShutdown`: what objects are when their classes change."""

import json
import subprocess
import sys
import time

import pytest

from roost.errors import ConfigError
from roost.node.config import read_app
from roost.storage.migrations import Migration, Migrations
from roost.testing import running, wait_for

SOURCE = """
from js import WebSocketPair
from workers import DurableObject, Response, WorkerEntrypoint

class NAME(DurableObject):
    async def fetch(self, request):
        if request.headers.get("Upgrade"):
            client, server = WebSocketPair.new()
            self.ctx.acceptWebSocket(server)
            return Response(None, status=101, web_socket=client)
        n = (await self.ctx.storage.get("n") or 0) + 1
        await self.ctx.storage.put("n", n)
        if request.url.endswith("?alarm"):
            await self.ctx.storage.setAlarm(10)
        return Response.json([type(self).__name__, self.ctx.id.name, str(self.ctx.id), n])

    async def webSocketMessage(self, ws, message):
        ws.send(f"{type(self).__name__} {message}")

    async def alarm(self, info):
        await self.ctx.storage.put("alarm", type(self).__name__)

class Default(WorkerEntrypoint):
    async def fetch(self, request):
        name = request.url.split("/", 3)[3].split("?")[0]
        return await self.env.ROOM.getByName(name).fetch(request)
"""

FIRST = '[[migrations]]\ntag = "v1"\nnew_sqlite_classes = ["Room"]\n'
RENAMED = FIRST + '[[migrations]]\ntag = "v2"\nrenamed_classes = [{ from = "Room", to = "Hall" }]\n'
TWICE = RENAMED + '[[migrations]]\ntag = "v3"\nrenamed_classes = [{ from = "Hall", to = "Lobby" }]\n'
DELETED = TWICE + '[[migrations]]\ntag = "v4"\ndeleted_classes = ["Lobby"]\nnew_sqlite_classes = ["Room"]\n'


def write(folder, class_name, migrations):
    folder.mkdir(exist_ok=True)
    (folder / "worker.py").write_text(SOURCE.replace("NAME", class_name))
    (folder / "wrangler.toml").write_text(
        'name = "app"\nmain = "worker.py"\ncompatibility_date = "2026-11-01"\n'
        f'[[durable_objects.bindings]]\nname = "ROOM"\nclass_name = "{class_name}"\n{migrations}'
    )
    (folder / "roost.toml").write_text("[hibernation]\nidle_s = 0.3\n")
    return folder


def roost(*arguments, code=0):
    done = subprocess.run(
        [sys.executable, "-m", "roost", *map(str, arguments)], capture_output=True, text=True, timeout=120, check=False
    )
    assert done.returncode == code, done.stdout + done.stderr
    return done.stdout + done.stderr


@pytest.mark.parametrize("hosts", ["1", "2"])
def test_renamed_twice_and_deleted_while_sockets_are_open(tmp_path, hosts):
    app = write(tmp_path / "app", "Room", FIRST)
    with running(app, "--hosts", hosts) as node:
        sockets = [node.connect(f"/{number}") for number in range(10)]
        ids = {}
        for number in range(10):
            kind, name, ids[number], n = json.loads(node.get(f"/{number}")[2])
            assert (kind, name, n) == ("Room", str(number), 1)
        for class_name, migrations, count in (("Hall", RENAMED, 2), ("Lobby", TWICE, 3)):
            write(app, class_name, migrations)
            roost("deploy", app, "--data", node.data)
            for number, ws in enumerate(sockets):
                ws.send("are you there")
                assert ws.recv() == f"{class_name} are you there"
                assert json.loads(node.get(f"/{number}")[2]) == [class_name, str(number), ids[number], count]
        said = roost("rollback", "2", "--dir", app, "--data", node.data, code=1)
        assert "'v3' was applied to this data folder" in said
        write(app, "Room", DELETED)
        roost("deploy", app, "--data", node.data)
        for ws in sockets:
            assert ws.recv_close() == (1001, "The class of this object was deleted.")
            ws.abort()
        kind, name, new_id, n = json.loads(node.get("/1")[2])
        assert (kind, name, n) == ("Room", "1", 1), "a class of an old name is a new one"
        assert new_id != ids[1]
        wait_for(lambda: node.counter("hibernatable") == 0)


def test_migrations_at_start(tmp_path):
    data = tmp_path / "data"
    data.mkdir()
    app = write(tmp_path / "app", "Room", FIRST)
    with running(app, data=str(data)) as node:
        node.get("/a?alarm")
        before = json.loads(node.get("/a")[2])
    write(app, "Hall", RENAMED)
    for mode in ((), ("--inline",), ("--hosts", "3")):
        with running(app, *mode, data=str(data)) as node:
            kind, name, object_id, n = json.loads(node.get("/a")[2])
            assert (kind, name, object_id) == ("Hall", "a", before[2])
            assert n > before[3]
    assert roost("check", "--data", data)
    assert "Hall" in roost("storage", "list", "--data", data)
    write(app, "Room", FIRST)
    with running(app, data=str(data)) as node:  # it was replaced, and is not run again by a restart
        assert json.loads(node.get("/a")[2])[0] == "Hall"
    with pytest.raises(RuntimeError, match="'v2' was applied"), running(app, "--from-folder", data=str(data)):
        pass
    record = json.loads((data / "migrations.json").read_text())
    assert [entry["tag"] for entry in record["applied"]] == ["v1", "v2"]


def test_an_interrupted_migration_goes_on(tmp_path, monkeypatch):
    data = tmp_path / "data"
    (data / "objects" / "A" / "00").mkdir(parents=True)
    (data / "objects" / "A" / "00" / "x").touch()
    wanted = [Migration("1", ["A"]), Migration("2", [], {"A": "B"}), Migration("3", [], {"B": "C"}), Migration("4", ["D"])]
    migrations = Migrations(data)

    def save(record):
        if record.applied and record.applied[-1].tag == "3":
            raise OSError("the power is gone")
        Migrations._save(migrations, record)

    monkeypatch.setattr(migrations, "_save", save)
    with pytest.raises(ConfigError, match="'3' cannot be applied"):
        migrations.apply(migrations.plan(wanted), 1)
    again = Migrations(data)
    plan = again.plan(wanted)
    assert [migration.tag for migration in plan.pending] == ["3", "4"]
    again.apply(plan, 1)
    assert (data / "objects" / "C" / "00" / "x").exists()
    assert again.plan(wanted).pending == []
    assert again.plan(wanted).first_names == {"C": "A"}


@pytest.mark.parametrize(
    ("migrations", "says"),
    [
        ('migrations = "x"', "must be a list"),
        ("[[migrations]]\nnew_sqlite_classes = []", "needs a tag"),
        ('[[migrations]]\ntag = "1"\nnew_sqlite_class = ["Room"]', 'Did you mean "new_sqlite_classes"'),
        ('[[migrations]]\ntag = "1"\nnew_sqlite_classes = "Room"', "list of class names"),
        ('[[migrations]]\ntag = "1"\nnew_sqlite_classes = ["../x"]', "list of class names"),
        ('[[migrations]]\ntag = "1"\nrenamed_classes = ["Room"]', "renamed_classes must be a list"),
        ('[[migrations]]\ntag = "1"\n[[migrations]]\ntag = "1"', "is there twice"),
        ('[[migrations]]\ntag = "1"\ndeleted_classes = ["Rom"]', "which no migration before it has made"),
        (FIRST + '[[migrations]]\ntag = "2"\ndeleted_classes = ["Room"]', "have renamed or deleted"),
        ('[[migrations]]\ntag = "1"\ntransferred_classes = [{from = "A"}]', "not supported"),
    ],
)
def test_bad_migrations(tmp_path, migrations, says):
    app = write(tmp_path / "app", "Room", "")
    text = (app / "wrangler.toml").read_text()
    (app / "wrangler.toml").write_text(
        f"{migrations}\n{text}" if migrations.startswith("migrations") else text + migrations
    )
    with pytest.raises(ConfigError, match=says):
        read_app(app)


def test_order(tmp_path):
    migrations = Migrations(tmp_path)
    migrations.apply(migrations.plan([Migration("2")]), 1)
    with pytest.raises(ConfigError, match="new ones come last"):
        migrations.plan([Migration("1"), Migration("2")])


PRE_SHUTDOWN = """
import asyncio
from js import WebSocketPair
from workers import DurableObject, Response, WorkerEntrypoint

class Room(DurableObject):
    def __init__(self, ctx, env):
        super().__init__(ctx, env)
        self.heard = 0

    async def fetch(self, request):
        client, server = WebSocketPair.new()
        self.ctx.acceptWebSocket(server)
        return Response(None, status=101, web_socket=client)

    async def webSocketMessage(self, ws, message):
        self.heard += 1
        before = await self.ctx.storage.get("total") or 0
        ws.send(f"{before} {await self.ctx.storage.get('reason')} {self.heard}")

    async def preShutdown(self, info):
        await asyncio.sleep(0.05)
        await self.ctx.storage.put("total", (await self.ctx.storage.get("total") or 0) + self.heard)
        await self.ctx.storage.put("reason", info.reason)

class Default(WorkerEntrypoint):
    async def fetch(self, request):
        return await self.env.ROOM.getByName("x").fetch(request)
"""


def test_pre_shutdown(tmp_path):
    app = write(tmp_path / "app", "Room", "")
    (app / "worker.py").write_text(PRE_SHUTDOWN)
    (app / "roost.toml").write_text("[hibernation]\nidle_s = 3.0\n")
    data = tmp_path / "data"
    data.mkdir()
    with running(app, data=str(data)) as node, node.connect() as ws:
        for number in range(1, 4):
            ws.send("x")
            assert ws.recv() == f"0 None {number}"
        wait_for(lambda: node.awake() == [])
        ws.send("x")
        assert ws.recv() == "3 inactive 1"
        roost("deploy", app, "--data", node.data)
        ws.send("x")
        assert ws.recv() == "4 codeUpdated 1"
        assert not node.logged("preShutdown")
    with running(app, data=str(data)) as node, node.connect() as ws:
        ws.send("x")
        assert ws.recv() == "5 inactive 1", "a node that ends says goodbye, too"


# exports, in place of migrations


def exports(**states):
    lines = []
    for name, after in states.items():
        state = "" if after == "created" else f'state = "{after}"\n' if after == "deleted" else ""
        if after not in ("created", "deleted"):
            state = f'state = "renamed"\nrenamed_to = "{after}"\n'
        lines.append(f'[exports.{name}]\ntype = "durable-object"\nstorage = "sqlite"\n{state}')
    return "".join(lines)


def test_exports_say_what_is_to_be(tmp_path):
    """Renamed, renamed back, deleted and made anew, with sockets open; what is done already is nothing to do."""
    app = write(tmp_path / "app", "Room", exports(Room="created"))
    steps = [
        ("Hall", exports(Hall="created", Room="Hall")),
        ("Hall", exports(Hall="created", Room="Hall")),
        ("Hall", exports(Hall="created")),
        ("Room", exports(Room="created", Hall="Room")),
        ("Hall", exports(Hall="created", Room="Hall")),
    ]
    with running(app, "--hosts", "2") as node:
        ws = node.connect("/a")
        _, _, first_id, n = json.loads(node.get("/a")[2])
        for class_name, declared in steps:
            write(app, class_name, declared)
            roost("deploy", app, "--data", node.data)
            n += 1
            assert json.loads(node.get("/a")[2]) == [class_name, "a", first_id, n]
            ws.send("are you there")
            assert ws.recv() == f"{class_name} are you there"
        write(app, "Room", exports(Room="created"))
        said = roost("deploy", app, "--data", node.data, code=1)
        assert "has objects of Hall, which exports does not declare" in said
        assert json.loads(node.get("/a")[2])[0] == "Hall"
        write(app, "Room", exports(Room="created", Hall="deleted"))
        roost("deploy", app, "--data", node.data)
        assert ws.recv_close() == (1001, "The class of this object was deleted.")
        ws.abort()
        kind, _, new_id, count = json.loads(node.get("/a")[2])
        assert (kind, count) == ("Room", 1)
        assert new_id != first_id
        roost("deploy", app, "--data", node.data)
        assert json.loads(node.get("/a")[2]) == ["Room", "a", new_id, 2]


def test_from_migrations_to_exports_and_back(tmp_path):
    data = tmp_path / "data"
    data.mkdir()
    app = write(tmp_path / "app", "Hall", RENAMED)
    (data / "objects").mkdir()
    with running(app, data=str(data)) as node:
        before = json.loads(node.get("/a")[2])
    for class_name, declared in (
        ("Hall", exports(Hall="created")),
        ("Hall", RENAMED),  # nothing was moved by exports yet
        ("Lobby", exports(Lobby="created", Hall="Lobby")),
        ("Lobby", exports(Other="created")),  # it is bound: a warning
        ("Lobby", exports(Other="created")),
    ):
        write(app, class_name, declared)
        with running(app, data=str(data)) as node:
            assert json.loads(node.get("/a")[2])[:3] == [class_name, "a", before[2]]
    for class_name, declared, first in (("Hall", RENAMED, "exports: Hall -> Lobby"), ("Room", "", "v2")):
        write(app, class_name, declared)
        refused = pytest.raises(RuntimeError, match=f"'{first}' was applied")
        with refused, running(app, "--from-folder", data=str(data)):
            pass


@pytest.mark.parametrize(
    ("config", "says"),
    [
        (FIRST + exports(Room="created"), "exclude each other"),
        (exports(Room="Hall"), "renamed to Hall, which exports does not declare"),
        (exports(Room="Hall", Hall="created"), "ROOM is of the class Room, which exports has renamed"),
        (exports(Room="deleted"), "renamed or deleted"),
        (exports(Hall="created", A="Hall", B="Hall"), "two classes are renamed to the same"),
        ('[exports.Room]\ntype = "object"\n', 'type must be "durable-object"'),
        ('[exports.Room]\ntype = "durable-object"\nstorge = "sqlite"\n', "storage"),
        ('[exports.Room]\ntype = "durable-object"\nstorage = "disk"\n', 'storage must be "sqlite"'),
        ('[exports.Room]\ntype = "durable-object"\nstate = "delted"\n', "deleted"),
        ('[exports.Room]\ntype = "durable-object"\nstate = "transferred"\ntransferred_to = "x"\n', "one worker"),
        ('[exports.Room]\ntype = "durable-object"\nrenamed_to = "Hall"\n', "go together"),
        ('[durable_objects.code_update_strategy]\nmode = "later"\n', "immediate"),
        ("[durable_objects.code_update_strategy]\nmax_delay = 5\n", 'for the mode "deferred"'),
        ('[durable_objects.code_update_strategy]\nmode = "deferred"\nmax_delay = 301\n', "0 to 300"),
        ('[durable_objects.code_update_strategy]\nmod = "deferred"\n', "mode"),
    ],
)
def test_wrong_declarations(tmp_path, config, says):
    with pytest.raises(ConfigError, match=says):
        read_app(write(tmp_path / "app", "Room", config))


def test_what_is_declared_is_read(tmp_path):
    config = exports(Room="created", Old="deleted") + '[exports.default]\ntype = "worker"\n'
    config += '[durable_objects.code_update_strategy]\nmode = "deferred"\nmax_delay = 5\n'
    app = read_app(write(tmp_path / "app", "Room", config))
    assert (app.exports.created, app.exports.deleted, app.warnings) == (["Room"], ["Old"], [])
    assert (app.code_update.mode, app.code_update.max_delay_s) == ("deferred", 5.0)
    app = read_app(write(tmp_path / "app", "Room", exports(Hall="created")))
    assert any("Room is bound, but exports does not declare it" in warning for warning in app.warnings)


# how new code takes over


def test_deferred_code_waits_for_objects_to_sleep(tmp_path):
    strategy = '[durable_objects.code_update_strategy]\nmode = "deferred"\nmax_delay = MAX\n'
    app = write(tmp_path / "app", "Room", strategy.replace("MAX", "60"))
    with running(app, "--hosts", "2") as node:
        ws = node.connect("/a")
        ws.send("1")
        assert ws.recv() == "Room 1"
        began = time.monotonic()
        (app / "worker.py").write_text((app / "worker.py").read_text().replace("{type(self).__name__}", "New"))
        deploying = subprocess.Popen([sys.executable, "-m", "roost", "deploy", app, "--data", node.data])
        while time.monotonic() - began < 2.0:  # it is kept awake
            ws.send("2")
            assert ws.recv() == "Room 2"
        assert deploying.poll() is None
        assert deploying.wait(30) == 0
        ws.send("3")
        assert ws.recv() == "New 3"

        write(app, "Room", strategy.replace("MAX", "1"))
        deploying = subprocess.Popen([sys.executable, "-m", "roost", "deploy", app, "--data", node.data])
        said = ""
        while deploying.poll() is None:  # awake all the time: at the latest after `max_delay`
            ws.send("4")
            said = ws.recv()
        assert deploying.wait(30) == 0
        ws.send("5")
        assert ws.recv() == "Room 5"
        assert said in ("New 4", "Room 4")

        write(app, "Room", strategy.replace("MAX", "60"))
        (app / "worker.py").write_text((app / "worker.py").read_text().replace("{type(self).__name__}", "Now"))
        now = ["--durable-objects-code-update-mode", "immediate"]
        deploying = subprocess.Popen([sys.executable, "-m", "roost", "deploy", app, "--data", node.data, *now])
        while deploying.poll() is None:
            ws.send("6")
            ws.recv()
        ws.send("7")
        assert ws.recv() == "Now 7"
        ws.abort()
