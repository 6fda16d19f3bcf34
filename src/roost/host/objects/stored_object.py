"""An object and its storage: what is stored behind the output gate, and what an earlier life had finished and said.

A gateway gives an event again if the host died before it had said `Done`. What the object had finished by then is stored
with what it had sent; that is sent again, and the event is not run. `StorageOwner` for `actor_storage`.
"""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING

from roost.errors import JsTypeError
from roost.host.objects.actor_port import ActorPort
from roost.host.objects.actor_storage import ActorStorage
from roost.host.objects.input_gate import InputGate, Phase
from roost.link.port import NO_CONTEXT
from roost.storage.errors import StorageError

if TYPE_CHECKING:
    from roost.host.gateway_link import GatewayLink, Receipt, StoredGroup
    from roost.host.objects.output_gate import OutputGate
    from roost.host.worker.loader import ObjectClass

_log = logging.getLogger("roost.worker")


class StoredObject(InputGate):
    """An object as its storage sees it."""

    __slots__ = ("_ports", "_store", "gate", "kind")

    kind: ObjectClass
    gate: OutputGate
    _store: ActorStorage | None
    _ports: dict[int, ActorPort]

    @property
    def store(self) -> ActorStorage:
        """Its storage, made when it is first used: many a message needs none."""
        store = self._store
        if store is None:
            store = self._store = ActorStorage(self.ref, self.surroundings.disk, self, self.gate)
            if self.phase is Phase.GONE:
                store.close()
        return store

    @property
    def is_writing(self) -> bool:
        """Whether writes are on their way to the disk, so that it must stay."""
        return self.gate.shut or (self._store is not None and self._store.busy)

    def check_may_wait(self) -> None:
        """Raise StorageError inside `transaction()`, whose own writes are on the disk only after it."""
        if self._store is not None:
            self._store.check_may_wait()

    def end_storage(self) -> None:
        """Commit and close on this thread: the host ends."""
        if self._store is not None:
            self._store.close_now()
        else:
            self.gate.break_off(StorageError("the host has ended."))

    def storage_failed(self, error: StorageError) -> None:
        _log.error("%s: %s; what was to be sent because of it is dropped, and the object is reset", self.label, error)
        self.reset(error)

    def port_for(self, gateway: GatewayLink) -> ActorPort:
        """What leaves for that gateway, behind the output gate."""
        port = self._ports.get(gateway.index)
        if port is None:
            port = self._ports[gateway.index] = ActorPort(self.gate, gateway)
        return port

    # redelivery

    def _was_finished(self, event: int, gateway: GatewayLink) -> bool:
        """Whether the host that was given this event before died between its commit and its `Done`."""
        try:
            known = self.store.was_finished(gateway.epoch, event)
        except (StorageError, ValueError) as error:
            _log.error("%s: what it has finished is not known: %s", self.label, error)
            return False
        self.surroundings.counters.events_known += known
        return known

    def send_again(self) -> None:
        """An earlier life may have died before all that it sent had left: that goes before anything of this one."""
        try:
            groups = self.store.load_delivered()
        except (StorageError, ValueError) as error:
            _log.error("%s: what it has finished is not known: %s", self.label, error)
            return
        for group in groups:
            to = self.surroundings.links.of(group[0])
            if to is not None:
                to.send_envelopes(group[3])
            else:
                self.surroundings.links.send_later(group)
        for gateway in self.surroundings.links.here:  # with it, so that it is not sent a third time
            if done := {event for epoch, event in self.store.delivered.earlier if epoch == gateway.epoch}:
                gateway.running -= done
                self.surroundings.loop.call_soon(gateway.send_done, context=NO_CONTEXT)

    def is_redelivered(self, epoch: int, event: int) -> bool:
        for gateway in self.surroundings.links.here:
            if gateway.epoch == epoch:
                return event in gateway.redelivered
        return self.surroundings.links.awaits_gateways  # it may be that one's

    def has_received(self, epoch: int, life: int, group: int) -> bool:
        return any(gateway.epoch == epoch and gateway.has_received(life, group) for gateway in self.surroundings.links.here)

    def groups_to_store(self) -> list[StoredGroup]:
        return [group for port in self._ports.values() for group in port.to_store()]

    def ask_to_confirm(self, epoch: int) -> Receipt | None:
        gateway = self.surroundings.links.of(epoch)
        return None if gateway is None else gateway.ask_to_confirm()

    def check_alarm_handler(self) -> None:
        if self.phase is not Phase.WAKING and not self.kind.has("alarm"):
            raise JsTypeError(
                f"Your Durable Object class must have an alarm() handler in order to call setAlarm(): add `async def"
                f" alarm(self, info)` to {self.kind.name}."
            )
