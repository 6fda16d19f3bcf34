"""`preShutdown(info)`: an object hears that it is about to be forgotten, and may write what it has only in memory.

Best effort, as on the platform: within 10 s, no event begins meanwhile, and what it writes is kept. Called once after an
object's last event, before it sleeps ("inactive") or before other code takes its place ("codeUpdated").

Source: Durable Objects base class, `preShutdown`, reference 4.1.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final

if TYPE_CHECKING:
    from roost.host.objects.actor import Actor

BUDGET_S: Final = 10.0


class PreShutdownInfo:
    """What `preShutdown` is told: `.reason`."""

    __slots__ = ("reason",)

    def __init__(self, reason: str) -> None:
        self.reason = reason

    def __repr__(self) -> str:
        return f"PreShutdownInfo(reason={self.reason!r})"


def call_pre_shutdown(actor: Actor, reason: str) -> bool:
    """Call the object's `preShutdown`, unless it has none or was called since its last event; whether it runs now.

    Must not be called from within a task.
    """
    handler = actor.kind.handler(actor.instance, "preShutdown") if actor.instance is not None else None
    if handler is None or actor.pre_shutdown_at >= actor.last_active:
        return False
    surroundings = actor.surroundings
    unblock = actor.block()
    pinned = actor.pin("preShutdown running")
    over = False

    def ended(_: Any, error: BaseException | None) -> None:
        nonlocal over
        if over:
            return
        over = True
        timer.cancel()
        if error is not None:
            actor.failed_in("preShutdown", error)
        actor.pre_shutdown_at = surroundings.loop.time()
        actor.unpin(pinned)
        unblock()

    timer = surroundings.loop.call_later(BUDGET_S, ended, None, TimeoutError(f"preShutdown took more than {BUDGET_S:g} s"))
    surroundings.handled += 1
    variables = actor.fresh_variables()
    try:
        result = variables.run(handler, PreShutdownInfo(reason))
    except BaseException as error:  # noqa: BLE001 - the user's
        ended(None, error)
        return False
    if hasattr(result, "send"):
        surroundings.runner.run(variables, result, ended)
    else:
        ended(None, None)
    return not over
