"""What worker code has passed to others by reference, functions, targets and streams, and what it holds of others.

What is exported has a number at its home, which is one life of one host; a call on it is an ordinary call on an object
without a class, whose id is the home and whose name is the number. So it takes its turn among all other calls, waits for
the caller's writes, and finds its host through a gateway.

An export ends when its holder lets go of it, when the context ends that it belongs to, or when nobody says for `LEASE_S`
that it is held: an answer may be lost, and a holder's host may die. Source: platform documentation, "Remote-procedure call
(RPC)", "Lifecycle".

Long because a table, its exports, handles and sessions know each other; what a call is stands in `rpc_calls`.
"""

from __future__ import annotations

import itertools
import logging
from typing import TYPE_CHECKING, Any, Final, Protocol
from weakref import WeakSet, WeakValueDictionary, ref

from roost.api.entrypoint import RpcTarget
from roost.api.promises import Failed
from roost.api.rpc import (
    GONE,
    BrokenStubError,
    call_function,
    decoded_arguments,
    error_of,
    find_method,
)
from roost.api.rpc_streams import Readable, Writable
from roost.api.rpc_stubs import RpcStub, handle_of, itself, stub_of
from roost.api.runtime import IoContext
from roost.errors import JsException, JsRangeError
from roost.events import Chain, Fault, ObjectRef
from roost.ids import id_from_name, slot_of
from roost.link.port import NO_CONTEXT
from roost.values import decode, encode

if TYPE_CHECKING:
    import asyncio
    from collections.abc import Awaitable, Callable, Iterable
    from contextvars import Context

    from roost.events import Result
    from roost.host.limits import HostCounters, HostLimits
    from roost.host.worker.running import Runner

    Reply = Callable[[bytes, Fault | None, BaseException | None, BaseException | None], None]


_log = logging.getLogger("roost.worker")


MAX_OF_CONTEXT: Final = 1000  # exports of one object or request at a time


LEASE_S: Final = 60.0


RENEW_S: Final = 15.0


PIN_EXPORTS: Final = "RPC stubs that others hold"


_NO_CLASS: Final = ""  # of the objects that calls on exports name


_UNKNOWN: Final = "it was released, or what it belongs to sleeps or has ended"


_MAX_NUMBERS: Final = 10_000  # in one message between hosts


class TableCaller(Protocol):
    """Who carries calls of a table's own: `calls.stubs.StubCaller`."""

    @property
    def may_ask(self) -> bool:
        """Whether there is a gateway to ask, and time to."""
        ...

    def call_object(self, ref: ObjectRef, method: str, arguments: bytes) -> asyncio.Future[Any]: ...

    def ask(self, target: ObjectRef, method: str, arguments: bytes, answered: asyncio.Future[Result]) -> None: ...


class SessionContext(IoContext, Protocol):
    """An object or a request that passes something on, or holds something: `io_context.WorkContext`."""

    label: str

    @property
    def surroundings(self) -> SessionSurroundings: ...

    def pin(self, what: str) -> int: ...

    def pin_io(self, what: str) -> int: ...

    def unpin(self, number: int) -> None: ...

    def begin_rpc(self, export: Export, method: str, arguments: bytes, chain: Chain, reply: Reply) -> None: ...

    def fresh_variables(self) -> Context: ...


class SessionSurroundings(Protocol):
    """Where that runs."""

    loop: asyncio.AbstractEventLoop
    runner: Runner


