"""host/calls (answering, stubs, services): method calls between objects and entrypoints of one host."""

import asyncio

import pytest

from hosted import run_hosted, settle, until
from roost import events as e
from roost.api.rpc import RemoteError
from roost.bindings.kind import Version
from roost.bindings.services import Services
from roost.errors import JsException, JsTypeError
from roost.ids import id_from_name, namespace_key, slot_of
from roost.values import DataCloneError, decode, encode

SOURCE = """
import asyncio
from datetime import datetime
from js import WebSocketPair
from workers import DurableObject, Response, WorkerEntrypoint

SEEN = []

class Base:
    async def inherited(self):
        return "from a mixin"

class Room(Base, DurableObject):
    limit = 7
    Helper = int

    @staticmethod
    def static():
        return 1

    def __init__(self, ctx, env):
        super().__init__(ctx, env)
        self.secret = "instance attributes are private"
        if ctx.id.name == "broken":
            raise ValueError("cannot start")

    async def add(self, a, b=1, *, times=1):
        SEEN.append(("add", a))
        return (a + b) * times

    def plain(self):
        return self.ctx.id.name

    async def echo(self, value):
        return value

    async def keep(self, value):
        self.ctx.storage.kv.put("kept", value)
        return value

    async def slow(self, number):
        SEEN.append(("begin", number))
        await asyncio.sleep(0.01 if number == 1 else 0)
        SEEN.append(("end", number))
        return number

    async def fail(self, kind):
        kinds = {"value": ValueError("bad value"), "key": KeyError("k"), "own": Own("mine")}
        raise kinds.get(kind, ZeroDivisionError("z"))

    async def awkward(self, kind):
        if kind == "time":
            return datetime.max
        if kind == "surrogate":
            raise ValueError("bad \\ud800")
        raise Awkward()

    async def wait_for_ever(self):
        SEEN.append("waits")
        await asyncio.Event().wait()

    async def start_task_in_section(self):
        GO = globals()["GO"] = asyncio.get_running_loop().create_future()

        async def later():
            await GO
            other = self.env.ROOM.getByName("b")
            SEEN.append(await other.ask_in_section(self.ctx.id.name))

        async def section():
            self.task = asyncio.create_task(later())
            return "started"

        return await self.ctx.blockConcurrencyWhile(section)

    async def ask_in_section(self, name):
        async def section():
            return await self.env.ROOM.getByName(name).call_back()
        return await self.ctx.blockConcurrencyWhile(section)

    async def call_back(self):
        return "called back"

    async def uncloneable(self):
        return {"rooms": [1, object()]}

    async def _private(self):
        return 1

    @property
    def size(self):
        return 42

    async def ask(self, name, method, *args):
        return await getattr(self.env.ROOM.getByName(name), method)(*args)

    async def ask_forever(self, one, other):
        return await self.env.ROOM.getByName(one).ask_forever(other, one)

    async def ask_blocked(self, name, method, *args):
        async def section():
            SEEN.append(("section", self.ctx.id.name))
            await asyncio.sleep(0.01)
            try:
                return await getattr(self.env.ROOM.getByName(name), method)(*args)
            except Exception as error:
                return f"{type(error).__name__}: {error}"
        return await self.ctx.blockConcurrencyWhile(section)

    async def fetch_blocked(self, name):
        async def section():
            try:
                return await (await self.env.ROOM.getByName(name).fetch("http://x/")).text()
            except Exception as error:
                return str(error)
        return await self.ctx.blockConcurrencyWhile(section)

    async def in_transaction(self, name):
        async def inside(txn):
            await txn.put("a", 1)
            return await self.env.ROOM.getByName(name).plain()
        return await self.ctx.storage.transaction(inside)

    async def write_then_tell(self, name):
        self.ctx.storage.kv.put("told", 1)
        await self.env.ROOM.getByName(name).echo(1)

    async def abort(self):
        self.ctx.storage.kv.put("never", 1)
        self.ctx.abort("gone")

    async def alarm(self):
        pass

    async def fetch(self, request):
        SEEN.append("fetch")
        if request.url.endswith("/fail"):
            raise ValueError("no")
        if request.url.endswith("/abort"):
            self.ctx.abort("gone")
        if request.url.endswith("/wait"):
            await self.wait_for_ever()
        if "/peek/" in request.url:
            await self.env.ROOM.getByName(request.url.rsplit("/", 1)[1]).fetch("http://x/socket")
        if request.url.endswith("/socket"):
            client, server = WebSocketPair.new()
            self.ctx.acceptWebSocket(server)
            return Response(None, status=101, web_socket=client)
        return Response("ok")

class Own(Exception):
    pass

class Awkward(Exception):
    def __str__(self):
        raise RuntimeError("no text")

class Admin(WorkerEntrypoint):
    async def whoami(self, *args):
        return [self.ctx.props.get("role"), len(args)]

    async def peek(self, name):
        return (await self.env.ROOM.getByName(name).fetch("http://x/socket")).status

    async def to_room(self, name):
        return await self.env.ROOM.getByName(name).add(1)

    async def fail(self):
        raise ValueError("from the entrypoint")

    async def fetch(self, request):
        return Response("admin " + request.url)

class Default(WorkerEntrypoint):
    async def fetch(self, request):
        return Response("default")

    async def again(self):
        return await self.env.SELF.again()
"""

