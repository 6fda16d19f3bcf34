"""What calls pass by reference: functions, targets, streams; on one host, across hosts, and in one process.

Source: platform documentation, "Remote-procedure call (RPC)".
"""

import contextlib
import http.client
import itertools
import json
import os
import re
import signal

import pytest

from conftest import write_app
from roost.testing import running, wait_for

SOURCE = """
import asyncio
from js import ReadableStream, TransformStream, WritableStream
from workers import DurableObject, Request, Response, RpcStub, RpcTarget, WorkerEntrypoint

class Counter(RpcTarget):
    def __init__(self, value=0):
        self.value = value
        self.hidden = "an attribute of the instance"

    def add(self, amount=1):
        self.value += amount
        return self.value

    @property
    def now(self):
        return self.value

    @property
    def other(self):
        return Counter(self.value + 100)

    def child(self):
        return Counter(self.value + 1000)

    async def fail(self):
        raise ValueError("not today")

    def check(self, what):
        return ["check", what]

    def begin(self):
        return "begun"

    async def of(self):
        return "of"

class Hub(DurableObject):
    def __init__(self, ctx, env):
        super().__init__(ctx, env)
        self.kept = []
        self.broken = []

    async def call(self, function, *arguments):
        return await function(*arguments)

    async def call_each(self, functions):
        return [await function(number) for number, function in enumerate(functions.values())]

    async def keep(self, stub, duplicate=True):
        self.kept.append(stub.dup() if duplicate else stub)

    async def use_kept(self, *arguments):
        return [await stub(*arguments) for stub in self.kept]

    async def take_from(self, name):
        functions = await self.env.HUB.getByName(name).functions()
        self.kept.append(functions.later)
        functions.later.onRpcBroken(lambda error: self.broken.append(str(error)))

    async def seen_broken(self):
        return self.broken

    async def drop(self):
        self.kept.clear()

    async def dispose(self):
        pass

    async def end_kept(self):
        while self.kept:
            self.kept.pop().dispose()

    def counter(self, value=0):
        return Counter(value)

    async def many(self, count):
        return [Counter(number) for number in range(count)]

    async def functions(self):
        return {"double": lambda x: x * 2, "later": self.later}

    async def later(self, x):
        await asyncio.sleep(0)
        self.ctx.storage.kv.put("x", x)
        return x + 1

    async def pass_to(self, name, stub):
        return await self.env.HUB.getByName(name).call(stub, "through")

    async def pass_back(self, stub):
        return {"same": stub}

    async def size_of(self, stream):
        return sum([len(chunk) async for chunk in stream])

    async def pieces(self, count):
        async def make():
            try:
                for number in range(count):
                    yield f"{number},".encode()
                    await asyncio.sleep(0)
            finally:
                self.ended = True
        self.ended = False
        return ReadableStream.new(make())

    async def has_ended(self):
        return self.ended

    async def slow_pieces(self):
        async def make():
            try:
                yield b"0,"
                for number in range(1, 4):
                    await asyncio.sleep(0.2)
                    yield f"{number},".encode()
                await asyncio.Event().wait()
            finally:
                self.ended = True
        self.ended = False
        return ReadableStream.new(make())

    async def pass_function(self, stub):
        return lambda: stub.dup

    async def answer(self):
        return Response(await self.pieces(5), status=201, headers={"X-A": "b"})

    async def text_of(self, request):
        return [request.method, await request.text()]

    async def write_into(self, stream, count):
        writer = stream.getWriter()
        for number in range(count):
            await writer.write(f"{number};".encode())
        await writer.close()

    async def broken_stream(self):
        async def make():
            yield b"first"
            raise ValueError("half of it")
        return ReadableStream.new(make())

class Service(WorkerEntrypoint):
    async def counter(self, value):
        return Counter(value)

    async def keeps_itself(self):
        self.mine = RpcStub(self.greeter)
        return 1

    async def greeter(self, greeting):
        return lambda name: f"{greeting}, {name}"

class Default(WorkerEntrypoint):
    async def fetch(self, request):
        path, _, query = request.url.partition("://")[2].partition("/")[2].partition("?")
        what, _, self.name = path.partition("/")
        self.hub = self.env.HUB.getByName(self.name)
        try:
            result = await getattr(self, what)(request)
        except Exception as error:
            return Response(str(error), 599)
        return result if isinstance(result, Response) else Response.json(result)

    async def functions(self, request):
        seen = []
        async def later(x):
            await asyncio.sleep(0.001)
            seen.append(x)
            return x * 2
        bound = Counter(5)
        return [
            await self.hub.call(lambda x: x + 1, 1),
            await self.hub.call(later, 21), seen,
            await self.hub.call(bound.add, 2), bound.value,
            await self.hub.call_each({"a": lambda n: ["a", n], "b": later}),
        ]

    async def targets(self, request):
        counter = await self.hub.counter(3)
        said = [await counter.add(), await counter.add(5), await counter.now, await counter.add(amount=1)]
        for name in ("hidden", "fail", "nothing"):
            try:
                await getattr(counter, name)()
            except Exception as error:
                said.append(str(error))
        return said

    async def from_results(self, request):
        given = await self.hub.functions()
        return [await given.double(4), await given["later"](1), await given.later(2)]

    async def pipelined(self, request):
        read = self.hub.counter(1).now
        return [
            await self.hub.counter(1).add(2), await self.hub.counter(1).child().add(1), await read,
            await self.hub.counter(1).other.child().add(), await self.hub.functions().double(3),
        ]

    async def not_a_function(self, request):
        return await self.hub.functions().triple(3)

    async def passed_on(self, request):
        other = request.url.partition("?")[2]
        counter = Counter(1)
        said = await self.hub.pass_to(other, lambda text: text + "!")
        back = await self.hub.pass_back(lambda: "home")
        return [said, await back.same()]

    async def disposed(self, request):
        counter = await self.hub.counter(1)
        again = counter.dup()
        with counter:
            first = await counter.add()
        said = [first, await again.add()]
        again.dispose()
        for stub in (counter, again):
            try:
                await stub.add()
            except Exception as error:
                said.append(str(error))
        return said

    async def own_stub(self, request):
        stub = RpcStub(Counter(7))
        return [await stub.add(), repr(stub)]

    async def keep(self, request):
        await self.hub.keep(lambda text: f"called with {text}")
        return await self.hub.use_kept("x")

    async def keep_without_dup(self, request):
        await self.hub.keep(lambda text: text, False)
        return await self.hub.use_kept("x")

    async def use_kept(self, request):
        return await self.hub.use_kept("y")

    async def keep_objects(self, request):
        await self.hub.take_from(request.url.partition("?")[2])
        return await self.hub.use_kept(1)

    async def seen_broken(self, request):
        return await self.hub.seen_broken()

    async def drop(self, request):
        return await self.hub.drop()

    async def too_many(self, request):
        try:
            return len(await self.hub.many(1001))
        except Exception as error:
            return [str(error), len(await self.hub.many(1000))]

    async def service(self, request):
        counter = await self.env.SERVICE.counter(5)
        greet = await self.env.SERVICE.greeter("Hello")
        await asyncio.sleep(0.01)
        return [await counter.add(), await greet("you"), await self.env.SERVICE.counter(1).add(1)]

    async def reserved(self, request):
        counter = await self.hub.counter(1)
        return [await counter.check(5), await counter.begin(), await counter.of(), await self.hub.counter(1).begin()]

    async def keeps_itself(self, request):
        return await self.env.SERVICE.keeps_itself()

    async def never_passed(self, request):
        counter = await self.hub.counter(1)
        counter.dispose()
        try:
            await counter.add(lambda: 1)
        except Exception as error:
            try:
                await self.hub.functions().triple(lambda: 1)
            except Exception as other:
                return [str(error), str(other)]

    async def patient(self, request):
        stream = await self.hub.slow_pieces()
        reader, got = stream.getReader(), []
        while len(got) < 4:
            try:
                got.append(bytes((await asyncio.wait_for(reader.read(), 0.05)).value).decode())
            except TimeoutError:
                pass
        await reader.cancel()
        return got

    async def cancel_while_reading(self, request):
        stream = await self.hub.slow_pieces()
        reader = stream.getReader()
        for _ in range(4):
            await reader.read()
        reading = asyncio.create_task(reader.read())
        await asyncio.sleep(0.05)
        await reader.cancel()
        return bool((await reading).done)

    async def silent(self, request):
        return Response(await self.hub.slow_pieces())

    async def upload(self, request):
        return await self.hub.size_of(request.body)

    async def download(self, request):
        return Response(await self.hub.pieces(5))

    async def read_some(self, request):
        reader = (await self.hub.pieces(100_000)).getReader()
        first = bytes((await reader.read()).value).decode()
        await reader.cancel()
        return first

    async def has_ended(self, request):
        return await self.hub.has_ended()

    async def response(self, request):
        answer = await self.hub.answer()
        return [answer.status, answer.headers["x-a"], await answer.text()]

    async def request_with_stream(self, request):
        return await self.hub.text_of(Request("http://x/", method="POST", body=request.body))

    async def sink(self, request):
        got = []
        sink = WritableStream.new(write=lambda chunk, _: got.append(bytes(chunk).decode()), close=lambda: got.append("end"))
        await self.hub.write_into(sink, 3)
        return got

    async def transform(self, request):
        pipe = TransformStream.new()
        writing = self.hub.write_into(pipe.writable, 40)
        text = "".join([bytes(chunk).decode() async for chunk in pipe.readable])
        await writing
        return text

    async def broken_stream(self, request):
        got = []
        try:
            async for chunk in await self.hub.broken_stream():
                got.append(bytes(chunk).decode())
        except ValueError as error:
            got.append(str(error))
        return got
"""

