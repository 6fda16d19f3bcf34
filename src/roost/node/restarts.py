"""When a child that has died is started again, and when nobody should wait for it. Pure decisions."""

from __future__ import annotations

import signal
from typing import Final, NamedTuple

STABLE_AFTER_S: Final = 10.0  # who has run for so long begins anew when it dies
_PAUSES_S: Final = (0.0, 0.2, 0.5, 1.0, 2.0, 5.0)
LONGEST_PAUSE_S: Final = _PAUSES_S[-1]
BREAKER_DEATHS: Final = 5  # of one host in a row, each before it was stable: then nobody is let wait for it


class Restart(NamedTuple):
    """What follows a death. `deaths`: in a row, each before it was stable."""

    deaths: int
    pause_s: float
    is_hopeless: bool


def after(deaths: int, ran_s: float, longest_pause_s: float) -> Restart:
    """A child has died that ran for so long, after so many others in a row."""
    deaths = 0 if ran_s > STABLE_AFTER_S else deaths + 1
    pause_s = min(_PAUSES_S[min(deaths, len(_PAUSES_S) - 1)], longest_pause_s)
    return Restart(deaths, pause_s, deaths >= BREAKER_DEATHS)


def is_suspect(code: int, *, replaced: bool, blamed: bool) -> bool:
    """Whether a host that ended with that code (negative: a signal) did so because of the handler that ran: not one that
    was killed from outside, unless it was for not answering."""
    if replaced:
        return code not in (0, -signal.SIGKILL)
    return code != -signal.SIGKILL or blamed


def how(code: int) -> str:
    """A process's end in words."""
    return signal.Signals(-code).name if code < 0 else f"exit code {code}"
