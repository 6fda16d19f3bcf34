"""`blockConcurrencyWhile`: a section of an object during which none of its events starts, and the calls it waits for.

Such a section may call another object; if that (or one further on) has to wait for this very section, nobody would ever go
on. That is found when the call arrives at the closed gate, and told to the caller; between objects on different hosts only
the chain of one call is seen, and the section's time limit ends the rest. Source: reference 4.2, observed behaviour W42.
"""

from __future__ import annotations

import asyncio
import contextvars
from contextvars import ContextVar
from typing import TYPE_CHECKING, Any, Protocol

from roost.api.runtime import IoContext, current_context
from roost.errors import JsException
from roost.events import Chain
from roost.host.worker.current import call_chain

if TYPE_CHECKING:
    from collections.abc import Callable

    from roost.events import ObjectRef


class Blockable(IoContext, Protocol):
    """An object whose events can be held back: `input_gate.InputGate`."""

    label: str
    ref: ObjectRef
    calls_in_block: dict[int, ObjectRef]

    @property
    def blocked(self) -> bool:
        """Whether a section holds its events back."""
        ...

    def block(self) -> Callable[[], None]:
        """Start no new event until the returned function is called."""
        ...

    def reset(self, error: BaseException) -> None: ...


class InMemory(Protocol):
    """The objects that are in memory."""

    def get(self, ref: ObjectRef) -> Blockable | None: ...


MAX_DEPTH = 64
TIMEOUT_S = 30.0
MAX_CALLS_DEEP = 32


class Section:
    """One `blockConcurrencyWhile`. A task that it started may outlive it: then it is no longer `open`."""

    __slots__ = ("actor", "depth", "open", "outer")

    def __init__(self, actor: Blockable, outer: Section | None) -> None:
        self.actor = actor
        self.outer = outer
        self.depth: int = 1 if outer is None else outer.depth + 1
        self.open = True


_section: ContextVar[Section | None] = ContextVar("roost_section", default=None)


def current_section() -> Section | None:
    """The innermost section that the current code runs in."""
    section = _section.get()
    while section is not None and not section.open:
        section = section.outer
    return section


def block_while(actor: Blockable, callback: Callable[[], Any]) -> asyncio.Future[Any]:
    """Run `callback()` while no other event of the object starts. It is reset if that raises or takes too long."""
    section = Section(actor, current_section())
    if section.depth > MAX_DEPTH:
        raise JsException(f"blockConcurrencyWhile() may be nested at most {MAX_DEPTH} deep.")
    unblock = actor.block()
    variables = contextvars.copy_context()
    variables.run(current_context.set, actor)
    variables.run(_section.set, section)

    async def run() -> Any:
        try:
            async with asyncio.timeout(TIMEOUT_S):
                result = callback()
                return await result if hasattr(result, "__await__") else result
        except BaseException as error:
            if isinstance(error, TimeoutError):
                error.add_note(f"blockConcurrencyWhile() may take at most {TIMEOUT_S:g} s.")
            actor.failed_in("blockConcurrencyWhile", error)
            actor.reset(error)
            raise
        finally:
            section.open = False
            unblock()

    def ended(task: asyncio.Task[Any]) -> None:
        section.open = False
        unblock()  # also if it was cancelled before its first step
        if not task.cancelled():
            task.exception()  # seen, also if nobody awaits it

    task: asyncio.Task[Any] = variables.run(asyncio.get_running_loop().create_task, run())
    task.add_done_callback(ended)
    return task


def chain_of_call(actor: Blockable | None, number: int) -> Chain:
    """What a call that starts now carries; `number` is its own. Raises Error (as JsException) if it is too deep."""
    chain = call_chain.get()
    if chain.depth >= MAX_CALLS_DEEP:
        raise JsException(
            f"Subrequest depth limit exceeded: this call came through {MAX_CALLS_DEEP} others. Do two objects call each"
            " other without end?"
        )
    blocked = chain.blocked
    section = current_section()
    if actor is not None and section is not None and section.actor is actor:
        blocked = (*blocked, f"{key_of(actor.ref)}#{number}")
    return Chain(chain.depth + 1, blocked)


def key_of(ref: ObjectRef) -> str:
    return f"{ref.class_name}/{ref.id}"


def deadlock(target: Blockable, chain: Chain, actors: InMemory) -> str:
    """Why a call that has to wait for `target`'s section would wait for ever; empty if it would not."""
    if not target.blocked:
        return ""
    wanted = {}
    for entry in chain.blocked:
        key, _, number = entry.partition("#")
        wanted[key] = int(number)
    seen: set[str] = set()
    ahead = [target.ref]
    while ahead:
        ref = ahead.pop()
        key = key_of(ref)
        actor = actors.get(ref)
        if actor is None or key in seen:
            continue
        seen.add(key)
        if wanted.get(key) in actor.calls_in_block:  # its section still waits for that very call
            return (
                f"deadlock: {target.label} is in blockConcurrencyWhile, which waits for a call that in turn waits for this"
                " one; make such calls outside of blockConcurrencyWhile."
            )
        if actor.blocked:
            ahead += actor.calls_in_block.values()
    return ""
