"""Upstreams that objects keep: dialled until they are open, and again when they end, with back-off and jitter.

One that is away is closed, and found by its number; what the object sends meanwhile is lost.
"""

from __future__ import annotations

import asyncio
import logging
import os
from typing import TYPE_CHECKING, Final, Protocol
from urllib.parse import urlsplit

from roost.closes import SHUTTING_DOWN, UPSTREAM_ENDED, CloseCode
from roost.errors import RemoteProtocolError
from roost.events import Dial, DialKept, Dialled
from roost.gateway.io.connection import Connection, State
from roost.gateway.io.upstream_connection import UpstreamConnection
from roost.gateway.routing.sockets import ActorRecord
from roost.gateway.upstreams.dialling import REPLACED, Dialler, tell

if TYPE_CHECKING:
    from roost.events import KeepSocket, Redial
    from roost.gateway.io.turn import Turn
    from roost.gateway.routing.host_slot import HostSlot
    from roost.gateway.upstreams.dialling import Upstream

_log = logging.getLogger("roost.gateway")

_REDIALS_AT_ONCE: Final = 100
_WAS_STABLE_S: Final = 10.0  # an upstream that was open for so long begins its back-off anew


class KeptSockets(Protocol):
    """Who binds kept upstreams to their objects."""

    def keep(self, connection: UpstreamConnection, slot: HostSlot, event: KeepSocket) -> None:
        """From now on it is an object's."""
        ...

    def opened_again(self, connection: UpstreamConnection) -> None:
        """It has a new connection, with the same number."""
        ...


