"""Answering method calls on objects: what they return or raise leaves behind the object's output gate."""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING, Any

from roost.api.entrypoint import DurableObject
from roost.api.rpc import fault_of, find_method
from roost.errors import ConfigError, Superseded, UnavailableError, WorkerError
from roost.events import Call, Fault, Result
from roost.host.worker.rpc_calls import RpcCall
from roost.link.port import NO_CONTEXT

if TYPE_CHECKING:
    from roost.events import Chain, ObjectRef
    from roost.host.gateway_link import GatewayLink
    from roost.host.worker.rpc_table import Reply
    from roost.host.worker.surroundings import Surroundings

_log = logging.getLogger("roost.worker")


class MethodCalls:
    """The method calls that one host answers. Not to be begun within a task."""

    def __init__(self, surroundings: Surroundings) -> None:
        self._surroundings = surroundings
        self.running = 0  # also those that wait to begin

    def from_link(self, gateway: GatewayLink, event: Call) -> None:
        """A call of another host."""

        def reply(value: bytes, fault: Fault | None, error: BaseException | None, cause: BaseException | None) -> None:
            if cause is not None:
                what = event.target.class_name or "a stub"
                _log.info("%s.%s() raised %s (told to its caller)", what, event.method, fault)
            if error is not None:
                fault = fault_of(error)
            gateway.link.send(Result(event.request, value, fault))

        self.begin(event.target, event.method, event.arguments, event.chain, reply)

    def begin(self, ref: ObjectRef, method: str, arguments: bytes, chain: Chain, reply: Reply) -> None:
        """Call a method of an object. `reply(value, fault, error, cause)`: its result, what it raised (and the exception
        itself), or why it was not run."""
        if not ref.class_name:
            self.running += 1

            def replied(*outcome: Any) -> None:
                self.running -= 1
                reply(*outcome)

            self._surroundings.rpc.begin(ref, method, arguments, chain, replied)
            return
        self._surroundings.counters.calls += 1
        try:
            actor = self._surroundings.objects.awaken(ref, f"{method}()")
        except ConfigError as error:
            reply(b"", None, WorkerError(str(error)), None)
            return
        except UnavailableError as error:
            reply(b"", None, error, None)
            return
        self.running += 1
        call = RpcCall(actor, method)

        def start() -> Any:
            return find_method(actor.instance, method, arguments, DurableObject, call.received)

        def done(result: Any, error: BaseException | None) -> None:
            self.running -= 1
            if type(error) is Superseded:
                self._surroundings.loop.call_soon(self.begin, ref, method, arguments, chain, reply, context=NO_CONTEXT)
            else:
                call.answer_when_durable(actor.gate, result, error, reply)

        actor.run_event(start, f"{method}()", chain, done)
