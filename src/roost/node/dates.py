"""What an app's `compatibility_date` and `compatibility_flags` choose. Source: reference 1.2, 2.1-2.4, 4.5, 5.

A flag goes before the date. Only behaviours about sockets, objects and Python's entrypoints are here; flags of anything
else have no effect, and say so unless they are known to be of another area.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

import msgspec

from roost.api.runtime import Compat
from roost.config_values import nearest
from roost.errors import ConfigError

if TYPE_CHECKING:
    from collections.abc import Sequence

NEWEST_DATE: Final = "2026-11-23"
"""The newest date whose behaviours were looked at."""


class Dated(msgspec.Struct, frozen=True):
    """One behaviour: from which date, and the flags that turn it on and off whatever the date."""

    field: str  # of Compat
    since: str  # "" if no date turns it on
    on: str
    off: str = ""


BEHAVIOURS: Final = (
    Dated("compression", "2023-08-15", "web_socket_compression", "no_web_socket_compression"),
    Dated("no_global_handlers", "2025-08-14", "python_no_global_handlers", "disable_python_no_global_handlers"),
    Dated("delete_all_alarm", "2026-02-24", "delete_all_deletes_alarm", "delete_all_preserves_alarm"),
    Dated("close_reason_limit", "2026-03-03", "websocket_close_reason_byte_limit", "no_websocket_close_reason_byte_limit"),
    Dated("standard_binary_type", "2026-03-17", "websocket_standard_binary_type", "no_websocket_standard_binary_type"),
    Dated("auto_reply_to_close", "2026-04-07", "web_socket_auto_reply_to_close", "web_socket_manual_reply_to_close"),
    Dated(
        "io_pins", "2026-10-01", "durable_object_io_tasks_prevent_eviction", "no_durable_object_io_tasks_prevent_eviction"
    ),
    Dated("strict_close_codes", "", "pedantic_wpt", "non_pedantic_wpt"),
)
_OTHER_AREAS: Final = (
    "python_",
    "nodejs_",
    "no_nodejs_",
    "enable_nodejs_",
    "disable_nodejs_",
    "experimental",
    "global_fetch_",
)


def compat_for(date: str, flags: Sequence[str], warnings: list[str], where: str) -> Compat:
    """The behaviours of an ISO date (they compare as text) and flags. Raises ConfigError for flags that contradict each
    other; what has no effect is added to `warnings`."""
    if date > NEWEST_DATE:
        warnings.append(
            f"{where}: compatibility_date {date} is newer than what this Roost knows ({NEWEST_DATE}): it behaves as then."
        )
    chosen: dict[str, bool] = {}
    by_flag = {flag: (behaviour.field, on) for behaviour in BEHAVIOURS
               for flag, on in ((behaviour.on, True), (behaviour.off, False)) if flag}  # fmt: skip
    for flag in flags:
        if flag in by_flag:
            field, on = by_flag[flag]
            if chosen.get(field, on) is not on:
                raise ConfigError(
                    f"{where}: compatibility_flags: {flag} contradicts another one.", key="compatibility_flags"
                )
            chosen[field] = on
        elif not flag.startswith(_OTHER_AREAS):
            warnings.append(
                f"{where}: the compatibility flag {flag!r} has no effect in Roost.{nearest(flag, list(by_flag))}"
            )
    return Compat(
        **{
            behaviour.field: chosen.get(behaviour.field, bool(behaviour.since) and date >= behaviour.since)
            for behaviour in BEHAVIOURS
        }
    )
