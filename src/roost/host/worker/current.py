"""Context variables of the request or call that the running code belongs to, and what is done at its end."""

from __future__ import annotations

from contextvars import ContextVar
from typing import TYPE_CHECKING, Any

from roost.api.socket_end import Accept
from roost.errors import WorkerError
from roost.events import Chain

if TYPE_CHECKING:
    from roost.api.socket_end import SocketEnd
    from roost.host.gateway_link import GatewayLink

request_gateway: ContextVar[GatewayLink | None] = ContextVar("roost_request_gateway", default=None)
"""The gateway of the client whose request is being served: what becomes that client's socket must be there, too."""

received_sockets: ContextVar[list[SocketEnd] | None] = ContextVar("roost_received_sockets", default=None)
"""The client ends that stubs have answered the current code with: used, or dropped at its end."""

call_chain: ContextVar[Chain] = ContextVar("roost_call_chain", default=Chain())  # noqa: B039 - frozen
"""Through which calls the current code was reached."""


def not_a_response(what: str, value: Any) -> WorkerError:
    """The error for a handler's wrong result, with what was probably meant."""
    if hasattr(value, "__await__"):
        getattr(value, "close", lambda: None)()
        return WorkerError(f"{what} returned a coroutine, not a Response; did you forget `await`?")
    hint = "a Response"
    if isinstance(value, dict | list):
        hint = "Response.json(value)"
    elif isinstance(value, str):
        hint = "Response(text)"
    return WorkerError(f"{what} returned {type(value).__name__}, not a Response; return {hint}.")


def drop_unused(received: list[SocketEnd], but: SocketEnd | None = None) -> None:
    """Tell objects whose `fetch` was answered with a socket that nobody uses it: it never gets a client."""
    for client in received:
        server = client.other_end
        used = client.is_used or client.accepted_as != Accept.NONE or client is but
        if not used and server is not None and server.io_context is not None:
            server.io_context.drop_unbound(server)
