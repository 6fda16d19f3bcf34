"""host/worker/rpc_table.py between hosts: leases, what is said about them, and ends. The test is the other host."""

import pytest

from hosted import REF, run_hosted, until
from roost import events as e
from roost.host.worker import rpc_table
from roost.ids import id_from_name, namespace_key, slot_of
from roost.values import decode, encode

SOURCE = """
from workers import DurableObject, Response, WorkerEntrypoint

BROKEN = []
ENDED = []

class Default(WorkerEntrypoint):
    async def fetch(self, request):
        return Response("")

class Room(DurableObject):
    def __init__(self, ctx, env):
        super().__init__(ctx, env)
        self.kept = None

    async def give(self):
        return lambda x: x + 1

    async def give_stream(self):
        async def pieces():
            try:
                yield b"x"
                yield b"y"
            finally:
                ENDED.append("stream")
        from js import ReadableStream
        return ReadableStream.new(pieces())

    async def give_two(self):
        return [lambda: 1, object()]

    async def take(self, name):
        stub = await self.env.ROOM.getByName(name).give()
        stub.onRpcBroken(lambda error: BROKEN.append(str(error)))
        self.kept = stub
        return await stub(1)

    async def use(self):
        return await self.kept(2)

    async def forget(self):
        self.kept = None
"""


@pytest.fixture
def quick(monkeypatch):
    monkeypatch.setattr(rpc_table, "LEASE_S", 0.2)
    monkeypatch.setattr(rpc_table, "RENEW_S", 0.02)


def in_slot(slot, slots=2):
    key = namespace_key("t", "Room")
    names = (f"n{number}" for number in range(100))
    return next(name for name in names if slot_of(id_from_name(key, name), slots) == slot)


def room(slot):
    name = in_slot(slot)
    return e.ObjectRef("Room", id_from_name(namespace_key("t", "Room"), name), name)


async def call(gateway, target, method, *arguments, number=2):
    gateway.answers_rosters = True
    gateway.link.send(e.Call(number, target, method, encode([list(arguments), {}]), e.Chain()))
    await until(lambda: any(type(event) is e.Result and event.request == number for event in gateway.got))
    (result,) = (event for event in gateway.got if type(event) is e.Result and event.request == number)
    gateway.got.remove(result)
    return result


def reference(result):
    assert result.fault is None, result
    (parts,) = decode(result.value).values()
    return parts


def test_what_nobody_says_to_hold_ends(tmp_path, quick):
    async def test(host, gateway, module):
        kind, home, number = reference(await call(gateway, REF, "give"))
        assert (kind, len(host.rpc), host.counters.rpc_stubs) == ("stub", 1, 1)
        stub = e.ObjectRef("", home, str(number))
        answer = await call(gateway, stub, "", 5)
        assert decode(answer.value) == 6
        await until(lambda: not len(host.rpc))
        assert (host.counters.rpc_stubs_expired, host.counters.rpc_stubs_held) == (1, 0)
        answer = await call(gateway, stub, "x", 5)
        assert (answer.fault.name, "was released" in answer.fault.message) == ("\0gone", True)
        assert not any("RPC" in what for actor in host.actors for what in actor.pins.values())

    run_hosted(tmp_path, SOURCE, test, data=tmp_path / "data")


def test_what_is_held_stays_until_it_is_released(tmp_path, quick):
    async def test(host, gateway, module):
        _, home, number = reference(await call(gateway, REF, "give"))
        table = e.ObjectRef("", home)
        for _ in range(20):
            gateway.link.send(e.Call(4, table, "hold", encode([number, 999]), e.Chain()))
            await until(lambda: gateway.take(e.Result))
        gateway.link.send(e.Call(4, table, "hold", encode([number, 999]), e.Chain()))
        await until(lambda: [decode(result.value) for result in gateway.take(e.Result)] == [[999]])
        assert host.counters.rpc_stubs_expired == 0
        gateway.link.send(e.Call(4, table, "release", encode([number]), e.Chain()))
        await until(lambda: not len(host.rpc))
        assert host.counters.rpc_stubs_expired == 0

    run_hosted(tmp_path, SOURCE, test, data=tmp_path / "data")