NAMES = [f"hub-{number}" for number in (1, 4, 5, 6)]  # on both hosts, in turn


@pytest.fixture(scope="module", params=["inline", "one host", "two of each"])
def node(request, tmp_path_factory):
    options = {"inline": ["--inline"], "one host": [], "two of each": ["--hosts", "2", "--gateways", "2"]}[request.param]
    config = '[[services]]\nbinding = "SERVICE"\nservice = "test-app"\nentrypoint = "Service"'
    app = write_app(tmp_path_factory.mktemp("rpc") / "app", SOURCE, "Hub", config=config)
    with running(app, *options) as node:
        node.mode = request.param
        yield node


def post(node, path, body):
    connection = http.client.HTTPConnection("127.0.0.1", node.port, timeout=20)
    with contextlib.closing(connection):
        connection.request("POST", path, body)
        answer = connection.getresponse()
        return answer.status, answer.read()


def told(node, path):
    status, _, body = node.get(path)
    return body.decode() if status == 599 else json.loads(body)


def held(node):
    """How many functions, targets and streams others hold, over all hosts."""
    return sum(host["counters"]["rpc_stubs_held"] for host in node.status()["hosts"] if host)


@pytest.mark.parametrize(
    ("what", "right"),
    [
        ("functions", [2, 42, [21, 1], 7, 7, [["a", 0], 2]]),
        (
            "targets",
            [
                4, 9, 9, 10,
                'TypeError: The RPC receiver does not implement the method "hidden".',
                "ValueError: not today",
                'TypeError: The RPC receiver does not implement the method "nothing".',
            ],
        ),
        ("from_results", [8, 2, 3]),
        ("pipelined", [3, 1002, 1, 1102, 6]),
        ("not_a_function", 'TypeError: "triple" is not a function.'),
        ("disposed", [2, 3, "Error: RPC stub used after being disposed.", "Error: RPC stub used after being disposed."]),
        ("own_stub", [8, "<RpcStub>"]),
        ("service", [6, "Hello, you", 2]),
        ("response", [201, "b", "0,1,2,3,4,"]),
        ("sink", ["0;", "1;", "2;", "end"]),
        ("transform", "".join(f"{number};" for number in range(40))),
        ("broken_stream", ["first", "ValueError: half of it"]),
        ("read_some", "0,"),
        ("reserved", [["check", 5], "begun", "of", "begun"]),
        ("keeps_itself", 1),
        ("never_passed", ["Error: RPC stub used after being disposed.", 'TypeError: "triple" is not a function.']),
    ],
)  # fmt: skip
def test_right_value(node, what, right):
    for name in NAMES:
        assert told(node, f"/{what}/{name}") == right, name


