"""`triggers.crons`: the worker's `scheduled` handler, in UTC, once a due minute on the whole node (its first host).

An occurrence that a restart of less than a minute would have skipped is made up for. Source: reference 6.1; Cloudflare's
documentation, "Cron Triggers": five fields, days of the week 1 (Sunday) to 7.
"""

from __future__ import annotations

import asyncio
import logging
import re
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any, Final

from cronsim import CronSim, CronSimError

from roost.errors import ConfigError, WorkerError
from roost.link.port import NO_CONTEXT
from roost.storage.errors import StorageError

if TYPE_CHECKING:
    from collections.abc import Sequence

    from roost.clock import Clock
    from roost.host.worker.surroundings import Surroundings

_log = logging.getLogger("roost.worker")

TIME_LIMIT_S: Final = 15 * 60.0
_MAKE_UP_MS: Final = 60_000
_LONGEST_SLEEP_S: Final = 30.0  # the wall clock may jump
_WEEKDAY: Final = re.compile(r"(?<![/#\d])\d+")
_LAST_DAY: Final = re.compile(r"\b(sun|mon|tue|wed|thu|fri|sat)(?=L\b)", re.IGNORECASE)
_DAYS: Final = ("sun", "mon", "tue", "wed", "thu", "fri", "sat")


def next_time_ms(expression: str, after_ms: int) -> int:
    """When a cron expression is next due. Raises ConfigError if it is none."""
    fields = expression.split()
    if len(fields) == 5:
        try:
            fields[4] = _LAST_DAY.sub(lambda match: str(_DAYS.index(match[0].lower()) + 1), fields[4])  # `friL`
            fields[4] = _WEEKDAY.sub(_weekday, fields[4])
            return int(next(CronSim(" ".join(fields), datetime.fromtimestamp(after_ms / 1000, UTC))).timestamp() * 1000)
        except (CronSimError, StopIteration, ValueError) as error:
            raise ConfigError(
                f"triggers.crons: {expression!r} is not a cron expression: {error}", "triggers.crons"
            ) from None
    raise ConfigError(
        f"triggers.crons: {expression!r} is not a cron expression: it needs 5 fields (minute hour day month weekday).",
        "triggers.crons",
    )


def _weekday(match: re.Match[str]) -> str:
    day = int(match[0])
    if not 1 <= day <= 7:
        raise ValueError(f"days of the week are 1 (Sunday) to 7 (Saturday), not {day}")
    return str(day - 1)


class ScheduledController:
    """What `scheduled(self, controller, env, ctx)` is given."""

    type = "scheduled"

    def __init__(self, cron: str, scheduled_ms: int) -> None:
        self.cron = cron
        self.scheduledTime = self.scheduled_time = scheduled_ms

    def noRetry(self) -> None:
        """Accepted for compatibility: a scheduled run is never tried again."""

    no_retry = noRetry


class Crons:
    """The cron triggers of one host's worker."""

    def __init__(self, surroundings: Surroundings, expressions: Sequence[str], clock: Clock) -> None:
        self._surroundings = surroundings
        self._clock = clock
        self._expressions = expressions
        self._next: dict[str, int] = {}
        self._timer: asyncio.TimerHandle | None = None
        self._warned = False

    def start(self) -> None:
        """Begin; a time that has just passed counts if the last run says that it was missed."""
        now_ms = self._clock.wall_ms()
        for expression in self._expressions:
            try:
                last_ms = self._surroundings.disk.alarms.last_cron(expression)
            except StorageError as error:
                _log.error("crons: %s", error)
                last_ms = None
            if last_ms is not None and last_ms > now_ms + _MAKE_UP_MS:
                self._clock_was_ahead(last_ms - now_ms)
                last_ms = None
            due_ms = next_time_ms(expression, now_ms if last_ms is None else last_ms)
            self._next[expression] = due_ms if due_ms > now_ms - _MAKE_UP_MS else next_time_ms(expression, now_ms)
        self.check()

    def _clock_was_ahead(self, by_ms: int) -> None:
        if not self._warned:
            self._warned = True
            _log.warning("crons: the clock was %.0f s ahead; crons run by what it says now", by_ms / 1000)

    def end(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
        self._next.clear()

    def check(self) -> None:
        """Run what is due by now, and wait for the next."""
        if self._timer is not None:
            self._timer.cancel()
        now_ms = self._clock.wall_ms()
        for expression, due_ms in list(self._next.items()):
            if due_ms > now_ms and due_ms > (earlier_ms := next_time_ms(expression, now_ms)):
                self._clock_was_ahead(due_ms - earlier_ms)
                self._next[expression] = earlier_ms
            elif due_ms <= now_ms:
                self._next[expression] = next_time_ms(expression, now_ms)
                try:
                    self._surroundings.disk.alarms.cron_fired(expression, due_ms)
                except StorageError as error:
                    _log.error("crons: %s", error)  # a restart may repeat it
                self._surroundings.spawn(self.run(expression, due_ms), NO_CONTEXT.copy())
        if self._next:
            delay_s = min((min(self._next.values()) - now_ms) / 1000, _LONGEST_SLEEP_S)
            self._timer = self._surroundings.loop.call_later(max(delay_s, 0.001), self.check, context=NO_CONTEXT)

    async def run(self, expression: str, due_ms: int) -> bool:
        """Call the handler; whether it succeeded. Failures are logged."""
        from roost.host.worker.request_context import RequestContext  # not needed by those who only check an expression

        surroundings = self._surroundings
        context = RequestContext(surroundings, f"scheduled {expression}", surroundings.worker.compat, None)
        task = surroundings.loop.create_task(self._call(context, expression, due_ms), context=context.fresh_variables())
        try:
            await asyncio.wait_for(task, TIME_LIMIT_S)
        except asyncio.CancelledError:
            raise
        except BaseException as error:  # noqa: BLE001 - the user's, also sys.exit()
            context.failed_in("scheduled", error)
            return False
        finally:
            context.answered()
        return True

    async def _call(self, context: Any, expression: str, due_ms: int) -> None:
        from roost.api.state import ExecutionContext

        worker = self._surroundings.worker
        ctx = ExecutionContext(context)
        handler = worker.scheduled
        if handler is None and isinstance(worker.entrypoint, type):
            handler = getattr(worker.entrypoint(ctx, worker.env), "scheduled", None)
        if handler is None:
            raise WorkerError("the worker has no scheduled handler; add `async def scheduled(self, controller, env, ctx)`.")
        result = handler(ScheduledController(expression, due_ms), worker.env, ctx)
        if hasattr(result, "__await__"):
            await result