def test_a_stream_that_nobody_reads_is_closed(tmp_path, quick):
    async def test(host, gateway, module):
        kind, home, number = reference(await call(gateway, REF, "give_stream"))
        assert kind == "readable"
        assert decode((await call(gateway, e.ObjectRef("", home, str(number)), "pull")).value) == [b"x"]
        await until(lambda: module["ENDED"] == ["stream"])

    run_hosted(tmp_path, SOURCE, test, data=tmp_path / "data")


def test_what_is_refused_keeps_nothing(tmp_path):
    async def test(host, gateway, module):
        assert "object" in (await call(gateway, REF, "give_two")).fault.message
        assert (host.counters.rpc_stubs, len(host.rpc)) == (1, 0)

    run_hosted(tmp_path, SOURCE, test, data=tmp_path / "data")


def test_another_life_is_told_so(tmp_path):
    async def test(host, gateway, module):
        for name in ("7", None):
            answer = await call(gateway, e.ObjectRef("", "ab" * 32, name), "hold" if name is None else "")
            assert "its host has ended" in answer.fault.message

    run_hosted(tmp_path, SOURCE, test, data=tmp_path / "data")


def test_the_holder_says_what_it_holds(tmp_path, quick):
    """And is told what is gone; what it drops it says."""
    here, there, home = room(0), room(1), "cd" * 32

    async def test(host, gateway, module):
        def asked(method):
            for event in list(gateway.got):
                if type(event) is e.Call and event.method == method:
                    gateway.got.remove(event)
                    return event
            return None

        async def wait_asked(method):
            found = []
            await until(lambda: found or ((event := asked(method)) and found.append(event)) or found)
            return found[0]

        async def take():
            gateway.link.send(e.Call(2, here, "take", encode([[there.name], {}]), e.Chain()))
            give = await wait_asked("give")
            gateway.link.send(e.Result(give.request, encode({"\0roost": ["stub", home, 5]})))
            use = await wait_asked("")
            assert (use.target.id, use.target.name, decode(use.arguments)) == (home, "5", [[1], {}])
            gateway.link.send(e.Result(use.request, encode(10)))
            await until(lambda: gateway.take(e.Result))

        gateway.answers_rosters = True
        await take()
        for _ in range(3):
            hold = await wait_asked("hold")
            assert (hold.target, decode(hold.arguments)) == (e.ObjectRef("", home), [5])
            gateway.link.send(e.Result(hold.request, encode([])))
        await call(gateway, here, "forget", number=6)
        assert decode((await wait_asked("release")).arguments) == [5]

        await take()
        hold = await wait_asked("hold")
        gateway.link.send(e.Result(hold.request, encode([5])))
        await until(lambda: module["BROKEN"])
        assert "can no longer be used" in module["BROKEN"][0]
        assert "can no longer be used" in (await call(gateway, here, "use", number=8)).fault.message
        assert not asked("")  # it is known here

    run_hosted(tmp_path, SOURCE, test, data=tmp_path / "data", slots=2)


def test_the_holder_sleeps(tmp_path, quick):
    here, there, home = room(0), room(1), "cd" * 32

    async def test(host, gateway, module):
        gateway.answers_rosters = True
        gateway.link.send(e.Call(2, here, "take", encode([[there.name], {}]), e.Chain()))
        for value in ({"\0roost": ["stub", home, 5]}, 10):
            await until(lambda: any(type(event) is e.Call for event in gateway.got))
            (asked,) = gateway.take(e.Call)
            gateway.link.send(e.Result(asked.request, encode(value)))
        await until(lambda: len(host.actors) == 0)
        await until(lambda: [event for event in gateway.got if type(event) is e.Call and event.method == "release"])

    run_hosted(tmp_path, SOURCE, test, data=tmp_path / "data", slots=2, idle_s=0.05)