def test_a_read_that_is_given_up_loses_nothing(node):
    assert told(node, "/patient/patient") == ["0,", "1,", "2,", "3,"]
    wait_for(lambda: told(node, "/has_ended/patient"), "the source is told that nobody reads on")


def test_a_reader_that_leaves_while_the_source_is_silent(node):
    assert told(node, "/cancel_while_reading/silent") is True
    wait_for(lambda: told(node, "/has_ended/silent"))
    with contextlib.closing(http.client.HTTPConnection("127.0.0.1", node.port, timeout=20)) as connection:
        connection.request("GET", "/silent/silent")
        assert connection.getresponse().read(8) == b"0,1,2,3,"
        assert told(node, "/has_ended/silent") is False
    wait_for(lambda: told(node, "/has_ended/silent"), "the client has left")


def test_a_stub_passed_on(node):
    for number, name in enumerate(NAMES):
        assert told(node, f"/passed_on/{name}?{NAMES[number - 1]}") == ["through!", "home"]


def test_nothing_is_kept(node):
    """Of all that was passed above."""
    wait_for(lambda: held(node) == 0, "the release of all stubs")


def test_a_stub_of_a_request_ends_with_it(node):
    assert told(node, "/keep/a") == ["called with x"]
    assert "can no longer be used" in told(node, "/use_kept/a")
    told(node, "/drop/a")
    assert told(node, "/keep_without_dup/a") == "Error: RPC stub used after being disposed."
    told(node, "/drop/a")
    wait_for(lambda: held(node) == 0)


