"""An object's `fetch`, and calls of its methods, its alarm and what it has exported: what begins when the gate lets it.

Answers leave behind the output gate; a caller whose object is reset is told so.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from functools import partial
from typing import TYPE_CHECKING, Any

from roost.api.http import Response
from roost.errors import JsException, OverloadError, Superseded, WorkerError
from roost.host.bodies import WatchedBody
from roost.host.objects.blocking import deadlock
from roost.host.objects.input_gate import Phase
from roost.host.objects.object_sockets import current_fetch
from roost.host.objects.socket_handlers import SocketHandlers
from roost.host.worker.current import call_chain, drop_unused, not_a_response, received_sockets, request_gateway
from roost.host.worker.pins import NOTHING
from roost.host.worker.rpc_calls import RpcCall
from roost.host.worker.running import in_context
from roost.link.port import NO_CONTEXT

if TYPE_CHECKING:
    from roost.api.http import Request
    from roost.api.socket_end import SocketEnd
    from roost.events import Chain
    from roost.host.worker.rpc_table import Export, Reply

Done = Callable[[Any, BaseException | None], None]


class Serving(SocketHandlers):
    """An object as its callers see it."""

    __slots__ = ("_serving", "_unfinished")

    _serving: dict[asyncio.Task[Any], None]  # tasks that run its fetch
    _unfinished: dict[int, Done]  # calls and alarms that run, by their pin

    # requests

    async def serve(self, request: Request, chain: Chain) -> Response:
        """Run the object's `fetch`. Raises WorkerError if it cannot be woken, or what the handler raised."""
        pinned = self.pin(f"fetch {request.method} running")
        body: Any = None
        try:
            response = await self._serve(request, chain)
            if response.web_socket is None and response.is_streamed:
                body = response.watch_stream(lambda pieces: WatchedBody(pieces, partial(self.unpin, pinned)))
            return response
        finally:
            if body is None:
                self.unpin(pinned)

    async def _serve(self, request: Request, chain: Chain) -> Response:
        waited = False
        while self._waiting is not None and not (waited and self.phase is Phase.AWAKE and not self._blocks):
            if self.phase is Phase.GONE:
                if not self.built and self.failure is not None:
                    raise self._cannot_be_built(self.failure)
                successor: Serving = self.surroundings.objects.awaken(self.ref, "a request that waited")
                return await successor.serve(request, chain)
            if why := deadlock(self, chain, self.surroundings.objects):
                raise JsException(why)
            await self._opened()
            waited = True
        handler = self.kind.handler(self.instance, "fetch")
        if handler is None:
            raise WorkerError(f"{self.kind.name} has no fetch method; add `async def fetch(self, request)`.")
        token = object()
        variables = self.fresh_variables()
        variables.run(current_fetch.set, token)
        variables.run(request_gateway.set, request_gateway.get())
        variables.run(call_chain.set, chain)
        returned: SocketEnd | None = None
        received: list[SocketEnd] = []
        variables.run(received_sockets.set, received)
        task = asyncio.current_task()
        assert task is not None  # this is a coroutine: a task drives it
        if self._serving is NOTHING:
            self._serving = {}
        self._serving[task] = None
        try:
            response = await in_context(variables, self._call(handler, request))
            if not isinstance(response, Response):
                raise not_a_response(f"{self.kind.name}.fetch", response)
            returned = response.web_socket
            if self.gate.shut:
                await self.store.durable()
            return response
        except asyncio.CancelledError:
            if self.failure is None or not task.cancelling():
                raise
            task.uncancel()  # it was `_give_up`: the caller goes on
            raise WorkerError(f"{self.label} was reset: {type(self.failure).__name__}: {self.failure}") from self.failure
        except BaseException:
            if self.gate.shut and self.phase is not Phase.GONE:  # an error is an answer, too
                await asyncio.gather(self.store.durable(), return_exceptions=True)
            raise
        finally:
            self._serving.pop(task, None)
            self._drop_unbound(token, returned)
            drop_unused(received, returned)

    @staticmethod
    async def _call(handler: Any, request: Request) -> Any:
        result = handler(request)
        return await result if hasattr(result, "__await__") else result

    def _cannot_be_built(self, error: BaseException) -> WorkerError:
        failure = WorkerError(f"{self.label} cannot be built: {type(error).__name__}: {error}")
        failure.__cause__ = error
        return failure

    # calls and alarms

    def begin_rpc(self, export: Export, method: str, arguments: bytes, chain: Chain, reply: Reply) -> None:
        call = RpcCall(self, method)

        def done(result: Any, error: BaseException | None) -> None:
            call.answer_when_durable(self.gate, result, error, reply)

        what = export.name_of(method)
        self.run_event(lambda: export.start(method, arguments, call.received), what, chain, done)

    def run_event(self, start: Callable[[], Any], what: str, chain: Chain, done: Done) -> None:
        """Run `start()` of worker code when the gate lets it; `done(result, error)` once it has ended.

        Events begin in the order of these calls. The error is Superseded if it has not run and another actor is to run it.
        """
        if self.surroundings.in_task():  # nothing may be driven in place inside a task
            self.surroundings.loop.call_soon(self.run_event, start, what, chain, done, context=NO_CONTEXT)
        elif self.phase is Phase.GONE:
            done(None, self._cannot_be_built(self.failure or WorkerError("it is asleep")))
        elif self._waiting is None:
            self._run_event(start, what, chain, done)
        elif why := deadlock(self, chain, self.surroundings.objects):
            done(None, JsException(why))
        else:

            def opened(error: BaseException | None) -> None:
                if error is None:
                    self.run_event(start, what, chain, done)
                else:  # Superseded: it is the successor's
                    done(None, error if type(error) is Superseded else self.not_run(error))

            try:
                self._wait(opened)
            except OverloadError as full:
                done(None, full)

    def not_run(self, error: BaseException) -> WorkerError:
        if not self.built:
            return self._cannot_be_built(error)
        return WorkerError(f"{self.label} was reset before the call began: {type(error).__name__}: {error}")

    def _run_event(self, start: Callable[[], Any], what: str, chain: Chain, done: Done) -> None:
        self.surroundings.handled += 1
        variables = self.fresh_variables()
        variables.run(call_chain.set, chain)
        pinned = self.pin(f"{what} running")

        def ended(result: Any, error: BaseException | None) -> None:
            if self._unfinished.pop(pinned, None) is not None:  # else the object was reset, and its caller told
                self.unpin(pinned)
                done(result, error)

        if self._unfinished is NOTHING:
            self._unfinished = {}
        self._unfinished[pinned] = ended
        try:
            result = variables.run(start)
        except BaseException as error:  # noqa: BLE001 - the user's
            ended(None, error)
            return
        if hasattr(result, "__await__"):
            self.surroundings.runner.run(variables, result, ended)
        else:
            ended(result, None)
