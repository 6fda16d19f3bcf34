"""Waking objects whose alarm is due, and trying again when their handler fails.

One timer for all of a host's objects: the index knows the next moment. An alarm runs at least once and never early; it is
gone only once the handler has succeeded and what it wrote is on the disk. A handler that raises is tried again after 2 s ×
2^n, at most six times; a crash or a reset on our side is tried again without counting. Source: reference 5 (alarm run).
"""

from __future__ import annotations

import asyncio
import logging
from typing import TYPE_CHECKING, Final

from roost.errors import ConfigError, JsException, UnavailableError
from roost.events import Chain
from roost.link.port import NO_CONTEXT
from roost.storage.errors import StorageError

if TYPE_CHECKING:
    from roost.clock import Clock
    from roost.host.objects.actor import Actor
    from roost.host.worker.surroundings import Surroundings
    from roost.storage.alarm_index import Due

_log = logging.getLogger("roost.worker")

MAX_RETRIES: Final = 6
FIRST_RETRY_S: Final = 2.0
MAX_EXPONENT: Final = 9
JITTER: Final = 0.25
TIME_LIMIT_S: Final = 15 * 60.0
MAX_RUNNING: Final = 200  # alarms of one host at the same time; the others stay in the index until one is over
_UNTOLD_LOGGED_S: Final = 10.0
_LONGEST_SLEEP_S: Final = 30.0  # the wall clock may jump


class AlarmInfo:
    """What `alarm(self, info)` is given."""

    __slots__ = ("isRetry", "is_retry", "retryCount", "retry_count", "scheduledTime", "scheduled_time")

    def __init__(self, scheduled_ms: int, retries: int) -> None:
        self.scheduledTime = self.scheduled_time = scheduled_ms
        self.retryCount = self.retry_count = retries
        self.isRetry = self.is_retry = retries > 0

    def __repr__(self) -> str:
        return f"AlarmInfo(scheduledTime={self.scheduledTime}, retryCount={self.retryCount}, isRetry={self.isRetry})"


