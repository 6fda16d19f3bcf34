"""`AbortController` and `AbortSignal`. Source: DOM standard §3; platform documentation, "Request", `signal`."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final, Self
from weakref import ref

from roost.api.runtime import current_context, require_context
from roost.errors import JsException, JsTypeError
from roost.values import JsDict

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

MAX_LISTENERS: Final = 1000  # of one signal


class AbortSignal:
    """Whether what it was given to shall end, and why: `aborted`, `reason`, the event "abort"."""

    def __init__(self) -> None:
        self.aborted = False
        self.reason: Any = None
        self.onabort: Any = None
        self._listeners: list[tuple[Any, bool]] = []  # the worker's functions, and whether once
        self._watchers: dict[int, Callable[[], None]] = {}  # Roost's
        self._last = 0
        self._sources: list[AbortSignal] = []  # of `any`: they must not go before it

    @classmethod
    def abort(cls, reason: Any = None) -> Self:
        """One that is aborted already."""
        signal = cls()
        signal.abort_now(reason)
        return signal

    @classmethod
    def timeout(cls, delay_ms: float) -> Self:
        """One that aborts after so many milliseconds, with a TimeoutError."""
        signal = cls()
        reason = JsException("The operation was aborted due to timeout", "TimeoutError")
        require_context("AbortSignal.timeout()").set_timer(signal.abort_now, (reason,), delay_ms, repeat=False)
        return signal

    @classmethod
    def any(cls, signals: Iterable[AbortSignal]) -> Self:
        """One that aborts with the first of several."""
        signal = cls()
        for source in signals:
            if source.aborted:
                signal.abort_now(source.reason)
                break
        else:
            for source in signals:
                _follow(signal, source)
                signal._sources.append(source)
        return signal

    def throwIfAborted(self) -> None:
        """Raises the reason, as JsException if it is no exception."""
        if self.aborted:
            raise self.error()

    throw_if_aborted = throwIfAborted

    def error(self) -> BaseException:
        """The reason as what can be raised."""
        reason = self.reason
        return reason if isinstance(reason, BaseException) else JsException(str(reason))

    def addEventListener(self, kind: str, listener: Any, options: Any = None, *, once: bool = False) -> None:
        """Call `listener(event)` for "abort". Raises JsTypeError for what is no function, and for too many."""
        if not callable(listener):
            raise JsTypeError(f"addEventListener({kind!r}) needs a function, not {type(listener).__name__}.")
        if len(self._listeners) >= MAX_LISTENERS:
            raise JsTypeError(f"a signal has {MAX_LISTENERS} listeners; remove those that are not needed.")
        if kind == "abort" and all(other is not listener for other, _ in self._listeners):
            self._listeners.append((listener, once or (isinstance(options, dict) and bool(options.get("once")))))

    def removeEventListener(self, kind: str, listener: Any, options: Any = None) -> None:
        if kind == "abort":
            self._listeners = [entry for entry in self._listeners if entry[0] != listener]

    def when_aborted(self, act: Callable[[], None]) -> Callable[[], None]:
        """Not for workers: call `act` at the abort; the result takes that back."""
        self._last += 1
        number = self._last
        self._watchers[number] = act

        def take_back() -> None:
            self._watchers.pop(number, None)

        return take_back

    def abort_now(self, reason: Any = None) -> None:
        """Not for workers: it is aborted. A second time changes nothing."""
        if self.aborted:
            return
        self.aborted = True
        self.reason = JsException("The operation was aborted", "AbortError") if reason is None else reason
        watchers, self._watchers = self._watchers, {}
        for act in watchers.values():
            act()
        called = [listener for listener, _ in self._listeners] + ([self.onabort] if callable(self.onabort) else [])
        self._listeners = [entry for entry in self._listeners if not entry[1]]
        context = current_context.get(None)
        for listener in called:
            event = JsDict(type="abort", target=self)
            if context is None:
                listener(event)
            else:
                context.run_callback(listener, event, what="abort listener")

    def __repr__(self) -> str:
        return f"<AbortSignal {'aborted' if self.aborted else 'not aborted'}>"


def _follow(signal: AbortSignal, source: AbortSignal) -> None:
    """Abort with the source, which keeps nothing of a signal that nobody has any more."""
    weakly = ref(signal, lambda _: take_back())

    def follow() -> None:
        if (alive := weakly()) is not None:
            alive.abort_now(source.reason)

    take_back = source.when_aborted(follow)


class AbortController:
    """`controller.signal`, and `controller.abort(reason)`."""

    def __init__(self) -> None:
        self.signal = AbortSignal()

    @classmethod
    def new(cls) -> Self:
        return cls()

    def abort(self, reason: Any = None) -> None:
        """Abort the signal; the reason is an AbortError unless one is given."""
        self.signal.abort_now(reason)
