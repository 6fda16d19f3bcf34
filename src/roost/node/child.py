"""A child process: one gateway or one host. `python -m roost.node.child FD`, FD its end of the control socket.

Orders and answers are JSON lines on that socket (`orders`); its end of file means that the node is gone, and the child ends
too. What all children do is here; what only gateways or only hosts do, in their roles.
"""

from __future__ import annotations

import asyncio
import gc
import logging
import os
import signal
import socket
import sys
from typing import TYPE_CHECKING

import msgspec
import uvloop

from roost.errors import ConfigError, InternalError, WorkerError
from roost.node.assemble import fault_of, settle_memory
from roost.node.child_control import Control
from roost.node.host_process import forget_allocator
from roost.node.orders import (
    CONTROL_LINE_BYTES,
    AskReport,
    Connect,
    Drain,
    Failed,
    Loaded,
    Ping,
    Pong,
    Ready,
    Start,
)
from roost.observe import logs

if TYPE_CHECKING:
    from roost.node.child_control import Role
    from roost.node.spec import ChildSpec

_ENDING_S = 0.5  # for a child whose node is gone


async def run(control: Control) -> int:
    """Be what the node orders, until it is over; the exit code."""
    try:
        order = await control.next()
    except msgspec.ValidationError as error:  # `roost upgrade` by a node of another version
        text = f"this Roost does not understand the node that runs ({error}): restart the node instead"
        await control.tell(Failed(text, "config"))
        return 1
    if not isinstance(order, Start):
        return 1
    spec = order.spec
    logs.set_up(spec.log_format, debug=spec.debug)
    try:
        role = await _role(spec)
    except (ConfigError, WorkerError) as error:
        fault, text, detail = fault_of(error)
        await control.tell(Failed(text, fault, detail))
        return 1
    connect: Connect | None = None
    if spec.hold:
        await control.tell(Loaded())
        order = await control.next()
        if not isinstance(order, Connect):
            await role.drain(0)
            return 0
        connect = order
    try:
        await role.connect(connect)
    except InternalError as error:
        await control.tell(Failed(str(error)))
        return 1
    settle_memory()
    await control.tell(Ready())
    return await _serve(control, role)


async def _role(spec: ChildSpec) -> Role:
    """Imports only what the role needs."""
    if spec.role == "gateway":
        from roost.node.gateway_child import GatewayChild

        return GatewayChild(spec)
    from roost.node.host_child import HostChild

    return await HostChild.start(spec)


async def _serve(control: Control, role: Role) -> int:
    while (order := await control.next()) is not None:
        if isinstance(order, Ping):
            await control.tell(Pong())
        elif isinstance(order, AskReport):
            await control.report(order.request, role.report())
        elif isinstance(order, Drain):
            await role.drain(order.timeout_s, order.why)
            return 0
        elif await role.obey(order, control):
            return 0
    if control.finishing is not None and control.finishing.done():  # a host that was replaced has nothing more to do
        await role.drain(0)
        return 0
    await role.drain(_ENDING_S)
    return 1


async def _main(fd: int) -> int:
    sock = socket.socket(fileno=fd)
    reader, writer = await asyncio.open_unix_connection(sock=sock, limit=CONTROL_LINE_BYTES)
    loop = asyncio.get_running_loop()
    for number in (signal.SIGINT, signal.SIGTERM):
        loop.add_signal_handler(number, lambda: None)  # the node decides; a terminal's Ctrl-C reaches every process
    try:
        return await run(Control(reader, writer))
    finally:
        writer.close()


if __name__ == "__main__":
    gc.disable()  # until `settle_memory`
    forget_allocator(os.environ)
    code = uvloop.run(_main(int(sys.argv[1])))
    logging.shutdown()
    os._exit(code)  # a worker's threads must not keep a drained host alive