BROKEN = e.ObjectRef("Room", id_from_name(namespace_key("t", "Room"), "broken"), "broken")


def called(tmp_path, test, **options):
    async def body(host, gateway, module):
        gateway.answers_rosters = True
        await test(host, host.worker.env, module)

    configs = {"ADMIN": {"entrypoint": "Admin", "props": {"role": "boss"}}, "SELF": {"entrypoint": "Default", "props": {}}}
    run_hosted(tmp_path, SOURCE, body, bindings=[Services(configs, Version())], data=tmp_path / "data", **options)


def test_w43_methods_args_results_and_this(tmp_path):
    async def body(host, env, module):
        room = env.ROOM.getByName("lobby")
        assert await room.add(2, b=3, times=2) == 10
        assert await room.plain() == "lobby"
        assert await room.inherited() == "from a mixin"
        assert await room.size == 42
        value = {"n": [1, None, 2.5, b"x"], "s": {1, 2}, "big": 2**80}
        assert await room.echo(value) == value
        loop = [1]
        loop.append(loop)
        again = await room.echo(loop)
        assert again[1] is again

    called(tmp_path, body)


def test_nothing_is_shared(tmp_path):
    async def body(host, env, module):
        value = {"list": [1]}
        answer = env.ROOM.getByName("x").echo(value)
        value["list"].append("changed after the call")
        assert await answer == {"list": [1]}

    called(tmp_path, body)


HIDDEN = ["_private", "secret", "ctx", "env", "missing", "fetch_", "alarm", "webSocketClose", "limit", "on_alarm", "static"]


@pytest.mark.parametrize("name", [*HIDDEN, "Helper"])
def test_what_is_not_a_public_method(tmp_path, name):
    async def body(host, env, module):
        with pytest.raises((AttributeError, RemoteError), match=f"{name}"):
            await getattr(env.ROOM.getByName("x"), name)()

    called(tmp_path, body)


def test_a_method_cannot_be_read_and_a_property_not_called(tmp_path):
    async def body(host, env, module):
        with pytest.raises(TypeError, match="is a method"):
            await env.ROOM.getByName("x").plain
        with pytest.raises(TypeError, match="not a function"):
            await env.ROOM.getByName("x").size()

    called(tmp_path, body)


@pytest.mark.parametrize(
    ("kind", "catch", "name", "message"),
    [
        ("value", ValueError, "ValueError", "bad value"),
        ("key", KeyError, "KeyError", "k"),
        ("own", JsException, "Own", "mine"),
        ("zero", ZeroDivisionError, "ZeroDivisionError", "z"),
    ],
)
def test_w43_exceptions_keep_type_name_message_and_say_remote(tmp_path, kind, catch, name, message):
    async def body(host, env, module):
        with pytest.raises(catch) as caught:
            await env.ROOM.getByName("x").fail(kind)
        error = caught.value
        assert (error.name, error.message, error.remote) == (name, message, True)
        assert str(error) == f"{name}: {message}"
        with pytest.raises(catch):  # also through another object
            await env.ROOM.getByName("y").ask("x", "fail", kind)

    called(tmp_path, body)


def test_wrong_arguments_and_uncloneable_values(tmp_path):
    async def body(host, env, module):
        room = env.ROOM.getByName("x")
        with pytest.raises(TypeError, match="missing 1 required positional argument"):
            await room.add()
        with pytest.raises(DataCloneError, match=r"echo\(\).*\[0\]\[0\]\['f'\].*object"):
            await room.echo({"f": object()})
        with pytest.raises(RemoteError, match=r"result of uncloneable.*\['rooms'\]\[1\]"):
            await room.uncloneable()
        with pytest.raises(ValueError, match="32 MiB"):
            await room.echo(bytes(33 * 1024 * 1024))

    called(tmp_path, body)


def test_fetches_and_calls_of_a_stub_begin_in_order(tmp_path):
    async def body(host, env, module):
        for name in ("asleep", "awake", "awake"):
            room = env.ROOM.getByName(name)
            module["SEEN"].clear()
            first = room.slow(2)
            fetching = asyncio.ensure_future(room.fetch("http://x/"))
            await asyncio.sleep(0)
            second = room.slow(3)
            await asyncio.gather(first, fetching, second)
            begun = [seen for seen in module["SEEN"] if seen[0] == "begin" or seen == "fetch"]
            assert begun == [("begin", 2), "fetch", ("begin", 3)], name

    called(tmp_path, body)


