"""`AbortController`, `AbortSignal`, `signal` of fetches, and `request.signal`."""

import json
import socket
import struct

import pytest

from conftest import write_app
from roost.api.abort import AbortSignal
from roost.errors import JsTypeError
from roost.testing import running, wait_for

SOURCE = """
import asyncio
import js
from js import AbortController, AbortSignal
from roost.api.runtime import current_context
from workers import DurableObject, Request, Response, WorkerEntrypoint, fetch

SEEN = []

class Box(DurableObject):
    def told(self, event):
        "Runs as the object's, though somebody else aborts."
        self.ctx.waitUntil(asyncio.sleep(0))
        SEEN.append("box" if current_context.get() is self.ctx._host else "somebody else")

    async def fetch(self, request):
        request.signal.addEventListener("abort", self.told)
        if request.url.endswith("/quick"):
            return Response("quick")
        await asyncio.sleep(4)
        return Response("slow")

def kind(error):
    return [getattr(error, "name", type(error).__name__), getattr(error, "message", str(error))]

class Default(WorkerEntrypoint):
    async def fetch(self, request):
        what = request.url.rsplit("/", 1)[1]
        result = await getattr(self, what)(request)
        return result if isinstance(result, Response) else Response.json(result)

    async def seen(self, request):
        return SEEN

    async def slow(self, request):
        async def pieces():
            yield b"one"
            await asyncio.sleep(4)
            yield b"two"
        return Response(pieces())

    async def silent(self, request):
        await asyncio.sleep(4)
        return Response("late")

    async def signals(self, request):
        found = []
        controller = AbortController.new()
        signal = controller.signal
        again = lambda event: found.append(["removed"])
        signal.addEventListener("abort", lambda event: found.append([event.type, event.target is signal]))
        signal.addEventListener("abort", again)
        signal.removeEventListener("abort", again)
        signal.onabort = lambda event: found.append("onabort")
        both = AbortSignal.any(each for each in [AbortController().signal, signal])
        signal.throwIfAborted()
        found.append([signal.aborted, both.aborted])
        controller.abort()
        controller.abort("a second time")
        found += [[signal.aborted, both.aborted], kind(signal.reason), both.reason is signal.reason]
        try:
            signal.throwIfAborted()
        except Exception as error:
            found.append(error is signal.reason)
        found.append(AbortSignal.abort("why").reason)
        found.append(AbortSignal.any([AbortSignal.abort("at once"), signal]).reason)
        timed = AbortSignal.timeout(10)
        while not timed.aborted:
            await asyncio.sleep(0.01)
        found.append(kind(timed.reason))
        for wrong in (lambda: signal.addEventListener("abort", 5), lambda: Request("http://a/", signal=5)):
            try:
                wrong()
            except TypeError as error:
                found.append(str(error))
        return found

    async def fetches(self, request):
        found = []
        up, box = self.env.UP, self.env.BOX.getByName("a")
        controller = AbortController()
        for call in (lambda signal: fetch(up + "/silent", {"signal": signal}),
                     lambda signal: fetch(Request.new(up + "/silent", signal=signal)),
                     lambda signal: box.fetch("http://a/slow", signal=signal),
                     lambda signal: self.env.SELF.fetch("http://a/silent", signal=signal)):
            for signal in (AbortSignal.timeout(50), AbortSignal.abort("before")):
                try:
                    await call(signal)
                except Exception as error:
                    found.append(kind(error)[0])
        signal = AbortSignal.timeout(5000)
        found.append(await (await box.fetch("http://a/quick", signal=signal)).text())
        found.append((await fetch(up + "/seen", signal=signal)).status)
        return found

    async def stubborn(self, request):
        "Who is called does not have to agree; and a caller's own end is not the signal's."
        controller, found = AbortController(), []
        call = asyncio.ensure_future(self.env.SELF.fetch("http://a/clings", signal=controller.signal))
        await asyncio.sleep(0.05)
        controller.abort()
        try:
            found.append((await call).status)
        except Exception as error:
            found.append(kind(error)[0])
        try:
            async with asyncio.timeout(0.05):
                await self.env.SELF.fetch("http://a/silent", signal=AbortController().signal)
        except TimeoutError:
            found.append("timeout")
        return found

    async def clings(self, request):
        try:
            await asyncio.sleep(4)
        except asyncio.CancelledError:
            await asyncio.sleep(1)
        return Response("all the same")

    async def many_timeouts(self, request):
        "A signal that nobody has any more needs no timer."
        for _ in range(12_000):
            AbortSignal.timeout(60_000)
        heard = asyncio.get_running_loop().create_future()
        AbortSignal.timeout(20).addEventListener("abort", lambda event: heard.set_result("heard"))
        return [await asyncio.wait_for(heard, 3)]

    async def get_with_body(self, request):
        again = Request.new("http://a/", request.clone())
        return [again.method, (await Request(again, {"headers": {"x": "1"}}).text())]

    async def body(self, request):
        controller = AbortController()
        answer = await fetch(self.env.UP + "/slow", signal=controller.signal)
        reader = answer.body.getReader()
        first = bytes((await reader.read()).value).decode()
        asyncio.get_running_loop().call_later(0.05, controller.abort)
        try:
            await reader.read()
        except Exception as error:
            return [first, *kind(error)]

    async def left(self, request):
        aborted = asyncio.get_running_loop().create_future()
        request.signal.addEventListener("abort", lambda event: aborted.set_result(event.target.reason.name))
        SEEN.append("waits")
        SEEN.append(await aborted)

    async def asks_late(self, request):
        SEEN.append("is here")
        for _ in range(500):
            await asyncio.sleep(0.02)
            if request.signal.aborted:
                SEEN.append("knows")
                return Response("")

    async def hangs_on_box(self, request):
        "A caller that gives up is gone for the object, too, on whatever host."
        for name in "abcdefgh":
            try:
                await self.env.BOX.getByName(name).fetch("http://a/slow", signal=AbortSignal.timeout(30))
            except Exception:
                pass
        return []
"""


