"""host/calls/crons.py: when `scheduled` runs, by a clock of our own."""

from datetime import UTC, datetime

import pytest

from hosted import run_hosted, until
from roost.clock import ManualClock
from roost.errors import ConfigError
from roost.host.calls.crons import next_time_ms

SOURCE = """
from workers import DurableObject, Response, WorkerEntrypoint

RAN = []

class Room(DurableObject):
    def __init__(self, ctx, env):
        super().__init__(ctx, env)

class Default(WorkerEntrypoint):
    async def scheduled(self, controller, env, ctx):
        RAN.append((controller.cron, controller.scheduledTime))
        if controller.cron.startswith("*/7"):
            raise ValueError("fails")
"""

MIDNIGHT = int(datetime(2026, 11, 23, tzinfo=UTC).timestamp() * 1000)  # a Monday


@pytest.mark.parametrize(
    ("expression", "then"),
    [
        ("* * * * *", "2026-11-23 00:01"),
        ("*/30 * * * *", "2026-11-23 00:30"),
        ("0 17 * * sun", "2026-11-29 17:00"),
        ("0 17 * * 1", "2026-11-29 17:00"),  # 1 is Sunday, as at Cloudflare
        ("10 7 * * 2-6", "2026-11-23 07:10"),
        ("0 15 1 * *", "2026-12-01 15:00"),
        ("0 18 * * 6L", "2026-11-27 18:00"),
        ("0 18 * * friL", "2026-11-27 18:00"),
        ("0 18 * * SATL", "2026-11-28 18:00"),
        ("59 23 LW * *", "2026-11-30 23:59"),
        ("0 0 * * 2#1", "2026-12-07 00:00"),
    ],
)
def test_next(expression, then):
    due = next_time_ms(expression, MIDNIGHT)
    assert datetime.fromtimestamp(due / 1000, UTC).strftime("%Y-%m-%d %H:%M") == then


@pytest.mark.parametrize(
    "bad", ["", "* * * *", "* * * * * *", "61 * * * *", "* * * * 8", "* * * * 0", "soon", "0 0 31 2 *"]
)
def test_bad(bad):
    with pytest.raises(ConfigError, match=r"triggers\.crons"):
        next_time_ms(bad, MIDNIGHT)


def test_runs_once_a_due_minute_and_goes_on_after_a_failure(tmp_path):
    clock = ManualClock(MIDNIGHT)

    async def body(host, gateway, module):
        for _ in range(15):
            clock.advance(60)
            host.crons.check()
            await until(lambda: not host.surroundings.tasks)
        fives = [MIDNIGHT + minute * 60_000 for minute in (5, 10, 15)]
        assert [at for cron, at in module["RAN"] if cron == "*/5 * * * *"] == fives
        assert len(module["RAN"]) == 5  # and twice the one that fails

    run_hosted(tmp_path, SOURCE, body, crons=["*/5 * * * *", "*/7 * * * *"], clock=clock)


def test_a_short_restart_misses_none_and_repeats_none(tmp_path):
    data = tmp_path / "data"

    async def first(host, gateway, module):
        host.crons.check()
        await until(lambda: not host.surroundings.tasks)
        assert len(module["RAN"]) == 1

    async def then(host, gateway, module):
        await until(lambda: not host.surroundings.tasks)
        assert [at for _, at in module["RAN"]] == [MIDNIGHT + 120_000]

    clock = ManualClock(MIDNIGHT + 59_999)

    async def start(host, gateway, module):
        clock.advance(0.001)
        await first(host, gateway, module)

    run_hosted(tmp_path, SOURCE, start, crons=["* * * * *"], clock=clock, data=data)
    run_hosted(tmp_path, SOURCE, then, crons=["* * * * *"], clock=ManualClock(MIDNIGHT + 120_500), data=data)


def test_a_clock_that_was_ahead_silences_nothing(tmp_path, caplog):
    """At boot, or in a VM: the last run lies in the future. Once said; crons run by what the clock says now."""
    data, year_ms = tmp_path / "data", 365 * 86_400_000

    async def ahead(host, gateway, module):
        then.advance(60)
        host.crons.check()
        await until(lambda: not host.surroundings.tasks)
        assert len(module["RAN"]) == 1

    async def now(host, gateway, module):
        for _ in range(3):
            clock.advance(60)
            host.crons.check()
            await until(lambda: not host.surroundings.tasks)
        assert [at for _, at in module["RAN"]] == [MIDNIGHT + minute * 60_000 for minute in (1, 2, 3)]

    then = ManualClock(MIDNIGHT + year_ms)
    run_hosted(tmp_path, SOURCE, ahead, crons=["* * * * *"], clock=then, data=data)
    clock = ManualClock(MIDNIGHT + 1)
    run_hosted(tmp_path, SOURCE, now, crons=["* * * * *"], clock=clock, data=data)
    assert caplog.text.count("ahead") == 1


def test_a_clock_that_steps_on_a_running_node(tmp_path, caplog):
    clock = ManualClock(MIDNIGHT + 1)

    async def body(host, gateway, module):
        async def minutes(count):
            for _ in range(count):
                clock.advance(60)
                host.crons.check()
                await until(lambda: not host.surroundings.tasks)

        await minutes(2)
        assert len(module["RAN"]) == 2
        clock.advance(86_400)  # ahead: what was passed over counts once
        await minutes(1)
        assert len(module["RAN"]) == 3
        clock.advance(-86_400)
        await minutes(3)  # the first of them notices
        assert len(module["RAN"]) == 5

    run_hosted(tmp_path, SOURCE, body, crons=["* * * * *"], clock=clock)
    assert caplog.text.count("ahead") == 1


def test_only_the_first_host_runs_them(tmp_path):
    async def body(host, gateway, module):
        assert host.crons._next == {}

    run_hosted(tmp_path, SOURCE, body, crons=["* * * * *"], slot=1, slots=2)