def test_too_many(node):
    refused, allowed = told(node, "/too_many/b")
    assert refused.startswith("RangeError: the result of many(): 1000 functions") or "1000 functions" in refused
    assert allowed == 1000
    wait_for(lambda: held(node) == 0)
    assert node.host_counter("rpc_stubs_refused") == 1


def test_streams_in(node):
    for name in NAMES:
        status, body = post(node, f"/upload/{name}", b"x" * 3_000_000)
        assert (status, body) == (200, b"3000000")
        status, body = post(node, f"/request_with_stream/{name}", b"y" * 1000)
        assert (status, json.loads(body)) == (200, ["POST", "y" * 1000])
        assert node.get(f"/download/{name}")[2] == b"0,1,2,3,4,"
        assert told(node, f"/read_some/{name}") == "0,"
        wait_for(lambda name=name: told(node, f"/has_ended/{name}"), "the source is told that nobody reads on")


# how stubs end: the holder or the owner sleeps, a host dies


@pytest.mark.parametrize("options", [["--inline"], ["--hosts", "2", "--gateways", "2"]], ids=["inline", "two of each"])
def test_the_holder_sleeps(tmp_path, options):
    """What it holds is released where it came from, which was awake because of it."""
    app = write_app(tmp_path / "app", SOURCE, "Hub", settings="[hibernation]\nidle_s = 0.5")
    with running(app, *options) as node:
        pairs = list(itertools.pairwise(NAMES[:4]))
        for holder, owner in pairs:
            assert told(node, f"/keep_objects/{holder}?{owner}") == [2]
        assert held(node) == len(pairs)
        pinned = [each["object"] for each in node.awake() if any("RPC stubs" in what for what in each["pins"])]
        assert sorted(pinned) == sorted(f"Hub({owner})" for _, owner in pairs)
        wait_for(lambda: held(node) == 0, "all holders are asleep")
        wait_for(lambda: not node.awake(), "and so is who was held")


@pytest.mark.parametrize("options", [["--inline"], ["--hosts", "2", "--gateways", "2"]], ids=["inline", "two of each"])
def test_the_owner_sleeps(tmp_path, options):
    """Being held keeps an object awake for `hibernation.io_pin_s` and no longer."""
    app = write_app(tmp_path / "app", SOURCE, "Hub", settings="[hibernation]\nidle_s = 0.5\nio_pin_s = 1.0")
    with running(app, *options) as node:
        for holder, owner in itertools.pairwise(NAMES[:3]):
            assert told(node, f"/keep_objects/{holder}?{owner}") == [2]
            label = f"Hub({owner})"

            def sleeps(holder=holder, label=label):
                told(node, f"/seen_broken/{holder}")  # the holder has something to do
                return label not in [each["object"] for each in node.awake()]

            wait_for(sleeps, label)
            says = "can no longer be used: (it was released, or )?what it belongs to sleeps or has ended"
            assert re.search(says, told(node, f"/use_kept/{holder}"))
            (broken,) = wait_for(lambda holder=holder: told(node, f"/seen_broken/{holder}"))
            assert re.search(says, broken)
            assert "can no longer be used" in told(node, f"/use_kept/{holder}")


def test_a_host_dies(tmp_path):
    """That of who is held: the holder is told at its next call. That of the holder: see tests/unit/test_rpc_table.py."""
    app = write_app(tmp_path / "app", SOURCE, "Hub")
    with running(app, "--hosts", "2", "--gateways", "2") as node:
        for holder in NAMES:
            told(node, f"/drop/{holder}")
        hosts = [{each["object"] for each in host["awake"]} for host in node.status()["hosts"]]
        holder, owner = (next(iter(sorted(names)))[4:-1] for names in hosts)
        assert told(node, f"/keep_objects/{holder}?{owner}") == [2]
        victim = node.pid("host 1")
        os.kill(victim, signal.SIGKILL)
        wait_for(lambda: node.pid("host 1") != victim and all(node.status()["hosts"]))
        assert "its host has ended: a deploy, or a crash" in told(node, f"/use_kept/{holder}")
        assert "its host has ended" in wait_for(lambda: told(node, f"/seen_broken/{holder}"))[0]
        told(node, f"/drop/{holder}")
        assert told(node, f"/keep_objects/{holder}?{owner}") == [2]
