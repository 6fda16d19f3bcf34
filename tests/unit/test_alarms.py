"""host/objects/alarms.py: alarms by a clock of our own, without network. Numbers are those of the observed behaviour."""

import asyncio

import apsw
import pytest

from hosted import run_hosted, settle, until
from roost import events as e
from roost.api.runtime import Compat
from roost.clock import ManualClock
from roost.errors import JsTypeError
from roost.ids import id_from_name, namespace_key, slot_of
from roost.storage.alarm_index import AlarmIndex, index_path, mark, object_path, prepare
from roost.storage.errors import StorageError

SOURCE = """
from workers import DurableObject, Response, WorkerEntrypoint

RAN, ACT = [], []

class Room(DurableObject):
    def __init__(self, ctx, env):
        super().__init__(ctx, env)

    async def alarm(self, info):
        RAN.append((self.ctx.id.name, info.scheduledTime, info.retryCount, info.isRetry, await self.ctx.storage.getAlarm()))
        await self.ctx.storage.put("ran", (await self.ctx.storage.get("ran") or 0) + 1)
        if ACT:
            await ACT.pop(0)(self)

    async def fetch(self, request):
        return Response("ok")

class Mute(DurableObject):
    def __init__(self, ctx, env):
        super().__init__(ctx, env)

class Default(WorkerEntrypoint):
    pass
"""

T0 = 1_700_000_000_000


def ref_of(name):
    return e.ObjectRef("Room", id_from_name(namespace_key("t", "Room"), name), name)


REF = ref_of("x")


def alarmed(tmp_path, test, **options):
    clock = ManualClock(T0)

    async def body(host, gateway, module):
        gateway.answers_rosters = True
        await test(host, clock, module)

    options = {"clock": clock, "data": tmp_path / "data", "random_bytes": lambda size: bytes(size), **options}
    run_hosted(tmp_path, SOURCE, body, classes=("Room", "Mute"), **options)


async def awake(host, ref=REF):
    actor = host.waking.awaken(ref, "test")
    await until(lambda: actor.instance is not None)
    return actor


async def set_alarm(host, at_ms, ref=REF):
    """As a handler would; returns when it is on the disk."""
    storage = (await awake(host, ref)).instance.ctx.storage
    await storage.setAlarm(at_ms)
    await storage.sync()


async def forget(host):
    """Put every object to sleep."""
    await until(lambda: not any(actor.pins or actor.is_writing for actor in host.actors))
    host.sleeping.put_to_sleep(host.loop.time() + 3600, 0)
    assert len(host.actors) == 0


async def passes(host, clock, seconds):
    clock.advance(seconds)
    host.alarms.check()
    await until(lambda: not host.alarms.running)


def test_w39_wakes_a_sleeping_object_not_before_its_time(tmp_path):
    async def body(host, clock, module):
        await set_alarm(host, T0 + 10_000)
        await forget(host)
        await passes(host, clock, 9.999)
        assert module["RAN"] == []
        await passes(host, clock, 0.001)
        assert module["RAN"] == [("x", T0 + 10_000, 0, False, None)]  # getAlarm() inside is None
        assert await (await awake(host)).instance.ctx.storage.getAlarm() is None
        assert host.disk.alarms.count() == 0
        await passes(host, clock, 3600)
        assert len(module["RAN"]) == 1

    alarmed(tmp_path, body)


def test_a_new_alarm_replaces_the_old_one(tmp_path):
    async def body(host, clock, module):
        for at in (T0 + 5_000, T0 + 20_000, T0 + 10_000):
            await set_alarm(host, at)
        await passes(host, clock, 6)
        assert module["RAN"] == []
        await passes(host, clock, 5)
        await passes(host, clock, 20)
        assert [ran[1] for ran in module["RAN"]] == [T0 + 10_000]

    alarmed(tmp_path, body)


def test_w40_deleted_before_due_never_fires(tmp_path):
    async def body(host, clock, module):
        await set_alarm(host, T0 + 1_000)
        storage = (await awake(host)).instance.ctx.storage
        await storage.deleteAlarm()
        await storage.sync()
        await passes(host, clock, 10)
        assert module["RAN"] == []
        assert host.disk.alarms.count() == 0

    alarmed(tmp_path, body)