class Alarms:
    """The alarms of one host's objects."""

    def __init__(self, surroundings: Surroundings, clock: Clock) -> None:
        self._surroundings = surroundings
        self._clock = clock
        self._index = surroundings.disk.alarms
        self._running: set[tuple[str, str]] = set()
        self._timer: asyncio.TimerHandle | None = None
        self._timer_ms = 0
        self._ended = False
        self._untold = 0  # alarms whose end the index could not be told
        self._untold_logged_at = -_UNTOLD_LOGGED_S
        surroundings.disk.alarm_changed = self.changed

    def start(self) -> None:
        """Begin to fire what is due."""
        self.check()

    def end(self) -> None:
        self._ended = True
        if self._timer is not None:
            self._timer.cancel()

    @property
    def running(self) -> int:
        return len(self._running)

    def changed(self) -> None:
        """An alarm was set, or one is over: the next moment may be another."""
        if not self._ended and len(self._running) < MAX_RUNNING and (self._timer is None or self._timer_ms):
            if self._timer is not None:
                self._timer.cancel()
            self._timer_ms = 0  # once a turn, however many are set in it
            self._timer = self._surroundings.loop.call_later(0, self.check, context=NO_CONTEXT)

    def check(self) -> None:
        """Fire what is due by now, and wait for the next."""
        if self._timer is not None:
            self._timer.cancel()
        self._timer = None
        if self._ended:
            return
        try:
            now_ms = self._clock.wall_ms()
            while len(self._running) < MAX_RUNNING and self._fire_due(now_ms):
                pass
            if len(self._running) >= MAX_RUNNING:
                return  # the next one to end arms again
            next_ms = self._index.next_due(now_ms)
        except Exception as error:  # noqa: BLE001 - the index is broken: without a timer no alarm would ever fire again
            _log.error("alarms: %s; trying again in %g s", error, _LONGEST_SLEEP_S)
            next_ms = None
        # Also without any: another clock may have set one, and the wall clock may jump.
        delay_s = _LONGEST_SLEEP_S if next_ms is None else min((next_ms - now_ms) / 1000, _LONGEST_SLEEP_S)
        self._timer_ms = next_ms or -1
        self._timer = self._surroundings.loop.call_later(max(delay_s, 0.001), self.check, context=NO_CONTEXT)

    def _fire_due(self, now_ms: int) -> bool:
        """Begin some alarms that are due; whether there may be more."""
        found = self._index.due(now_ms, MAX_RUNNING + len(self._running))
        fired = False
        for due in found:
            key = (due.ref.class_name, due.ref.id)
            if key not in self._running and len(self._running) < MAX_RUNNING:
                self._running.add(key)
                fired = True
                self._fire(due)
        return fired

    def _fire(self, due: Due) -> None:
        try:
            actor = self._surroundings.objects.awaken(due.ref, "alarm")
        except (ConfigError, UnavailableError) as error:
            _log.error("alarm of %s(%s): %s It stays set.", due.ref.class_name, due.ref.name or due.ref.id[:8], error)
            try:
                self._later(due, due.retries, due.setbacks + 1)
            except StorageError as failure:
                self._over_later(due, failure)
                return
            self._over(due)
            return

        def done(scheduled_ms: int | None, error: BaseException | None) -> None:
            self._ended_with(actor, due, scheduled_ms, error)

        actor.run_event(lambda: self._run(actor, due), "alarm", Chain(), done)

    async def _run(self, actor: Actor, due: Due) -> int | None:
        """Run the handler; the scheduled time if it ran, None if there was nothing to run after all."""
        scheduled_ms = actor.store.get_alarm()
        if scheduled_ms is None or scheduled_ms > self._clock.wall_ms():
            return None  # the index was told of a commit that never came
        if due.retries > MAX_RETRIES:
            actor.failed_in("alarm", JsException(f"given up after {MAX_RETRIES} retries; the alarm is deleted."))
            actor.store.set_alarm(None)
            return None
        handler = actor.kind.handler(actor.instance, "alarm")
        if handler is None:
            raise JsException(f"{actor.kind.name} has no alarm handler; add `async def alarm(self, info)`.")
        self._surroundings.counters.alarms += 1
        actor.alarm_running = True
        actor.store.begin_alarm()
        keep = True
        try:
            async with asyncio.timeout(TIME_LIMIT_S):
                result = handler(AlarmInfo(scheduled_ms, due.retries))
                if hasattr(result, "__await__"):
                    await result
            keep = False
        finally:
            actor.alarm_running = False
            if actor.gate.broken is None:
                actor.store.end_alarm(keep=keep)
        return scheduled_ms

    def _ended_with(self, actor: Actor, due: Due, scheduled_ms: int | None, error: BaseException | None) -> None:
        """The handler is over: once what it wrote is on the disk, the index learns of it."""

        def durable(broken: BaseException | None) -> None:
            try:
                self._settle(actor, due, scheduled_ms, error, broken)
            except StorageError as failure:
                self._over_later(due, failure)
                return
            self._over(due)

        if error is not None:
            actor.failed_in("alarm", error)
        actor.gate.hold(durable)

    def _settle(
        self, actor: Actor, due: Due, scheduled_ms: int | None, error: BaseException | None, broken: BaseException | None
    ) -> None:
        told_ms = self._index.due_ms(due.ref)
        if told_ms is None or told_ms != due.due_ms:
            return  # it was deleted, or set anew
        if error is not None or broken is not None:
            if _ours(actor.failure or error):
                self._later(due, due.retries, due.setbacks + 1)
            else:
                self._later(due, due.retries + 1, due.setbacks)
        elif scheduled_ms is None:
            stored_ms = actor.store.get_alarm()
            if stored_ms is None:
                self._index.remove(due.ref)
            else:
                self._index.put(due.ref, stored_ms)

    def _later(self, due: Due, retries: int, setbacks: int) -> None:
        """Try again after a pause."""
        tries = retries if retries > due.retries else setbacks
        delay_s = 0.0
        if retries != MAX_RETRIES + 1:  # then it is only to be deleted, unless the object cannot be built
            random = int.from_bytes(self._surroundings.random_bytes(2), "big") / 0xFFFF
            delay_s = FIRST_RETRY_S * 2 ** min(tries - 1, MAX_EXPONENT) * (1 + JITTER * random)
        self._index.put(due.ref, self._clock.wall_ms() + int(delay_s * 1000), retries, setbacks)

    def _over_later(self, due: Due, failure: StorageError) -> None:
        """The index could not be told: it still says that the alarm is due. Not at once again: the disk may be full."""
        self._untold += 1
        now_s = self._surroundings.loop.time()
        if now_s - self._untold_logged_at >= _UNTOLD_LOGGED_S:
            self._untold_logged_at = now_s
            _log.error(
                "alarms: %s (%d times so far); they are tried again in %g s", failure, self._untold, FIRST_RETRY_S * 2
            )
        self._surroundings.loop.call_later(FIRST_RETRY_S * 2, self._over, due, context=NO_CONTEXT)

    def _over(self, due: Due) -> None:
        self._running.discard((due.ref.class_name, due.ref.id))
        self.changed()


def _ours(error: BaseException | None) -> bool:
    """Whether an alarm failed for what the worker is not to blame for: the disk, or the end of the host."""
    return error is None or isinstance(error, StorageError | asyncio.CancelledError)