class RpcTable:
    """The exports and the handles of one host. `caller` is to be filled in."""

    caller: TableCaller

    def __init__(
        self,
        loop: asyncio.AbstractEventLoop,
        counters: HostCounters,
        limits: HostLimits,
        slot: int,
        slots: int,
        random_bytes: Callable[[int], bytes],
    ) -> None:
        self._loop = loop
        self._counters = counters
        self._limits = limits
        self.home = _home_of(slot, slots, random_bytes)
        self._exports: dict[int, Export] = {}
        self._numbers = itertools.count(1)
        self._held: dict[str, WeakValueDictionary[int, Handle]] = {}  # what others have exported, by home and number
        self._dropped: dict[str, list[int]] = {}  # of those, what nobody here holds any more
        self._timer: asyncio.TimerHandle | None = None

    def __len__(self) -> int:
        return len(self._exports)

    # exporting

    def export(self, session: RpcSession, target: Any) -> Export:
        """Raises RangeError (as JsException) if there are too many."""
        counters, limit = self._counters, self._limits.max_rpc_stubs
        if len(session.exports) >= MAX_OF_CONTEXT or len(self._exports) >= limit:
            counters.rpc_stubs_refused += 1
            what = f"{MAX_OF_CONTEXT} functions, targets and streams of {session.context.label}"
            if len(session.exports) < MAX_OF_CONTEXT:
                what = f"{limit} functions, targets and streams of this host (limits.max_rpc_stubs)"
            raise JsRangeError(f"{what} are held by others; dispose stubs that are not needed any more.")
        counters.rpc_stubs += 1
        number = next(self._numbers)
        export = self._exports[number] = Export(session, target, number, self._loop.time() + LEASE_S)
        session.exports[number] = export
        counters.rpc_stubs_held = len(self._exports)
        self._watch()
        return export

    def end(self, numbers: Iterable[int], why: str) -> None:
        """Nobody holds them any more, or what they stand for is gone."""
        for number in numbers:
            export = self._exports.pop(number, None)
            if export is not None:
                self._counters.rpc_stubs_held = len(self._exports)
                export.session.ended(export)
                handle = export.handle()
                if handle is not None:
                    handle.broke(_gone(why))

    # calls

    def is_ours(self, target: ObjectRef) -> bool:
        return not target.class_name and target.id == self.home

    def call(self, home: str, number: int, method: str, arguments: bytes) -> asyncio.Future[Any]:
        return self.caller.call_object(ObjectRef(_NO_CLASS, home, str(number)), method, arguments)

    def begin(self, target: ObjectRef, method: str, arguments: bytes, chain: Chain, reply: Reply) -> None:
        """A call on an export, or of another host's table on this one."""
        if target.id != self.home:
            reply(b"", _gone("its host has ended: a deploy, or a crash"), None, None)
        elif target.name is None:
            reply(encode(self._asked_by_table(method, decode(arguments))), None, None, None)
        elif (export := self._exports.get(int(target.name))) is None:
            reply(b"", _gone(_UNKNOWN), None, None)
        else:
            self._counters.calls += 1
            export.session.context.begin_rpc(export, method, arguments, chain, reply)

    # holding

    def adopt(self, session: RpcSession, home: str, number: int) -> Handle:
        handle = Handle(self, session, home, number)
        if home == self.home:
            export = self._exports.get(number)
            if export is None:
                handle.broke(_gone(_UNKNOWN))
            else:
                export.held_by(handle)
        else:
            self._held.setdefault(home, WeakValueDictionary())[number] = handle
            self._watch()
        return handle

    def let_go(self, home: str, number: int) -> None:
        """Nobody here holds that export any more. What goes in one turn is said at once, in the next."""
        numbers = self._dropped.setdefault(home, [])
        numbers.append(number)
        if len(numbers) == 1:
            self._loop.call_soon(self._say_dropped, home, context=NO_CONTEXT)

    def later(self, function: Callable[[], None]) -> None:
        """Call it on the loop, from whatever thread: `__del__` may run anywhere."""
        try:
            self._loop.call_soon_threadsafe(function, context=NO_CONTEXT)
        except RuntimeError:
            pass  # the loop is closed, and all is over

    def _say_dropped(self, home: str) -> None:
        numbers = self._dropped.pop(home, [])
        if home == self.home:
            self.end(numbers, "it was released")
        elif self.caller.may_ask:
            for start in range(0, len(numbers), _MAX_NUMBERS):
                self._ask_table(home, "release", numbers[start : start + _MAX_NUMBERS], lambda _: None)

    # between tables

    def _asked_by_table(self, method: str, numbers: list[int]) -> list[int]:
        """Another host holds some, or does so no longer: those that are not known here."""
        unknown = [number for number in numbers if number not in self._exports]
        if method == "release":
            self.end(numbers, "it was released")
        else:
            until = self._loop.time() + LEASE_S
            for number in numbers:
                if number in self._exports:
                    self._exports[number].until = until
        return unknown

    def _ask_table(self, home: str, method: str, numbers: list[int], then: Callable[[list[int]], None]) -> None:
        answered: asyncio.Future[Result] = self._loop.create_future()

        def over(_: Any) -> None:
            if answered.cancelled() or answered.exception() is not None:
                return  # no gateway: it is tried again
            result = answered.result()
            then(numbers if result.fault is not None else decode(result.value))

        answered.add_done_callback(over, context=NO_CONTEXT)
        try:
            self.caller.ask(ObjectRef(_NO_CLASS, home), method, encode(numbers), answered)
        except JsException:
            answered.cancel()

    def _watch(self) -> None:
        if self._timer is None:
            self._timer = self._loop.call_later(RENEW_S, self._look, context=NO_CONTEXT)

    def _look(self) -> None:
        """End what nobody has said to hold; say what is held here."""
        self._timer = None
        now = self._loop.time()
        over = [number for number, export in self._exports.items() if export.until < now]
        self._counters.rpc_stubs_expired += len(over)
        self.end(over, "nobody held it")
        for home, handles in list(self._held.items()):
            numbers = list(handles)
            if not numbers:
                del self._held[home]
            for start in range(0, len(numbers), _MAX_NUMBERS):
                part = numbers[start : start + _MAX_NUMBERS]
                self._ask_table(home, "hold", part, lambda gone, home=home: self._broke(home, gone))  # type: ignore[misc]
        if self._exports or self._held:
            self._watch()

    def _broke(self, home: str, numbers: list[int]) -> None:
        for number in numbers:
            held = self._held.get(home)
            handle = None if held is None else held.get(number)
            if handle is not None:
                handle.broke(_gone(_UNKNOWN))

    def close(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
        self._exports.clear()


def _home_of(slot: int, slots: int, random_bytes: Callable[[int], bytes]) -> str:
    """A random id that belongs to this host's slot, as objects do."""
    key = random_bytes(16)
    homes = (id_from_name(key, str(number)) for number in itertools.count())
    return next(home for home in homes if slot_of(home, slots) == slot)


def _gone(why: str) -> Fault:
    return Fault(GONE, f"This RPC stub can no longer be used: {why}.")


class Export:
    """One function, target or stream that others may call."""

    __slots__ = ("handle", "label", "number", "session", "target", "until")

    def __init__(self, session: RpcSession, target: Any, number: int, until: float) -> None:
        self.session = session
        self.target = target
        self.number = number
        self.until = until  # when it ends if nobody says that it is held
        self.handle: Callable[[], Handle | None] = lambda: None
        self.label = getattr(target, "__qualname__", type(target).__name__)

    def held_by(self, handle: Handle) -> None:
        """By somebody of this very host, who will say when that ends."""
        self.handle = ref(handle)
        self.until = float("inf")

    def is_held_by(self, session: RpcSession) -> bool:
        """Whether its holder is that one's context."""
        handle = self.handle()
        return handle is not None and handle.session is session

    def start(self, method: str, arguments: bytes, received: list[Any]) -> Any:
        """Call it: the awaitable or value."""
        if type(self.target) is RpcStub:  # passed on: the call goes on to where it came from
            args, kwargs = decoded_arguments(arguments, received) if arguments else ([], {})
            through = itself(self.target) if not method else getattr(self.target, method)
            return through(*args, **kwargs) if arguments else through
        if not method:
            return call_function(self.target, arguments, received)
        return find_method(self.target, method, arguments, RpcTarget, received)

    def name_of(self, method: str) -> str:
        return f"{self.label}.{method}()" if method else f"{self.label}()"


class Handle:
    """`api.rpc_stubs.RpcHandle`: what the stubs of one export share."""

    __slots__ = (
        "__weakref__",
        "_callbacks",
        "_holders",
        "_home",
        "_number",
        "_running",
        "_table",
        "_why",
        "passed_on",
        "session",
    )

    def __init__(self, table: RpcTable, session: RpcSession, home: str, number: int) -> None:
        self._table = table
        self.session = session
        self._home = home
        self._number = number
        self._holders = 0
        self._running = 0
        self._why: Fault | None = None
        self.passed_on: list[int] = []  # exports that stand for this, too
        self._callbacks: list[Callable[[Any], Any]] = []
        session.handles.add(self)

    def call(self, method: str, arguments: bytes) -> Awaitable[Any]:
        if self._why:
            return Failed(self._error(), f"{method or 'stub'}()")
        answered = self._table.call(self._home, self._number, method, arguments)
        self._running += 1
        answered.add_done_callback(self._over, context=NO_CONTEXT)  # which keeps it until then
        return answered

    def _over(self, answered: asyncio.Future[Any]) -> None:
        self._running -= 1
        error = None if answered.cancelled() else answered.exception()
        if type(error) is BrokenStubError:  # not one that the called has met itself: that is a remote error
            self.broke(Fault(GONE, error.message))
        self._look()

    def hold(self) -> None:
        self._holders += 1

    def let_go(self) -> None:
        self._holders -= 1
        self._look()

    def let_go_later(self) -> None:
        self._table.later(self.let_go)

    def _look(self) -> None:
        if self._holders <= 0 and not self._running and not self._why:
            self._why = _gone("it was released")
            self.session.handles.discard(self)
            self._table.let_go(self._home, self._number)

    def when_broken(self, callback: Callable[[Any], Any]) -> None:
        if self._why:
            self._tell(callback)
        else:
            self._callbacks.append(callback)

    def broke(self, why: Fault) -> None:
        """What it stands for is gone."""
        if self._why:
            return
        self._why = why
        self.session.handles.discard(self)
        self._table.end(self.passed_on, "what it was passed on from is gone")
        callbacks, self._callbacks = self._callbacks, []
        for callback in callbacks:
            self._tell(callback)

    def release(self) -> None:
        """Its holder has ended."""
        if not self._why:
            self._why = _gone("its holder sleeps or has ended")
            self._callbacks.clear()
            self._table.let_go(self._home, self._number)

    def _tell(self, callback: Callable[[Any], Any]) -> None:
        context = self.session.context
        if not context.is_over:
            soon = context.surroundings.loop.call_soon
            soon(lambda: context.run_callback(callback, self._error(), what="onRpcBroken"), context=NO_CONTEXT)

    def _error(self) -> JsException:
        assert self._why is not None
        return error_of(self._why)


class RpcSession:
    """What one object or request has exported, and what it holds."""

    __slots__ = ("_pinned", "context", "exports", "handles", "table")

    def __init__(self, context: SessionContext, table: RpcTable) -> None:
        self.context = context
        self.table = table
        self.exports: dict[int, Export] = {}
        self.handles: WeakSet[Handle] = WeakSet()
        self._pinned = 0

    def export(self, target: Any) -> list[Any]:
        handle = None
        if type(target) is RpcStub:
            target = target.dup()  # for as long as it is passed on
            handle = handle_of(target)
        export = self.table.export(self, target)
        if isinstance(handle, Handle):
            handle.passed_on.append(export.number)
        if self._pinned:  # for as long from now on
            self.context.unpin(self._pinned)
        self._pinned = self.context.pin_io(PIN_EXPORTS)
        return [self.table.home, export.number]

    def adopt(self, home: str, number: int) -> RpcStub:
        return stub_of(self.table.adopt(self, home, number))

    @property
    def is_held(self) -> bool:
        """Whether others may hold something of it, and not only this context itself."""
        return any(not export.is_held_by(self) for export in self.exports.values())

    def withdraw(self, references: list[Any]) -> None:
        self.table.end([number for _, number in references], "it was never passed on")

    def ended(self, export: Export) -> None:
        """One of its exports is over."""
        self.exports.pop(export.number, None)
        if not self.exports and self._pinned:
            pinned, self._pinned = self._pinned, 0
            self.context.unpin(pinned)
        target = export.target
        if type(target) is RpcStub:
            handle = handle_of(target)
            if isinstance(handle, Handle) and export.number in handle.passed_on:
                handle.passed_on.remove(export.number)
            target.dispose()
        elif isinstance(target, Readable | Writable) and not self.context.is_over:
            soon = self.context.surroundings.loop.call_soon
            soon(lambda: self.context.run_callback(target.released, what="a stream's end"), context=NO_CONTEXT)

    def close(self) -> None:
        """The object sleeps or is reset, or the request is over."""
        self.table.end(list(self.exports), "what it belongs to sleeps or has ended")
        handles, self.handles = list(self.handles), WeakSet()
        for handle in handles:
            handle.release()