def test_w40_delete_inside_is_harmless_and_set_and_delete_inside_fire_once(tmp_path):
    async def body(host, clock, module):
        async def delete(room):
            await room.ctx.storage.deleteAlarm()

        async def set_and_delete(room):
            await room.ctx.storage.setAlarm(T0 + 50_000_000)
            assert await room.ctx.storage.getAlarm() == T0 + 50_000_000
            await room.ctx.storage.deleteAlarm()

        for act in (delete, set_and_delete):
            module["ACT"].append(act)
            module["RAN"].clear()
            await set_alarm(host, clock.wall_ms() + 1_000)
            await passes(host, clock, 1)
            await passes(host, clock, 3600)
            assert len(module["RAN"]) == 1
            assert host.disk.alarms.count() == 0

    alarmed(tmp_path, body)


def test_set_inside_the_handler_fires_again(tmp_path):
    async def body(host, clock, module):
        async def again(room):
            await room.ctx.storage.setAlarm(T0 + 60_000)

        async def now(room):
            await room.ctx.storage.setAlarm(1)  # a past time means now

        module["ACT"] += [again, now]
        await set_alarm(host, T0 + 1_000)
        await passes(host, clock, 1)
        assert await (await awake(host)).instance.ctx.storage.getAlarm() == T0 + 60_000
        await passes(host, clock, 59)
        await until(lambda: len(module["RAN"]) == 3)
        assert [ran[1] for ran in module["RAN"]] == [T0 + 1_000, T0 + 60_000, T0 + 60_000]
        await until(lambda: host.disk.alarms.count() == 0)

    alarmed(tmp_path, body)


@pytest.mark.parametrize(("on", "left"), [(True, None), (False, T0 + 1_000)])
def test_w41_delete_all_takes_the_alarm_by_compatibility_date(tmp_path, on, left):
    async def body(host, clock, module):
        await set_alarm(host, T0 + 1_000)
        storage = (await awake(host)).instance.ctx.storage
        await storage.deleteAll()
        await storage.sync()
        assert await storage.getAlarm() == left
        assert host.disk.alarms.count() == (left is not None)

    alarmed(tmp_path, body, compat=Compat(delete_all_alarm=on))


def test_w49_the_index_is_told_of_an_earlier_alarm_before_the_commit_and_of_a_later_one_after(tmp_path):
    async def body(host, clock, module):
        order = []
        actor = await awake(host)
        database, index = actor.store._database, host.disk.alarms
        commit, put, remove, sync = database.commit, index.put, index.remove, database.sync
        database.commit = lambda: (order.append("commit"), commit())[1]
        database.sync = lambda: (sync(), order.append("on disk"))[0]
        index_sync = index.sync
        index.sync = lambda: (index_sync(), order.append("index on disk"))[0]
        index.put = lambda ref, due_ms, *more: (order.append(f"index {due_ms - T0}"), put(ref, due_ms, *more))
        index.remove = lambda ref: (order.append("index none"), remove(ref))
        storage = actor.instance.ctx.storage
        for due in (10_000, 5_000, 20_000, None):
            order.clear()
            await (storage.deleteAlarm() if due is None else storage.setAlarm(T0 + due))
            await storage.sync()
            told = f"index {due or 'none'}"
            earlier = due in (10_000, 5_000)  # than none, than 10,000
            assert order == ([told, "commit", "index on disk", "on disk"] if earlier else ["commit", "on disk", told])

    alarmed(tmp_path, body)


def test_w49_a_crash_after_the_index_was_told_only_wakes_for_nothing(tmp_path):
    async def body(host, clock, module):
        host.disk.alarms.put(REF, T0 + 1_000)  # and the commit never came
        await passes(host, clock, 1)
        assert module["RAN"] == []
        assert host.disk.alarms.count() == 0
        await set_alarm(host, T0 + 50_000)
        host.disk.alarms.put(REF, T0 + 2_000)
        await passes(host, clock, 1)
        assert module["RAN"] == []
        assert host.disk.alarms.due_ms(REF) == T0 + 50_000

    alarmed(tmp_path, body)


def test_w50_if_the_commit_fails_the_alarm_runs_again(tmp_path):
    async def body(host, clock, module):
        async def lose(room):
            room.ctx.storage._store._database.connection().execute("ROLLBACK")  # as a full disk does

        module["ACT"].append(lose)
        await set_alarm(host, T0 + 1_000)
        await passes(host, clock, 1)
        assert len(module["RAN"]) == 1
        assert len(host.actors) == 0  # reset
        await passes(host, clock, 2.0)
        assert [(ran[1], ran[2]) for ran in module["RAN"]] == [(T0 + 1_000, 0), (T0 + 1_000, 0)]  # not counted
        assert (await awake(host)).instance.ctx.storage.kv.get("ran") == 1
        assert host.disk.alarms.count() == 0

    alarmed(tmp_path, body)


