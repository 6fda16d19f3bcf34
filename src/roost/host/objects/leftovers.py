"""Logs (`-wal`) of objects whose host was killed: folded into their files, one after the other, when nothing else is on.

An object folds its log when it sleeps. One whose host was killed keeps it until it wakes, which may be never. So a host
looks once, at its start, for what earlier ones have left of its own objects. Who wakes meanwhile waits for the few
milliseconds of a fold, as for the end of an earlier life.
"""

from __future__ import annotations

import asyncio
import logging
import os
from pathlib import Path
from typing import TYPE_CHECKING, Final

import apsw

from roost.events import ObjectRef
from roost.host.worker.surroundings import HostPhase
from roost.ids import is_object_id
from roost.storage.folding import fold, size_of

if TYPE_CHECKING:
    from collections.abc import Callable

    from roost.host.objects.registry import Actors
    from roost.host.worker.surroundings import Surroundings

_log = logging.getLogger("roost.storage")

_LATER_S: Final = 1.0  # after the start, which has better things to do
_PAUSE_S: Final = 0.005  # between two: at most some 100 a second


async def fold_leftovers(surroundings: Surroundings, actors: Actors) -> None:
    """Fold them all, once. Never raises but when it is cancelled."""
    await asyncio.sleep(_LATER_S)
    found = await asyncio.to_thread(_left_logs, surroundings.disk.data / "objects", surroundings.owns)
    folded = 0
    for ref in found:
        if surroundings.phase is not HostPhase.SERVING:
            return
        if actors.get(ref) is None and (ref.class_name, ref.id) not in surroundings.elsewhere:
            folding = surroundings.disk.fold_left(ref, _fold)
            if folding is not None:
                folded += await asyncio.wrap_future(folding)
                await asyncio.sleep(_PAUSE_S)
    if folded:
        _log.info("storage: %d objects' logs that a killed host has left are folded", folded)


def _left_logs(objects: Path, owns: Callable[[ObjectRef], bool]) -> list[ObjectRef]:
    found = []
    for folder, _, names in os.walk(objects):
        class_name = Path(folder).parent.name
        for name in names:
            object_id, _, kind = name.partition(".")
            if kind != "sqlite-wal" or not is_object_id(object_id) or not class_name.isidentifier():
                continue
            ref = ObjectRef(class_name, object_id, None)
            if owns(ref) and size_of(os.path.join(folder, name)):
                found.append(ref)
    return found


def _fold(path: Path) -> int:
    """1 if it is folded; on a thread. A reader (`roost storage dump`) or damage leaves it as it is."""
    try:
        log_fd = os.open(f"{path}-wal", os.O_RDONLY | os.O_CLOEXEC)
        try:
            held = fold(path, log_fd).held
        finally:
            os.close(log_fd)
    except (apsw.Error, OSError) as error:
        held = str(error)
    if held:
        _log.debug("storage: the log of %s stays: %s", path, held)
    return 0 if held else 1