def test_an_answer_that_cannot_be_made_is_an_error_not_a_hang(tmp_path):
    async def body(host, env, module):
        room = env.ROOM.getByName("x")
        for kind, why in (("time", "end of the calendar"), ("str", "text cannot be made"), ("surrogate", "bad")):
            with pytest.raises(JsException, match=why):
                await asyncio.wait_for(room.awkward(kind), 5)
        assert await room.keep(1) == 1

    called(tmp_path, body)


def test_calls_on_an_object_that_is_reset_end(tmp_path):
    async def body(host, env, module):
        room = env.ROOM.getByName("x")
        calls = [
            room.wait_for_ever(),
            asyncio.ensure_future(room.fetch("http://x/wait")),
            env.ROOM.getByName("y").ask("x", "wait_for_ever"),
        ]
        await until(lambda: module["SEEN"].count("waits") == 3)
        with pytest.raises(Exception, match="was reset"):
            await room.abort()
        for call in calls:
            with pytest.raises(Exception, match="was reset"):
                await asyncio.wait_for(call, 5)
        await until(lambda: not any(actor.pins for actor in host.actors))

    called(tmp_path, body)


def test_what_a_fetch_raises_is_remote(tmp_path):
    async def body(host, env, module):
        room = env.ROOM.getByName("x")
        with pytest.raises(ValueError) as caught:
            await room.fetch("http://x/fail")
        assert caught.value.remote
        assert isinstance(caught.value.__cause__, ValueError)  # with its traceback
        with pytest.raises(JsException, match="gone"):  # not the BaseException itself
            await room.fetch("http://x/abort")

    called(tmp_path, body)


def test_a_socket_that_nobody_takes_is_forgotten(tmp_path):
    async def body(host, env, module):
        assert await env.ADMIN.peek("x") == 101
        assert await env.ROOM.getByName("y").fetch("http://x/peek/x") is not None
        await until(lambda: not any(actor.sockets for actor in host.actors))

    called(tmp_path, body)


def test_a_section_that_is_over_is_not_waited_for(tmp_path):
    """A task that a section has started may outlive it; a callback after the section's call is no deadlock."""

    async def body(host, env, module):
        assert await env.ROOM.getByName("a").start_task_in_section() == "started"
        module["GO"].set_result(None)
        await until(lambda: "called back" in module["SEEN"])

    called(tmp_path, body)


def test_names_that_utf_8_cannot_carry(tmp_path):
    async def body(host, env, module):
        room = env.ROOM.getByName("\ud800")
        assert room.name is None
        assert await room.plain() is None
        with pytest.raises(AttributeError):
            getattr(room, "\ud800")

    called(tmp_path, body)


def test_calls_begin_in_order_and_without_being_awaited(tmp_path):
    async def body(host, env, module):
        room = env.ROOM.getByName("x")
        calls = [room.slow(number) for number in (1, 2, 3)]
        assert await asyncio.gather(*calls) == [1, 2, 3]
        assert [seen for seen in module["SEEN"] if seen[0] == "begin"] == [("begin", 1), ("begin", 2), ("begin", 3)]
        assert module["SEEN"][-1] == ("end", 1)
        room.slow(4)
        await until(lambda: ("end", 4) in module["SEEN"])

    called(tmp_path, body)


def test_a_constructor_that_fails_is_told(tmp_path):
    async def body(host, env, module):
        for _ in range(2):
            with pytest.raises(Exception, match="cannot be built: ValueError: cannot start"):
                await env.ROOM.getByName("broken").plain()
        assert len(host.actors) == 0

    called(tmp_path, body)


def test_an_abort_fails_the_call_and_keeps_nothing(tmp_path):
    async def body(host, env, module):
        with pytest.raises(Exception, match="was reset"):
            await env.ROOM.getByName("x").abort()
        assert await env.ROOM.getByName("x").plain() == "x"

    called(tmp_path, body)


def test_the_answer_waits_for_the_writes_before_it(tmp_path):
    async def body(host, env, module):
        stub = env.ROOM.getByName("x")
        await stub.plain()
        database = next(iter(host.actors)).store._database
        sync, synced = database.sync, []
        database.sync = lambda: (sync(), synced.append(1))
        assert await stub.keep(5) == 5
        assert synced
        synced.clear()
        order = []
        begin = host.calls.begin
        host.calls.begin = lambda ref, method, *rest: (order.append((method, bool(synced))), begin(ref, method, *rest))
        await stub.write_then_tell("y")
        assert order == [("write_then_tell", False), ("echo", True)]  # the second only after the first's write

    called(tmp_path, body)


