"""Stub calls: to an object on this host directly, to one elsewhere through a gateway."""

from __future__ import annotations

import asyncio
from collections import deque
from typing import TYPE_CHECKING, Any, NoReturn

from roost.api.http import Request, Response
from roost.api.rpc import decode_result, error_of, fault_of
from roost.api.runtime import current_context
from roost.api.websocket import WebSocket
from roost.errors import DurableObjectAbort, JsException, JsTypeError, OverloadError, QuarantineError, WorkerError
from roost.events import Abort, Call, Chain, Fault
from roost.events import Request as RequestEvent
from roost.events import Response as ResponseEvent
from roost.host.objects.actor import Actor
from roost.host.objects.blocking import chain_of_call, current_section
from roost.host.worker.aborting import unless_aborted
from roost.host.worker.current import received_sockets, request_gateway
from roost.host.worker.promise import RpcPromise
from roost.host.worker.surroundings import HostPhase
from roost.link.port import NO_CONTEXT

if TYPE_CHECKING:
    from collections.abc import Callable, Coroutine

    from roost.api.runtime import IoContext
    from roost.api.socket_end import SocketPort
    from roost.events import ObjectRef, Result
    from roost.host.calls.answering import MethodCalls
    from roost.host.gateway_link import GatewayLink
    from roost.host.worker.surroundings import Surroundings


MAX_STUB_BODY_BYTES = 32 * 1024 * 1024


class SocketReference(WebSocket):
    """The client end of a pair whose server end is an object on another host: it can only be passed on in a Response."""

    __slots__ = ()

    def refers_to(self, port: SocketPort, number: int) -> None:
        """It stands for a gateway's socket."""
        self.socket_port = port
        self.socket_number = number

    def accept(self, options: Any = None, *, allowHalfOpen: bool | None = None) -> NoReturn:
        raise JsTypeError(
            "This WebSocket belongs to an object on another host and can only be returned to the client; accept() on it is "
            "not supported by Roost yet."
        )


