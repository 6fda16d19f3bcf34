"""A whole gateway as it travels to another process: what its parts say of themselves, put together.

`HANDOVER_VERSION` changes with any of these; a successor that does not understand it says so, and the gateway goes on.
"""

from __future__ import annotations

from typing import Final

import msgspec

from roost.errors import RemoteProtocolError
from roost.events import ENVELOPE_VERSION
from roost.gateway.counters import Counters
from roost.gateway.io.connection import SocketState
from roost.gateway.io.http_connection import HttpState
from roost.gateway.routing.exchanges import OriginState
from roost.gateway.routing.host_slot import SlotState
from roost.gateway.routing.sockets import RecordState

HANDOVER_VERSION: Final = 3


class Handover(msgspec.Struct, array_like=True):
    """A whole gateway."""

    version: int
    envelope: int
    epoch: int
    generation: int
    last_actor: int
    last_request: int
    counters: Counters
    sockets: list[SocketState]
    http: list[HttpState]
    records: list[RecordState]
    slots: list[SlotState]
    origins: list[OriginState]
    addresses: dict[int, str]
    descriptors: list[int]
    one_host: bool = False


def check(state: Handover, slots: int) -> None:
    """Raises RemoteProtocolError if this version cannot go on with it."""
    if state.version != HANDOVER_VERSION or state.envelope != ENVELOPE_VERSION:
        raise RemoteProtocolError(
            1002,
            f"the running gateway's state has version {state.version}/{state.envelope}, this Roost understands"
            f" {HANDOVER_VERSION}/{ENVELOPE_VERSION}: restart the node instead",
        )
    if len(state.slots) != slots:
        raise RemoteProtocolError(1002, f"the running gateway serves {len(state.slots)} hosts, not {slots}")
