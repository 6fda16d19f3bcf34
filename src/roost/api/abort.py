"""`AbortController` and `AbortSignal`. Source: DOM standard §3; platform documentation, "Request", `signal`."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final, NamedTuple, Self
from weakref import ref

from roost.api.runtime import IoContext, current_context, require_context
from roost.errors import JsException, JsTypeError
from roost.js_values import JsDict

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

MAX_LISTENERS: Final = 1000  # of one signal


class _Listener(NamedTuple):
    function: Any
    once: bool
    context: IoContext | None  # of who has added it: it runs there, whoever aborts


class AbortSignal:
    """Whether what it was given to shall end, and why: `aborted`, `reason`, the event "abort"."""

    def __init__(self) -> None:
        self.aborted = False
        self.reason: Any = None
        self._on: _Listener | None = None
        self._listeners: list[_Listener] = []
        self._timer: list[AbortSignal] | None = None  # of `timeout`: it holds a signal that has listeners
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
        context = require_context("AbortSignal.timeout()")
        signal._timer = []
        due = [ref(signal, lambda _: context.clear_timer(timer))]  # nobody has it any more: nothing need stay awake
        held = signal._timer

        def end() -> None:
            if (alive := due[0]()) is not None:
                alive.abort_now(JsException("The operation was aborted due to timeout", "TimeoutError"))
            held.clear()

        timer = context.set_timer(end, (), delay_ms, repeat=False)
        return signal

    @classmethod
    def any(cls, signals: Iterable[AbortSignal]) -> Self:
        """One that aborts with the first of several."""
        signal, signals = cls(), list(signals)
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
        if isinstance(reason, BaseException):
            return reason.with_traceback(None)  # which would grow with each time that it is raised
        return JsException(str(reason))

    def addEventListener(self, kind: str, listener: Any, options: Any = None, *, once: bool = False) -> None:
        """Call `listener(event)` for "abort". Raises JsTypeError for what is no function, and for too many."""
        if not callable(listener):
            raise JsTypeError(f"addEventListener({kind!r}) needs a function, not {type(listener).__name__}.")
        if len(self._listeners) >= MAX_LISTENERS:
            raise JsTypeError(f"a signal has {MAX_LISTENERS} listeners; remove those that are not needed.")
        if kind == "abort" and all(other.function != listener for other in self._listeners):
            only_once = once or (isinstance(options, dict) and bool(options.get("once")))
            self._listeners.append(_Listener(listener, only_once, current_context.get(None)))
            self._hold()

    @property
    def onabort(self) -> Any:
        return None if self._on is None else self._on.function

    @onabort.setter
    def onabort(self, listener: Any) -> None:
        self._on = _Listener(listener, once=False, context=current_context.get(None)) if callable(listener) else None
        self._hold()

    def _hold(self) -> None:
        if self._timer is not None and not self._timer and not self.aborted:
            self._timer.append(self)

    def removeEventListener(self, kind: str, listener: Any, options: Any = None) -> None:
        if kind == "abort":
            self._listeners = [entry for entry in self._listeners if entry.function != listener]

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
        called = [*self._listeners, *([self._on] if self._on is not None else [])]
        self._listeners = [entry for entry in self._listeners if not entry.once]
        for listener in called:
            event = JsDict(type="abort", target=self)
            if listener.context is None:
                listener.function(event)
            elif not listener.context.is_over:
                listener.context.run_callback(listener.function, event, what="abort listener")

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