class StubCaller:
    """`api.namespace.ObjectCaller` of one host."""

    def __init__(self, surroundings: Surroundings, calls: MethodCalls) -> None:
        self._surroundings = surroundings
        self._calls = calls
        self._last_request = surroundings.links.unique_numbers() + 1  # odd, and not one that a predecessor used
        self._soon: dict[tuple[str, str], deque[Callable[[], None]]] = {}  # what begins in the next turn, by object

    def _new_request(self) -> int:
        self._last_request += 2
        return self._last_request

    @property
    def may_ask(self) -> bool:
        """Whether there is a gateway to ask, and time to. `rpc_table.TableCaller`."""
        surroundings = self._surroundings
        return bool(surroundings.links.here) and surroundings.phase is HostPhase.SERVING

    # methods

    def call_object(self, ref: ObjectRef, method: str, arguments: bytes) -> asyncio.Future[Any]:
        """Begin a method call: behind the caller's writes, and behind the calls it made before."""
        loop = self._surroundings.loop
        caller = calling_actor()
        number = self._new_request()
        chain = chain_of_call(caller, number)
        if caller is not None:
            caller.check_may_wait()
        answered = RpcPromise(loop=loop)
        answer = Answer(answered, current_context.get(None))
        in_section = caller is not None and current_section() is not None
        if caller is not None:
            pinned = caller.pin(f"call {ref.class_name}.{method}()" if ref.class_name else f"call of a stub {method}()")

            def over(_: Any) -> None:
                caller.unpin(pinned)
                caller.calls_in_block.pop(number, None)

            answered.add_done_callback(over, context=NO_CONTEXT)

        def begin() -> None:
            if caller is not None and in_section:
                caller.called_in_block(number, ref)
            try:
                if self._surroundings.owns(ref) or self._surroundings.rpc.is_ours(ref):
                    self._calls.begin(ref, method, arguments, chain, answer)
                else:
                    self._call_elsewhere(Call(number, ref, method, arguments, chain), answer)
            except Exception as error:  # noqa: BLE001 - whatever it is, the caller must not wait for ever
                answer(b"", None, error)

        def in_its_turn(error: BaseException | None) -> None:
            if error is not None:
                answer(b"", None, error)
            else:
                # In a turn of its own: nothing may be driven in place inside the caller's task.
                self._in_turn(ref, begin)

        if caller is None:
            in_its_turn(None)
        else:
            caller.gate.hold(in_its_turn)
        return answered

    def _in_turn(self, ref: ObjectRef, begin: Callable[[], None]) -> None:
        """Begin a call in the next turn; what is called on the object until then comes behind it."""
        key = ref.class_name, ref.id
        waiting = self._soon.get(key)
        if waiting is None:
            waiting = self._soon[key] = deque()
            self._surroundings.loop.call_soon(self._begin_waiting, key, context=NO_CONTEXT)
        waiting.append(begin)

    def _begin_waiting(self, key: tuple[str, str]) -> None:
        waiting = self._soon[key]
        while waiting:
            begin = waiting.popleft()
            begin()
            if waiting and type(begin) is _Passing:  # that fetch begins in the next turn: those behind it later
                self._surroundings.loop.call_soon(self._begin_waiting, key, context=NO_CONTEXT)
                return
        del self._soon[key]

    async def _behind_calls(self, ref: ObjectRef) -> None:
        """Let the calls begin that were made before, and what the caller has written reach the disk."""
        caller = calling_actor()
        if caller is not None and caller.gate.shut:
            caller.check_may_wait()
            passing = _Passing(self._surroundings.loop)

            def durable(error: BaseException | None) -> None:
                if error is None:
                    self._in_turn(ref, passing)
                else:
                    passing.fail(error)

            caller.gate.hold(durable)
        elif (ref.class_name, ref.id) in self._soon:
            passing = _Passing(self._surroundings.loop)
            self._in_turn(ref, passing)
        else:
            return
        await passing.future

    def ask(self, target: ObjectRef, method: str, arguments: bytes, answered: asyncio.Future[Result]) -> None:
        """A call of the host itself. Raises JsException if no gateway is there."""
        self._send(Call(self._new_request(), target, method, arguments, Chain()), answered)

    def _call_elsewhere(self, event: Call, answer: Answer) -> None:
        result: asyncio.Future[Result] = self._surroundings.loop.create_future()

        def over(done: asyncio.Future[Result]) -> None:
            error = done.exception()
            if error is not None:
                answer(b"", None, error)
            else:
                answer(done.result().value, done.result().fault, None)

        result.add_done_callback(over, context=NO_CONTEXT)
        self._send(event, result)

    def _send(self, event: Call, answered: asyncio.Future[Result]) -> None:
        gateway = self._gateway_for(event.target)
        gateway.responses[event.request] = answered
        answered.add_done_callback(lambda _: gateway.responses.pop(event.request, None), context=NO_CONTEXT)
        gateway.link.send(event)

    def _gateway_for(self, ref: ObjectRef) -> GatewayLink:
        """Always the same gateway for an object, so that calls arrive in their order."""
        links = self._surroundings.links.here
        if not links:
            raise JsException("The object lives on another host, and no gateway is connected; try again.")
        return links[int(ref.id[:8], 16) % len(links)]

    # fetch

    async def fetch_object(self, ref: ObjectRef, request: Request) -> Response:
        await self._behind_calls(ref)
        response: Response = await unless_aborted(request.given_signal, self._fetch_object(ref, request))
        return response

    async def _fetch_object(self, ref: ObjectRef, request: Request) -> Response:
        caller = calling_actor()
        number = self._new_request()
        chain = chain_of_call(caller, number)
        if caller is None:
            return await self._fetch(number, ref, request, chain)
        pinned = caller.pin(f"fetch to {ref.class_name}")
        if current_section() is not None:
            caller.called_in_block(number, ref)
        try:
            return await self._fetch(number, ref, request, chain)
        finally:
            caller.unpin(pinned)
            caller.calls_in_block.pop(number, None)

    async def _fetch(self, number: int, ref: ObjectRef, request: Request, chain: Chain) -> Response:
        surroundings = self._surroundings
        if surroundings.owns(ref):
            response = await in_callee(surroundings.objects.awaken(ref, f"fetch {request.method}").serve(request, chain))
            received = received_sockets.get()
            if received is not None and response.web_socket is not None:
                received.append(response.web_socket)
            return response
        return await self._fetch_elsewhere(number, ref, request, chain)

    async def _fetch_elsewhere(self, number: int, ref: ObjectRef, request: Request, chain: Chain) -> Response:
        upgrade = str(request.headers.get("upgrade", "")).lower() == "websocket"
        # What becomes a client's socket must go through the gateway that holds the client.
        gateway = request_gateway.get() if upgrade else None
        if gateway is None or gateway not in self._surroundings.links.here:
            gateway = self._gateway_for(ref)
        body = await request.bytes()
        if len(body) > MAX_STUB_BODY_BYTES:
            raise JsTypeError(f"A body of {len(body)} bytes is too large for an object on another host (32 MiB).")
        answered: asyncio.Future[ResponseEvent] = self._surroundings.loop.create_future()
        gateway.responses[number] = answered
        gateway.link.send(
            RequestEvent(
                number, str(request.method), request.url, request.headers.pairs, body, False, upgrade, 0, "", ref, chain
            )
        )
        taken = False
        try:
            response = self._response(gateway, await answered)
            taken = True
            return response
        finally:
            gateway.responses.pop(number, None)
            if not taken:  # the caller gave up: so should the one who answers
                gateway.readers.pop(number, None)
                gateway.bodies.pop(number, None)
                gateway.link.send(Abort(number, "The caller gave up."))

    def _response(self, gateway: GatewayLink, event: ResponseEvent) -> Response:
        if event.status == 101:
            socket = SocketReference()
            socket.refers_to(gateway, event.socket)
            return Response(None, 101, event.reason, event.headers, socket)
        body: Any = event.body
        if event.more_body:
            body = gateway.readers.pop(event.request)
        if event.status in (204, 205, 304):
            body = None
        return Response(body, event.status, event.reason, event.headers)