def test_objects_may_call_each_other(tmp_path):
    async def body(host, env, module):
        assert await env.ROOM.getByName("a").ask("b", "ask", "a", "plain") == "a"
        assert await env.ROOM.getByName("a").ask("a", "plain") == "a"

    called(tmp_path, body)


def test_endless_mutual_calls_end(tmp_path):
    async def body(host, env, module):
        with pytest.raises(JsException, match="depth limit"):
            await env.ROOM.getByName("a").ask_forever("b", "a")
        with pytest.raises(JsException, match="depth limit"):
            await env.SELF.again()
        await until(lambda: not any(actor.pins for actor in host.actors))

    called(tmp_path, body)


def test_a_deadlock_is_reported(tmp_path):
    async def body(host, env, module):
        a, b = env.ROOM.getByName("a"), env.ROOM.getByName("b")
        # A's section calls B, B calls A: A cannot begin that call before its section ends.
        assert "deadlock" in await asyncio.wait_for(a.ask_blocked("b", "ask", "a", "plain"), 5)
        assert "deadlock" in await asyncio.wait_for(a.ask_blocked("a", "plain"), 5)
        assert "deadlock" in await asyncio.wait_for(a.fetch_blocked("a"), 5)
        # Both in sections that call the other.
        both = await asyncio.wait_for(asyncio.gather(a.ask_blocked("b", "plain"), b.ask_blocked("a", "plain")), 5)
        assert sorted("deadlock" in answer for answer in both) == [False, True]
        # No false alarm: a section that calls an object whose own section does something else.
        assert await asyncio.gather(a.ask_blocked("b", "plain"), b.ask_blocked("c", "plain")) == ["b", "c"]

    called(tmp_path, body)


def test_a_call_inside_a_transaction_is_an_error(tmp_path):
    async def body(host, env, module):
        with pytest.raises(JsException, match=r"inside storage\.transaction"):
            await asyncio.wait_for(env.ROOM.getByName("a").in_transaction("b"), 5)

    called(tmp_path, body)


def test_service_bindings(tmp_path):
    async def body(host, env, module):
        assert await env.ADMIN.whoami(1, 2) == ["boss", 2]
        assert await env.ADMIN.to_room("x") == 2
        assert await (await env.ADMIN.fetch("http://any/path")).text() == "admin http://any/path"
        assert await (await env.SELF.fetch("http://any/path")).text() == "default"
        with pytest.raises(ValueError) as caught:
            await env.ADMIN.fail()
        assert caught.value.remote
        with pytest.raises(TypeError, match="does not implement"):
            await env.ADMIN.nothing()
        with pytest.raises(AttributeError):
            env.ADMIN.scheduled()

    called(tmp_path, body)


def test_a_call_from_another_host(tmp_path):
    ref = e.ObjectRef("Room", id_from_name(namespace_key("t", "Room"), "x"), "x")

    async def body(host, gateway, module):
        gateway.answers_rosters = True
        calls = [("add", encode([[1], {"b": 2}])), ("fail", encode([["value"], {}])), ("size", b"")]
        for number, (method, arguments) in enumerate(calls):
            gateway.link.send(e.Call(number, ref, method, arguments, e.Chain(1)))
        got = {}

        def all_here():
            got.update({result.request: result for result in gateway.take(e.Result)})
            return len(got) == 3

        await until(all_here)
        assert decode(got[0].value) == 3
        assert got[1].fault == e.Fault("ValueError", "bad value")
        assert decode(got[2].value) == 42

    run_hosted(tmp_path, SOURCE, body)


def test_a_call_to_another_host_and_its_end(tmp_path):
    async def body(host, gateway, module):
        gateway.answers_rosters = True
        rooms = host.worker.env.ROOM
        name = next(n for n in map(str, range(100)) if slot_of(str(rooms.idFromName(n)), 2) == 1)
        stub = host.worker.env.ROOM.getByName(name)
        answers = [stub.add(1), stub.add(2), stub.fail("value"), stub.add(3)]
        await settle()
        calls = gateway.take(e.Call)
        assert [decode(call.arguments)[0] for call in calls] == [[1], [2], ["value"], [3]]  # in their order
        gateway.link.send(e.Result(calls[1].request, encode("second")))
        gateway.link.send(e.Result(calls[0].request, encode("first")))
        gateway.link.send(e.Result(calls[2].request, b"", e.Fault("ValueError", "no")))
        gateway.link.send(e.Abort(calls[3].request, "The object's host ended before it answered."))
        assert await asyncio.gather(*answers[:2]) == ["first", "second"]
        with pytest.raises(ValueError, match="no"):
            await answers[2]
        with pytest.raises(Exception, match="host ended"):
            await answers[3]
        assert not host.links[0].responses

    run_hosted(tmp_path, SOURCE, body, slots=2)


def test_type_errors_are_javascripts_too():
    assert issubclass(JsTypeError, TypeError)
