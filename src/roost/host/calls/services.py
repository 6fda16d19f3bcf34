"""Service bindings within the app: calls to another entrypoint, each with an instance and a context of its own."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from roost.api.entrypoint import WorkerEntrypoint
from roost.api.http import Response
from roost.api.rpc import find_method
from roost.api.runtime import current_context
from roost.api.state import ExecutionContext
from roost.errors import WorkerError
from roost.host.bodies import WatchedBody
from roost.host.calls.stubs import Answer, calling_actor, in_callee
from roost.host.objects.blocking import chain_of_call
from roost.host.worker.aborting import unless_aborted
from roost.host.worker.current import call_chain, drop_unused, not_a_response, received_sockets, request_gateway
from roost.host.worker.promise import RpcPromise
from roost.host.worker.request_context import RequestContext
from roost.host.worker.rpc_calls import RpcCall
from roost.host.worker.running import in_context
from roost.link.port import NO_CONTEXT
from roost.values import decode_js, encode

if TYPE_CHECKING:
    import asyncio
    import contextvars

    from roost.api.http import Request
    from roost.host.worker.surroundings import Surroundings


class EntrypointCaller:
    """`api.service.ServiceCaller` of one binding."""

    def __init__(self, surroundings: Surroundings, name: str, props: dict[str, Any]) -> None:
        self._surroundings = surroundings
        self._name = name
        self._props = props

    def _begin(self, what: str) -> tuple[RequestContext, contextvars.Context]:
        surroundings = self._surroundings
        chain = chain_of_call(calling_actor(), 0)
        context = RequestContext(surroundings, f"{self._name}.{what}", surroundings.worker.compat, request_gateway.get())
        variables = context.fresh_variables()
        variables.run(call_chain.set, chain)
        return context, variables

    def _instance(self, context: RequestContext) -> Any:
        cls = self._surroundings.worker.entrypoints.get(self._name)
        if cls is None:
            raise WorkerError(f"the worker has no class {self._name} that extends WorkerEntrypoint.")
        ctx = ExecutionContext(context)
        ctx.props = decode_js(encode(self._props))
        return cls(ctx, self._surroundings.worker.env)

    async def fetch(self, request: Request) -> Response:
        response: Response = await unless_aborted(request.given_signal, self._answered(request))
        return response

    async def _answered(self, request: Request) -> Response:
        await _wait_for_writes()
        context, variables = self._begin("fetch")
        if self._name == "Default":
            answering = self._surroundings.entrypoint.fetch(request, context)
        else:
            answering = self._fetch(request, context)
        response: Response | None = None
        try:
            response = await in_callee(in_context(variables, answering))
            return response
        finally:
            client = None if response is None else response.web_socket
            drop_unused(context.received, client)
            received = received_sockets.get()
            if received is not None and client is not None:
                received.append(client)
            if response is None or not response.is_streamed:
                context.answered()
            else:
                response.watch_stream(lambda pieces: WatchedBody(pieces, context.answered))

    async def _fetch(self, request: Request, context: RequestContext) -> Response:
        handler = getattr(self._instance(context), "fetch", None)
        if handler is None:
            raise WorkerError(f"class {self._name} has no fetch method; add `async def fetch(self, request)`.")
        result = handler(request)
        response: Any = await result if hasattr(result, "__await__") else result
        if not isinstance(response, Response):
            raise not_a_response(f"{self._name}.fetch", response)
        return response

    def call(self, method: str, arguments: bytes) -> asyncio.Future[Any]:
        loop = self._surroundings.loop
        answered = RpcPromise(loop=loop)
        answer = Answer(answered, current_context.get(None))
        context, variables = self._begin(f"{method}()")
        call = RpcCall(context, method)

        def done(result: Any, error: BaseException | None) -> None:
            drop_unused(context.received)
            value, fault, raised = call.outcome(result, error)
            answer(value, fault, raised if isinstance(raised, WorkerError) else None, raised)
            context.called()

        def begin() -> None:
            self._surroundings.counters.calls += 1
            self._surroundings.runner.run(variables, self._start(context, method, arguments, call.received), done)

        def when_durable(error: BaseException | None) -> None:
            if error is not None:
                done(None, error)
            else:
                loop.call_soon(begin, context=NO_CONTEXT)

        caller = calling_actor()
        if caller is None:
            when_durable(None)
        else:
            caller.check_may_wait()
            caller.gate.hold(when_durable)
        return answered

    async def _start(self, context: RequestContext, method: str, arguments: bytes, stubs: list[Any]) -> Any:
        result = find_method(self._instance(context), method, arguments, WorkerEntrypoint, stubs)
        return await result if hasattr(result, "__await__") else result


async def _wait_for_writes() -> None:
    caller = calling_actor()
    if caller is not None and caller.gate.shut:
        await caller.store.durable()
