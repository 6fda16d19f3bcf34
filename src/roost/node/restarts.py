"""When a child that has died is started again, and when nobody should wait for it. Pure decisions."""

from __future__ import annotations

import signal
from typing import Final, NamedTuple

STABLE_AFTER_S: Final = 10.0  # who has run for so long begins anew when it dies
_PAUSES_S: Final = (0.0, 0.2, 0.5, 1.0, 2.0, 5.0)
_KILL_PAUSES_S: Final = (0.0, 0.0, 0.0, 0.1, *[0.2] * 16, 1.0, 2.0, 5.0)  # the worker is not to blame, as it seems
LONGEST_PAUSE_S: Final = _PAUSES_S[-1]
BREAKER_DEATHS: Final = 5  # of one host in a row, each before it was stable: then nobody is let wait for it
BREAKER_KILLS: Final = 20  # of one host in a row, by others: or by itself, or by a killer that the kernel does not count


class Past(NamedTuple):
    """How often the child of a place died before it was stable, in a row: by itself, and killed by somebody else."""

    deaths: int = 0
    kills: int = 0


class Restart(NamedTuple):
    """What follows a death."""

    past: Past
    pause_s: float
    is_hopeless: bool


def after(past: Past, ran_s: float, longest_pause_s: float, *, by_others: bool = False) -> Restart:
    """A child has died that ran for so long."""
    deaths, kills = (0, 0) if ran_s > STABLE_AFTER_S else past
    if by_others:
        kills += ran_s <= STABLE_AFTER_S
        pause_s = _KILL_PAUSES_S[min(kills, len(_KILL_PAUSES_S) - 1)]
    else:
        deaths += ran_s <= STABLE_AFTER_S
        pause_s = _PAUSES_S[min(deaths, len(_PAUSES_S) - 1)]
    is_hopeless = kills >= BREAKER_KILLS if by_others else deaths >= BREAKER_DEATHS
    return Restart(Past(deaths, kills), min(pause_s, longest_pause_s), is_hopeless)


def is_suspect(code: int, *, replaced: bool, blamed: bool) -> bool:
    """Whether a host that ended with that code (negative: a signal) did so because of the handler that ran: not one that
    was killed from outside, unless it was for not answering."""
    if replaced:
        return code not in (0, -signal.SIGKILL)
    return code != -signal.SIGKILL or blamed


def how(code: int) -> str:
    """A process's end in words."""
    return signal.Signals(-code).name if code < 0 else f"exit code {code}"