def test_setbacks_are_not_counted_and_their_pauses_grow(tmp_path):
    async def body(host, clock, module):
        async def lose(room):
            room.ctx.storage._store._database.connection().execute("ROLLBACK")

        module["ACT"] += [lose] * 8
        await set_alarm(host, T0 + 1_000)
        await passes(host, clock, 1)
        for setback, pause_s in enumerate((2, 4, 8, 16, 32, 64, 128, 256)):
            assert len(module["RAN"]) == setback + 1
            await passes(host, clock, pause_s - 0.001)
            assert len(module["RAN"]) == setback + 1
            await passes(host, clock, 0.001)
        assert {ran[2] for ran in module["RAN"]} == {0}
        assert (await awake(host)).instance.ctx.storage.kv.get("ran") == 1

    alarmed(tmp_path, body)


def test_an_index_that_cannot_be_told_is_tried_again_later_and_said_once_a_minute(tmp_path, caplog):
    async def body(host, clock, module):
        later = []
        host.loop.call_later, call_later = (
            lambda delay, call, *more, **options: (
                later.append((delay, call, more)) if delay == 4.0 else call_later(delay, call, *more, **options)
            ),
            host.loop.call_later,
        )
        await set_alarm(host, T0 + 1_000)
        index = host.disk.alarms
        put, remove = index.put, index.remove

        def full(*_):
            raise StorageError("the disk is full")

        index.put = index.remove = full
        for turn in range(3):
            clock.advance(1)
            host.alarms.check()
            await until(lambda turn=turn: len(later) == turn + 1)
            assert host.alarms.running == 1  # it is not due again before that
            if turn == 2:
                index.put, index.remove = put, remove
            _, over, more = later[-1]
            over(*more)
        host.alarms.check()
        await until(lambda: not host.alarms.running)
        assert len(module["RAN"]) == 1  # the object itself knows that it ran
        assert host.disk.alarms.count() == 0
        said = [each for each in caplog.records if "times so far" in each.getMessage()]
        assert len(said) == 1
        assert "tried again in 4 s" in said[0].getMessage()

    alarmed(tmp_path, body)


def test_a_handler_that_fails_is_logged_and_counted(tmp_path, caplog):
    async def body(host, clock, module):
        async def fail(room):
            raise ValueError("not today")

        module["ACT"] += [fail]
        await set_alarm(host, T0 + 1_000)
        await passes(host, clock, 1)
        assert host.counters.alarms == 1
        assert caplog.text.count("alarm failed") == 1
        assert "ValueError: not today" in caplog.text
        await passes(host, clock, 2)
        assert host.counters.alarms == 2
        assert caplog.text.count("alarm failed") == 1

    alarmed(tmp_path, body)


def test_six_counted_retries_with_growing_pauses_then_it_is_deleted(tmp_path):
    async def body(host, clock, module):
        async def fail(room):
            raise ValueError("no")

        module["ACT"] += [fail] * 20
        await set_alarm(host, T0 + 1_000)
        await passes(host, clock, 1)
        for retry in range(6):
            assert await (await awake(host)).instance.ctx.storage.getAlarm() == T0 + 1_000  # still set
            await passes(host, clock, 2 * 2**retry - 0.001)
            assert len(module["RAN"]) == retry + 1
            await passes(host, clock, 0.001)
            assert module["RAN"][-1][1:4] == (T0 + 1_000, retry + 1, True)
            await forget(host)
        await passes(host, clock, 0)
        await until(lambda: host.disk.alarms.count() == 0)
        await passes(host, clock, 86_400)
        assert len(module["RAN"]) == 7
        assert await (await awake(host)).instance.ctx.storage.getAlarm() is None
        assert (await awake(host)).instance.ctx.storage.kv.get("ran") == 7  # what it wrote is kept

    alarmed(tmp_path, body)


def test_set_inside_a_failing_handler_replaces_the_retry(tmp_path):
    async def body(host, clock, module):
        async def set_and_fail(room):
            await room.ctx.storage.setAlarm(T0 + 30_000)
            raise ValueError("no")

        module["ACT"].append(set_and_fail)
        await set_alarm(host, T0 + 1_000)
        await passes(host, clock, 1)
        await passes(host, clock, 20)
        assert len(module["RAN"]) == 1
        await passes(host, clock, 10)
        assert module["RAN"][1][1:4] == (T0 + 30_000, 0, False)

    alarmed(tmp_path, body)


