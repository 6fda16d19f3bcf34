"""A node of one process (`--inline`): a gateway and a host over a link in memory."""

from __future__ import annotations

import asyncio
import sys
from typing import TYPE_CHECKING, Any, Final

from roost.link.memory import memory_pair
from roost.node.assemble import (
    HostPlace,
    gateway_report,
    host_report,
    load,
    make_gateway,
    make_host,
    restore_object,
    settle_memory,
    start_apps,
)
from roost.observe import logs

if TYPE_CHECKING:
    import socket
    from collections.abc import Callable, Sequence

    from roost.gateway.gateway import Gateway
    from roost.host.host import Host
    from roost.node.config import App
    from roost.node.options import Options
    from roost.node.settings import Settings

_EVICT_WAITS_S: Final = 4.0  # for what pins an object
_HOST_ENDS_S: Final = 1.0


class Inline:
    """The two, once they run."""

    gateway: Gateway
    host: Host

    async def run(
        self,
        app: App,
        settings: Settings,
        options: Options,
        first_names: dict[str, str],
        listeners: Sequence[socket.socket],
        ready: Callable[[], None],
        stopping: asyncio.Event,
    ) -> None:
        """Serve until `stopping`. Raises ConfigError or WorkerError before `ready`."""
        loop = asyncio.get_running_loop()
        stdout = sys.stdout
        logs.redirect_prints()
        try:
            worker = load(app)
            await start_apps(settings)
            place = HostPlace(data=options.data, first_names=first_names, ca_file=options.ca_file)
            host = self.host = make_host(loop, worker, app, settings, place)
            gateway = self.gateway = make_gateway(
                loop, app, settings, 1, options.ca_file, epoch=0, log_format=options.log_format
            )
            host_end, gateway_end = memory_pair(loop)
            gateway.add_host(gateway_end)
            host.add_gateway(host_end)
            gateway.start()
            for sock in listeners:
                gateway.listen(sock.dup())
            settle_memory()
            ready()
            await stopping.wait()
            await gateway.drain(settings.timeouts.drain_s)
            await host.close(_HOST_ENDS_S)
        finally:
            sys.stdout = stdout

    def report(self) -> dict[str, Any]:
        """Both."""
        return {"gateways": [gateway_report(self.gateway)], "hosts": [host_report(self.host)]}

    async def evict(self, wanted: str | None, *, cut: bool) -> int:
        """Put objects to sleep; how many."""
        return await self.host.sleeping.evict(wanted, cut=cut, timeout_s=_EVICT_WAITS_S)

    async def restore(self, class_name: str, object_id: str, name: str | None, alarm_ms: int | None) -> dict[str, Any]:
        """Put a restored file in an object's place."""
        return await restore_object(self.host, class_name, object_id, name, alarm_ms)
