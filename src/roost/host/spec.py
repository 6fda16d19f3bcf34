"""What a host is made of: its worker's bindings, its place among others, its bounds. Frozen; `node` makes it."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import msgspec

from roost.clock import Clock, SystemClock
from roost.host.disk import LogBounds
from roost.host.limits import HostLimits


class HostSpec(msgspec.Struct, frozen=True, kw_only=True):
    """One host. Sizes in bytes, times in seconds, as their names say."""

    # the worker
    worker_name: str
    variables: Mapping[str, Any] = {}
    classes: Mapping[str, str] = {}  # the classes of objects, by binding
    first_names: Mapping[str, str] = {}  # what a class was called when its ids were first made, by its present name
    crons: Sequence[str] = ()

    # its place
    slot: int = 0
    slots: int = 1
    gateways: int = 1
    gateways_outlive: bool = False  # a gateway that dies has a successor that knows its sockets
    one_host: bool = False  # requests that name no object must all come to this one
    data: Path | None = None  # without one, files live as long as the host
    mark: Path | None = None
    elsewhere: Sequence[tuple[str, str]] = ()  # objects (class, id) that an earlier host still has
    not_again: frozenset[tuple[int, int]] = frozenset()  # events (epoch, number) that an earlier host hung in
    quarantined: frozenset[tuple[str, str]] = frozenset()  # objects (class, id) that have brought their hosts down
    dev: bool = False

    # its bounds
    idle_s: float = 10.0
    io_pin_s: float = 900.0
    limits: HostLimits = HostLimits()
    max_open_files: int = 1000  # databases
    log_bounds: LogBounds | None = None
    cache_bounds: tuple[int, int] = (256 * 1024 * 1024, 0)

    # what it takes from outside
    clock: Clock = msgspec.field(default_factory=SystemClock)
    random_bytes: Callable[[int], bytes] = os.urandom
    ca_file: str | None = None