@pytest.mark.parametrize("retry", [True, False])
def test_abort_in_the_handler_retries_unless_told_not_to(tmp_path, retry):
    async def body(host, clock, module):
        async def abort(room):
            room.ctx.storage.kv.put("lost", 1)
            room.ctx.abort("enough", retryAlarm=retry)

        module["ACT"].append(abort)
        await set_alarm(host, T0 + 1_000)
        await passes(host, clock, 1)
        assert host.disk.alarms.count() == retry
        await passes(host, clock, 2)
        assert [ran[2] for ran in module["RAN"]] == [0, 1][: 1 + retry]
        storage = (await awake(host)).instance.ctx.storage
        assert await storage.getAlarm() is None
        assert storage.kv.get("lost") is None
        assert storage.kv.get("ran") == (1 if retry else None)

    alarmed(tmp_path, body)


def test_rolled_back_with_its_transaction(tmp_path):
    async def body(host, clock, module):
        storage = (await awake(host)).instance.ctx.storage

        async def fails(txn):
            await txn.setAlarm(T0 + 100_000)
            assert await txn.getAlarm() == T0 + 100_000
            raise ValueError

        with pytest.raises(ValueError):
            await storage.transaction(fails)
        assert await storage.getAlarm() is None
        await storage.sync()
        assert host.disk.alarms.count() == 0

        async def inside(room):  # a rolled back set does not count as setting it anew
            with pytest.raises(ValueError):
                await room.ctx.storage.transaction(fails)

        module["ACT"].append(inside)
        await set_alarm(host, T0 + 2_000)
        await passes(host, clock, 2)
        assert await storage.getAlarm() is None
        assert len(module["RAN"]) == 1

    alarmed(tmp_path, body)


@pytest.mark.parametrize("bad", [0, -5, float("nan"), float("inf"), "soon", None, True, 9e15])
def test_bad_times(tmp_path, bad):
    async def body(host, clock, module):
        with pytest.raises(JsTypeError, match=r"setAlarm\(\)"):
            await (await awake(host)).instance.ctx.storage.setAlarm(bad)

    alarmed(tmp_path, body)


def test_a_class_without_a_handler(tmp_path):
    async def body(host, clock, module):
        mute = e.ObjectRef("Mute", id_from_name(namespace_key("t", "Mute"), "m"), "m")
        with pytest.raises(JsTypeError, match="must have an alarm"):
            await (await awake(host, mute)).instance.ctx.storage.setAlarm(T0)

    alarmed(tmp_path, body)


def test_survives_a_restart_and_another_number_of_hosts(tmp_path):
    names = [f"room {number}" for number in range(20)]

    async def first(host, clock, module):
        for name in names:
            await set_alarm(host, T0 + 1_000, ref_of(name))

    alarmed(tmp_path, first)
    prepare(tmp_path / "data", 3)
    fired = []
    for slot in range(3):

        async def then(host, clock, module):
            await passes(host, clock, 1)
            fired.extend(ran[0] for ran in module["RAN"])

        alarmed(tmp_path, then, slot=slot, slots=3)
    assert sorted(fired) == sorted(names)


@pytest.mark.parametrize("how", ["lost", "damaged", "damaged inside", "power loss", "another count"])
def test_a_lost_index_is_made_anew_from_the_objects(tmp_path, how, caplog):
    data = tmp_path / "data"

    async def first(host, clock, module):
        for number in range(200 if how == "damaged inside" else 0):  # more than a page of them
            host.disk.alarms.put(ref_of(f"other {number}"), T0 + 5_000)
        await set_alarm(host, T0 + 1_000)
        storage = (await awake(host, ref_of("without an alarm"))).instance.ctx.storage
        await storage.put("a", 1)
        await storage.sync()
        await forget(host)

    prepare(data, 1)
    alarmed(tmp_path, first)
    index = index_path(data, 0, 1)
    mark(data, 1, clean=True)
    if how == "lost":
        for file in (data / "alarms").iterdir():
            file.unlink()
    elif how == "damaged":
        index.write_bytes(b"rubbish" * 1000)
    elif how == "damaged inside":  # it opens, and only looking at every page finds it
        content = bytearray(index.read_bytes())
        content[-4096 * 2 + 100 : -4096] = bytes(3996)
        index.write_bytes(content)
        assert apsw.Connection(str(index)).execute("SELECT count(*) FROM cron").fetchone() == (0,)
    elif how == "another count":
        other = AlarmIndex(index)
        other.remove(REF)
        other.close()
    else:
        mark(data, 1, clean=False)
        state = data / "alarms" / "state.json"
        state.write_text(state.read_text().replace('"boot_id": "', '"boot_id": "another '))
        other = AlarmIndex(index)
        other.remove(REF)
        other.close()
    prepare(data, 1)
    assert "made anew from the objects" in caplog.text
    index = AlarmIndex(index)
    assert [(due.ref, due.due_ms) for due in index.due(T0 + 10_000, 10)] == [(REF, T0 + 1_000)]
    index.close()


