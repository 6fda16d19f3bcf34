"""The classes that workers extend, and the module-level names of `workers`. Source: reference 1.1, 1.2."""

from __future__ import annotations

import contextlib
import functools
import inspect
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any, ClassVar

from roost.api.http import Request, Response
from roost.api.promises import eager
from roost.api.runtime import require_context
from roost.errors import JsException
from roost.values import as_js

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Iterable, Iterator


class WorkerEntrypoint:
    """A stateless worker: one instance a request. The class named `Default` answers HTTP."""

    def __init__(self, ctx: Any, env: Any) -> None:
        self.ctx = ctx
        self.env = env


class DurableObject:
    """A class of objects: one instance an object while it is awake."""

    def __init__(self, ctx: Any, env: Any) -> None:
        self.ctx = ctx
        self.env = env


class RpcTarget:
    """What stays where it is when a call passes it: the other side gets a stub, and calls its methods here.

    Methods and properties of its class can be used, what is set on the instance cannot. Source: platform documentation,
    "Remote-procedure call (RPC)", "Class instances".
    """


class WorkflowEntrypoint:
    """Importable, so that sources which mention workflows load; running one is not supported."""

    def __init__(self, ctx: Any, env: Any) -> None:
        raise NotImplementedError("Workflows are not supported by Roost.")


class Env:
    """`env`: vars and bindings as attributes (and items)."""

    def __init__(self, values: dict[str, Any], bindings: Iterable[str] = ()) -> None:
        self.__dict__.update(values)
        self.__dict__.update({name: Later(name) for name in bindings})

    def fill(self, values: dict[str, Any]) -> None:
        """The bindings are there: also those that were read before."""
        for name, value in values.items():
            if isinstance(before := self.__dict__.get(name), Later):
                before.found(value)
            self.__dict__[name] = value

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__"):
            raise AttributeError(name)
        known = ", ".join(sorted(self.__dict__)) or "none"
        raise AttributeError(f"env has no binding or var {name!r}; the configuration defines: {known}.")

    def __getitem__(self, name: str) -> Any:
        return getattr(self, name)

    def __contains__(self, name: str) -> bool:
        return name in self.__dict__

    def __repr__(self) -> str:
        return f"Env({', '.join(sorted(self.__dict__))})"  # names only: values may be secrets


class Later:
    """A binding as a module reads it while it is imported (`ROOMS = env.ROOMS`): there from the first event on."""

    def __init__(self, name: str) -> None:
        self.__dict__["_name"] = name

    def found(self, binding: Any) -> None:
        self.__dict__["_binding"] = binding

    def __getattr__(self, name: str) -> Any:
        if "_binding" not in self.__dict__:
            if name.startswith("_"):  # who looks what it is, or copies it
                raise AttributeError(name)
            raise JsException(
                f"env.{self._name} cannot be used at module level: do it inside a handler (fetch, webSocketMessage, …)."
            )
        return getattr(self.__dict__["_binding"], name)

    def __repr__(self) -> str:
        return f"<env.{self._name}>"


class LazyEnv:
    """`from workers import env`: the worker's `env`, importable before it is loaded."""

    target: ClassVar[Env | None] = None

    def __getattr__(self, name: str) -> Any:
        if LazyEnv.target is None:
            raise RuntimeError("env is not available before the worker is loaded.")
        return getattr(LazyEnv.target, name)

    def __getitem__(self, name: str) -> Any:
        return getattr(self, name)

    def __contains__(self, name: str) -> bool:
        return LazyEnv.target is not None and name in LazyEnv.target

    def __repr__(self) -> str:
        return repr(LazyEnv.target)


env = LazyEnv()


@contextlib.contextmanager
def patch_env(values: dict[str, Any] | None = None, **more: Any) -> Iterator[None]:
    """Other values of `env` while the block runs. For tests: every request of this process sees them."""
    target = LazyEnv.target
    if target is None:
        raise RuntimeError("patch_env() cannot be used before the worker is loaded.")
    patched = {**(values or {}), **more}
    before = {name: target.__dict__[name] for name in patched if name in target.__dict__}
    target.__dict__.update(patched)
    try:
        yield
    finally:
        for name in patched:
            target.__dict__.pop(name, None)
        target.__dict__.update(before)


def import_from_javascript(name: str) -> Any:
    """The platform's own modules: "cloudflare:workers" has `env`, `waitUntil`, `DurableObject`, `WorkerEntrypoint`,
    `RpcTarget`.

    Raises ImportError for others: there is no JavaScript here.
    """
    if name == "cloudflare:workers":
        return SimpleNamespace(
            env=env, waitUntil=wait_until, DurableObject=DurableObject, WorkerEntrypoint=WorkerEntrypoint,
            RpcTarget=RpcTarget,
        )  # fmt: skip
    raise ImportError(f"import_from_javascript({name!r}): Roost has no JavaScript; use a Python package instead.")


def python_to_rpc(value: Any) -> Any:
    """A value as it can be sent: nothing to convert here. Raises TypeError for what the platform refuses, too."""
    if isinstance(value, tuple | bytearray) or inspect.isawaitable(value):
        raise TypeError(f"{type(value).__name__} cannot be sent over RPC.")
    return value


def python_from_rpc(value: Any) -> Any:
    """A value as it was received: objects may be read by attribute."""
    return as_js(value)


def wait_until(awaitable: Awaitable[Any]) -> None:
    """`ctx.waitUntil` of whatever is being served now."""
    require_context("wait_until()").wait_until(awaitable)


def handler(function: Callable[..., Any]) -> Callable[..., Any]:
    """Legacy: marks a module-level handler such as `on_fetch(request, env, ctx)`."""

    @functools.wraps(function)
    async def wrapped(*args: Any, **kwargs: Any) -> Any:
        result = function(*args, **kwargs)
        return await result if inspect.isawaitable(result) else result

    return wrapped


@eager
async def fetch(resource: Any, options: Any = None, **opts: Any) -> Response:
    """An outbound HTTP request, or with the header `Upgrade: websocket` an outbound WebSocket (`.web_socket`)."""
    fetcher = opts.pop("fetcher", None) or (options.get("fetcher") if isinstance(options, dict) else None)
    request = (
        resource if isinstance(resource, Request) and not opts and options is None else Request(resource, options, **opts)
    )
    fetching = require_context("fetch()").fetch(request) if fetcher is None else fetcher(request)
    answer: Response = await fetching
    return answer
