"""One call on what was passed on by reference, until it is answered."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Protocol

from roost.api.rpc import (
    GONE,
    BrokenStubError,
    encode_result,
    fault_of,
)
from roost.api.rpc_stubs import RpcStub
from roost.errors import WorkerError
from roost.events import Chain, Fault
from roost.host.worker.current import call_chain

if TYPE_CHECKING:
    from collections.abc import Callable

    from roost.host.worker.rpc_table import Export, Reply, SessionContext


class RpcCall:
    """One call of a function, a method or a property in a context, until it is answered."""

    __slots__ = ("_context", "_method", "passes_on", "received")

    def __init__(self, context: SessionContext, method: str, export: Export | None = None) -> None:
        self._context = context
        self._method = method
        self.passes_on = export is not None and type(export.target) is RpcStub
        self.received: list[Any] = []

    def outcome(self, result: Any, error: BaseException | None) -> tuple[bytes, Fault | None, BaseException | None]:
        """The value or fault that travels, and the error itself. Stubs that were arguments are disposed."""
        value, fault = b"", None
        if error is None:
            try:
                value = encode_result(result, self._method, self._context)
            except Exception as refused:  # noqa: BLE001 - it cannot be cloned: the caller is told
                error = refused
        for stub in self.received:
            stub.dispose()
        if type(error) is BrokenStubError and self.passes_on:
            fault = Fault(GONE, error.message)
        elif error is not None and not isinstance(error, WorkerError):
            fault = fault_of(error)
        return value, fault, error

    def answer_when_durable(self, gate: Gate, result: Any, error: BaseException | None, reply: Reply) -> None:
        """Answer behind what was written before; also an error is an answer."""
        value, fault, raised = self.outcome(result, error)
        failure = raised if isinstance(raised, WorkerError) else None
        gate.hold(lambda broken: reply(value, fault, failure or broken, raised))


class Gate(Protocol):
    """An object's output gate."""

    def hold(self, release: Callable[[Any], None]) -> None: ...


def begin_in_request(
    context: SessionContext, export: Export, method: str, arguments: bytes, chain: Chain, reply: Reply
) -> None:
    """A call on what a request without an object has exported."""
    call = RpcCall(context, method, export)
    variables = context.fresh_variables()
    variables.run(call_chain.set, chain)
    pinned = context.pin(export.name_of(method))

    async def run() -> Any:
        result = export.start(method, arguments, call.received)
        return await result if hasattr(result, "__await__") else result

    def done(result: Any, error: BaseException | None) -> None:
        value, fault, error = call.outcome(result, error)
        context.unpin(pinned)
        reply(value, fault, error if isinstance(error, WorkerError) else None, error)

    context.surroundings.runner.run(variables, run(), done)