def test_a_rebuild_that_was_interrupted_begins_anew(tmp_path, monkeypatch):
    data = tmp_path / "data"

    async def first(host, clock, module):
        await set_alarm(host, T0 + 1_000)

    prepare(data, 2)
    slot = slot_of(REF.id, 2)
    alarmed(tmp_path, first, slot=slot, slots=2)
    with monkeypatch.context() as patch:
        patch.setattr(AlarmIndex, "put", lambda *_: (_ for _ in ()).throw(OSError("killed here")))
        with pytest.raises(OSError, match="killed here"):
            prepare(data, 3)
    prepare(data, 3)
    index = AlarmIndex(index_path(data, slot_of(REF.id, 3), 3))
    assert index.due_ms(REF) == T0 + 1_000
    index.close()


def test_a_rolled_back_alarm_does_not_reset_the_retries(tmp_path):
    async def body(host, clock, module):
        async def set_and_undo(room):
            def undone():
                room.ctx.storage._store.set_alarm(T0 + 99_000)
                raise ValueError("undone")

            room.ctx.storage.transactionSync(undone)

        module["ACT"] += [set_and_undo] * 20
        await set_alarm(host, T0 + 1_000)
        await passes(host, clock, 1)
        for retry in range(3):
            await passes(host, clock, 2 * 2**retry)
        assert [ran[2] for ran in module["RAN"]] == [0, 1, 2, 3]

    alarmed(tmp_path, body)


def test_many_due_at_once_run_a_few_at_a_time(tmp_path, monkeypatch):
    monkeypatch.setattr("roost.host.objects.alarms.MAX_RUNNING", 4)

    async def body(host, clock, module):
        most = 0

        async def slow(room):
            nonlocal most
            most = max(most, host.alarms.running)
            await asyncio.sleep(0.001)

        module["ACT"] += [slow] * 30
        for number in range(30):
            await set_alarm(host, T0 + 1_000, ref_of(f"room {number}"))
        clock.advance(1)
        host.alarms.check()
        await until(lambda: len(module["RAN"]) == 30 and not host.alarms.running)
        assert len({ran[0] for ran in module["RAN"]}) == 30
        assert most == 4

    alarmed(tmp_path, body)


def test_a_mutant_that_forgets_the_alarm_before_the_handler_has_succeeded_is_seen(tmp_path):
    """W50's checker is proven: without the alarm kept until the end, a failed commit loses it."""

    async def body(host, clock, module):
        async def lose(room):
            await room.ctx.storage.deleteAlarm()  # the mutant: deleted before the handler has succeeded
            await room.ctx.storage.sync()
            room.ctx.storage.kv.put("more", 1)
            room.ctx.storage._store._database.connection().execute("ROLLBACK")

        module["ACT"].append(lose)
        await set_alarm(host, T0 + 1_000)
        await passes(host, clock, 1)
        await passes(host, clock, 2.0)
        with pytest.raises(AssertionError):
            assert len(module["RAN"]) == 2

    alarmed(tmp_path, body)


def test_an_index_entry_of_a_class_that_is_gone_stays(tmp_path):
    async def body(host, clock, module):
        gone = e.ObjectRef("Gone", id_from_name(namespace_key("t", "Gone"), "g"), "g")
        host.disk.alarms.put(gone, T0)
        await passes(host, clock, 1)
        assert host.disk.alarms.due_ms(gone) == T0 + 3_000  # 2 s later
        await settle()

    alarmed(tmp_path, body)


@pytest.mark.parametrize(
    ("class_name", "object_id"),
    [
        ("Room", "../" + "a" * 61),
        ("Room", "A" * 64),
        ("Room", "a" * 63),
        ("Room", "a" * 65),
        ("Room", "a" * 63 + "\n"),
        ("Room", "g" * 64),
        ("Room", ""),
        ("../Room", "a" * 64),
        ("a/b", "a" * 64),
        ("", "a" * 64),
        ("..", "a" * 64),
    ],
)
def test_no_name_from_outside_leaves_the_folder(tmp_path, class_name, object_id):
    with pytest.raises(ValueError, match="cannot name a file"):
        object_path(tmp_path, e.ObjectRef(class_name, object_id, None))


def test_where_an_object_is(tmp_path):
    assert (
        object_path(tmp_path, e.ObjectRef("Room", "ab" * 32, "x")) == tmp_path / "objects/Room/ab" / f"{'ab' * 32}.sqlite"
    )


def test_slots_are_told_apart():
    assert {slot_of(ref_of(str(number)).id, 3) for number in range(50)} == {0, 1, 2}
    assert issubclass(StorageError, Exception)
