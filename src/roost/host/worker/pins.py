"""What keeps a context alive, and empty tables that stand for all those that most contexts never write into."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final, NoReturn

if TYPE_CHECKING:
    from roost.api.runtime import Compat
    from roost.host.worker.surroundings import Surroundings


class _Nothing(dict[Any, Any]):
    """An empty table that many share, each until it has something to write: most objects never use most of their tables,
    and a wake makes them all."""

    def __setitem__(self, key: Any, value: Any) -> NoReturn:
        raise TypeError("make a table of your own before you write into it")

    def setdefault(self, key: Any, default: Any = None) -> NoReturn:
        self[key] = default

    def update(self, *tables: Any, **values: Any) -> NoReturn:
        self[None] = None


NOTHING: Final[dict[Any, Any]] = _Nothing()


class Pins:
    """What keeps a context alive, each entry with a name, so that "why is it awake?" always has an answer."""

    __slots__ = ("_io_pins", "_last_pin", "compat", "last_active", "pins", "surroundings")

    surroundings: Surroundings
    compat: Compat
    pins: dict[int, str]
    last_active: float
    _last_pin: int
    _io_pins: dict[int, float]  # until when a pin counts, for those that do not for ever

    def pin(self, what: str) -> int:
        """Something keeps this context alive until `unpin`; `what` says what."""
        self._last_pin = number = self._last_pin + 1
        if self.pins is NOTHING:
            self.pins = {}
        self.pins[number] = what
        return number

    def pin_io(self, what: str, *, dated: bool = False) -> int:
        """A pin of something that may never end: it counts for `io_pin_s`, and one that is `dated` only from the
        compatibility date 2026-10-01 on (reference 4.5)."""
        number = self.pin(what)
        if self._io_pins is NOTHING:
            self._io_pins = {}
        if dated and not self.compat.io_pins:
            self._io_pins[number] = 0.0
        elif self.surroundings.io_pin_s:
            self._io_pins[number] = self.surroundings.loop.time() + self.surroundings.io_pin_s
        return number

    def pins_expired(self, now: float) -> bool:
        """Whether none of the pins counts any more."""
        return all(self._io_pins.get(number, now) < now for number in self.pins)

    def unpin(self, number: int) -> None:
        self.pins.pop(number, None)
        if self._io_pins:
            self._io_pins.pop(number, None)
        self.last_active = self.surroundings.loop.time()