class KeptUpstreams:
    """Those of one gateway. `router.Upstreams`, with the dials that are tried once."""

    def __init__(self, turn: Turn, dialler: Dialler, sockets: KeptSockets) -> None:
        self._turn = turn
        self._dialler = dialler
        self._sockets = sockets
        self.interrupted: list[UpstreamConnection] = []  # another gateway was about to dial them again
        self._redials = asyncio.Semaphore(_REDIALS_AT_ONCE)

    def dial(self, slot: HostSlot, dial: Dial) -> None:
        """One that nobody keeps."""
        self._dialler.dial(slot, dial)

    def dial_kept(self, slot: HostSlot, event: DialKept) -> None:
        """A socket that is an object's before it is open: like one that has ended and is dialled again."""
        turn, link = self._turn, slot.current
        if turn.quiescing or turn.draining or slot.link is not link:
            tell(link, Dialled(event.dial.dial, 0, 0, [], REPLACED))
            return
        turn.counters.dials += 1
        connection = UpstreamConnection(turn, -1, turn.new_virtual_number(), slot.plain)
        connection.state = State.GONE
        connection.dial = event.dial
        turn.aliases[connection.number] = connection
        self._sockets.keep(connection, slot, event.keep)
        tell(link, Dialled(event.dial.dial, connection.number, 0, [], ""))
        self._dial_again(connection, at_once=True)

    def redial(self, connection: UpstreamConnection, why: str) -> bool:
        """A kept upstream has ended, and not by our will: dial it again, if its object wants that."""
        turn = self._turn
        if connection.redial is None or connection.dial is None or connection.waiting is not None or turn.draining:
            return False
        if turn.loop.time() - connection.opened_at > _WAS_STABLE_S:
            connection.attempts = 0
        turn.aliases[connection.number] = connection
        turn.counters.upstreams_lost += 1
        _log.warning("gateway: %s is away, and is dialled again: %s", _named(connection), why)
        self._dial_again(connection)
        if connection.state == State.PEER_CLOSED:
            Connection.close(connection, CloseCode.NO_STATUS, "")
        return True

    def _dial_again(self, connection: UpstreamConnection, *, at_once: bool = False) -> None:
        assert connection.redial is not None
        assert connection.dial is not None
        redialling = self._keep_dialling(connection, connection.redial, connection.dial, at_once)
        connection.waiting = self._turn.loop.create_task(redialling)

    async def _keep_dialling(self, before: UpstreamConnection, redial: Redial, dial: Dial, at_once: bool) -> None:
        """`at_once`: the first time, without a pause before it."""
        reason = UPSTREAM_ENDED.reason
        began = self._turn.loop.time()
        while not redial.attempts or before.attempts < redial.attempts:
            if at_once and before.attempts == 1:
                _log.warning("gateway: %s cannot be opened, and is dialled again: %s", _named(before), reason)
            pause = min(redial.max_s, redial.first_s * 2 ** min(max(0, before.attempts - at_once), 30))
            before.attempts += 1
            jitter = int.from_bytes(self._turn.random_bytes(2), "big") / 65536
            if not at_once or before.attempts > 1:
                await asyncio.sleep(pause * (1 - jitter / 2))
            try:
                async with self._redials, asyncio.timeout(self._turn.limits.dial_timeout_s):
                    upstream = await self._dialler.connect(dial)
                if upstream.status != 101:
                    reason = f"The upstream answered {upstream.status}."
                    continue
                self._reopen(before, upstream, redial, dial)
                took_s = self._turn.loop.time() - began
                if before.attempts > 1 or not at_once:
                    _log.info("gateway: %s is back after %.1f s, by dial %d", _named(before), took_s, before.attempts)
                return
            except TimeoutError:
                reason = f"The upstream did not answer within {self._turn.limits.dial_timeout_s:g} s."
            except (OSError, ValueError, RemoteProtocolError) as error:
                reason = str(error) or type(error).__name__
            except Exception as error:  # noqa: BLE001 - a bug of ours must not leave the object waiting for ever
                _log.exception("gateway: internal error while dialling %s again; please report it", dial.url)
                reason = f"internal error: {error}"
        _log.warning("gateway: %s is given up after %d dials: %s", _named(before), before.attempts, reason)
        before.redial = before.waiting = None
        self._turn.socket_events.closed(before, UPSTREAM_ENDED.code, reason, clean=False)
        self._turn.end()

    def _reopen(self, before: UpstreamConnection, upstream: Upstream, redial: Redial, dial: Dial) -> None:
        if before.fd >= 0:
            before.cut()  # it lingers still, and its descriptor would be found by their number
        fd = upstream.sock.detach()
        try:
            connection = self._dialler.connection(upstream, fd, before.number, before.owner, dial)
            connection.tags, connection.attachment, connection.auto_at_ms = (
                before.tags,
                before.attachment,
                before.auto_at_ms,
            )
            connection.redial, connection.attempts = redial, before.attempts
            self._sockets.opened_again(connection)
        except BaseException:
            os.close(fd)
            raise
        before.waiting = None
        self._dialler.begin(connection, upstream)

    def pause(self) -> None:
        """Dial nothing again for now: the gateway is being handed over."""
        for connection in self._turn.aliases.values():
            if isinstance(connection, UpstreamConnection) and connection.waiting is not None:
                connection.waiting.cancel()

    def go_on(self) -> None:
        """Dial again what another gateway was about to."""
        for connection in self.interrupted:
            self._dial_again(connection)
        self.interrupted.clear()

    def resume(self) -> None:
        """Go on with what `pause` has stopped."""
        for connection in list(self._turn.aliases.values()):
            if isinstance(connection, UpstreamConnection) and connection.waiting is not None:
                self._dial_again(connection)

    def goodbye(self) -> None:
        """The node ends: what is away is not dialled again, and its objects hear so."""
        for connection in list(self._turn.aliases.values()):
            if isinstance(connection, UpstreamConnection) and connection.waiting is not None:
                connection.close(*SHUTTING_DOWN)


def _named(connection: UpstreamConnection) -> str:
    """For the log: where it leads, without what may be secret, and whose it is."""
    assert connection.dial is not None
    url = urlsplit(connection.dial.url)
    where = f"{url.scheme}://{url.hostname or ''}{f':{url.port}' if url.port else ''}{url.path}"
    owner = connection.owner
    return f"the upstream {where} of {owner.object.label}" if isinstance(owner, ActorRecord) else f"the upstream {where}"