def calling_actor() -> Actor | None:
    """The object whose code is running."""
    context = current_context.get(None)
    return context if isinstance(context, Actor) else None


class _Passing:
    """A fetch's place in the row: the calls before it begin first."""

    __slots__ = ("future",)

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        self.future: asyncio.Future[None] = loop.create_future()

    def __call__(self) -> None:
        if not self.future.done():
            self.future.set_result(None)

    def fail(self, error: BaseException) -> None:
        """What the caller has written is not on the disk."""
        if not self.future.done():
            self.future.set_exception(error)


class Answer:
    """Settles a call's future: with a value, what was raised, or why it was not run. Never raises itself."""

    __slots__ = ("_answered", "_context")

    def __init__(self, answered: asyncio.Future[Any], context: IoContext | None) -> None:
        self._answered = answered
        self._context = context  # of who has called

    def __call__(
        self, value: bytes, fault: Fault | None, error: BaseException | None, cause: BaseException | None = None
    ) -> None:
        if self._answered.done():
            return
        if error is not None:
            self._answered.set_exception(error)
        elif fault is not None:
            self._answered.set_exception(raised(fault, "", cause))
        else:
            try:
                self._answered.set_result(decode_result(value, self._context))
            except Exception as damaged:  # noqa: BLE001 - the caller must not wait for ever
                self._answered.set_exception(damaged)


def raised(fault: Fault | None, reason: str, cause: BaseException | None = None) -> Exception:
    """What a call that failed raises in its caller: the fault, or that it was not run, for this reason."""
    if fault is None:
        return WorkerError(reason)
    for unavailable in (QuarantineError, OverloadError):
        if fault.name == unavailable.__name__:
            return unavailable(fault.message)
    return error_of(fault, cause)


async def in_callee(answering: Coroutine[Any, Any, Response]) -> Response:
    """Await another's `fetch`: what it raises becomes a remote error, also what only ends itself (abort, cancel)."""
    try:
        return await answering
    except WorkerError:
        raise
    except asyncio.CancelledError as error:
        task = asyncio.current_task()
        if task is not None and task.cancelling():
            raise  # it is the caller who is cancelled
        raise error_of(Fault("Error", "The call was cancelled by the one who was called."), error) from error
    except (Exception, DurableObjectAbort) as error:
        raise error_of(fault_of(error), error) from error