SELF = '[[services]]\nbinding = "SELF"\nservice = "test-app"\n'


@pytest.fixture(scope="module", params=["--hosts=2", "--inline"])
def node(request, tmp_path_factory):
    folder = tmp_path_factory.mktemp("abort")
    app = write_app(folder / "app", SOURCE, "Box", config=SELF)
    with (
        running(write_app(folder / "up", SOURCE, "Box"), "--hosts=1") as up,
        running(app, "--var", f"UP:http://127.0.0.1:{up.port}", request.param) as node,
    ):
        yield node


def ask(node, path):
    status, _, body = node.get(f"/{path}")
    assert status == 200, node.log[-10:]
    return json.loads(body)


def test_a_long_lived_signal_keeps_nothing_of_those_that_followed_it():
    source, follower = AbortSignal(), AbortSignal()
    for _ in range(3):
        AbortSignal.any([source, AbortSignal()])
    kept = AbortSignal.any([follower, source])
    assert len(source._watchers) == 1
    source.abort_now("why")
    assert kept.reason == "why"
    with pytest.raises(JsTypeError, match="1000 listeners"):
        for number in range(1001):
            source.addEventListener("abort", lambda event, number=number: None)


def test_signals(node):
    assert ask(node, "signals") == [
        [False, False], ["abort", True], "onabort", [True, True], ["AbortError", "The operation was aborted"], True, True,
        "why", "at once", ["TimeoutError", "The operation was aborted due to timeout"],
        "TypeError: addEventListener('abort') needs a function, not int.", "TypeError: signal is an AbortSignal, not int.",
    ]  # fmt: skip


def test_fetches_end_with_their_signal(node):
    assert ask(node, "fetches") == [*["TimeoutError", "Error"] * 4, "quick", 200]


def test_signals_and_other_ends(node):
    assert ask(node, "stubborn") == ["AbortError", "timeout"]
    assert ask(node, "many_timeouts") == ["heard"]
    with socket.create_connection(("127.0.0.1", node.port), timeout=5) as sock:
        sock.sendall(b"GET /get_with_body HTTP/1.1\r\nHost: a\r\nConnection: close\r\nContent-Length: 3\r\n\r\nabc")
        assert b'["GET","abc"]' in b"".join(iter(lambda: sock.recv(10_000), b""))


def test_a_body_ends_with_the_signal(node):
    assert ask(node, "body") == ["one", "AbortError", "The operation was aborted"]


def seen(node):
    """Of all hosts: a request lands on any."""
    return [each for _ in range(8) for each in ask(node, "seen")]


@pytest.mark.parametrize(("path", "before", "after"), [("left", "waits", "AbortError"), ("asks_late", "is here", "knows")])
def test_a_client_that_leaves_aborts_its_requests_signal(node, path, before, after):
    with socket.create_connection(("127.0.0.1", node.port), timeout=5) as sock:
        sock.sendall(f"GET /{path} HTTP/1.1\r\nHost: a\r\n\r\n".encode())
        wait_for(lambda: before in seen(node), path, timeout_s=10)
        sock.setsockopt(
            socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0)
        )  # a reset: one that only ends its half
    wait_for(lambda: after in seen(node), path, timeout_s=10)  # may still read, and is waited for for some seconds


def test_an_object_is_told_that_its_caller_gave_up(node):
    ask(node, "hangs_on_box")
    wait_for(lambda: seen(node).count("box") >= 8, "the objects' requests", timeout_s=10)
