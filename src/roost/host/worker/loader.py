"""Loading a worker: its module, its classes, and the handlers they have.

`workers`, `js`, `pyodide` and `asgi` are put in place by `roost.names`. What the user's code raises while loading becomes
a WorkerError that says where; it must not know of hosts or links. Source: reference 1.2.
"""

from __future__ import annotations

import difflib
import importlib.util
import inspect
import re
import sys
import traceback
from typing import TYPE_CHECKING, Any

import roost.names
from roost.api.aliases import snake_cases
from roost.api.entrypoint import DurableObject, Env, LazyEnv, WorkerEntrypoint
from roost.compat.pyodide.code import accepted_positionals
from roost.errors import ConfigError, WorkerError

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from pathlib import Path

    from roost.api.runtime import Compat

_HANDLER_ARITY = {
    "fetch": 1, "webSocketMessage": 2, "webSocketClose": 4, "webSocketError": 2, "webSocketOpen": 2, "alarm": 1,
    "preShutdown": 1,
}  # fmt: skip
_LEGACY = ("fetch", "alarm", "webSocketMessage", "webSocketClose", "webSocketError")  # also as on_…, with global handlers


class ObjectClass:
    """A Durable Object class and what was learnt of it once: which handlers it has and how many arguments they take."""

    def __init__(self, cls: type, *, legacy: bool = False) -> None:
        self.cls = cls
        self.name = cls.__name__
        self._names: dict[str, str] = {}
        self._takes: dict[str, int | None] = {}
        for handler, aliases in _HANDLER_ARITY.items():
            on_name = [f"on_{handler}"] if legacy and handler in _LEGACY else []
            for name in (handler, *snake_cases(handler), *on_name):
                if (function := getattr(cls, name, None)) is not None:
                    self._names[handler] = name
                    takes = accepted_positionals(function)
                    self._takes[handler] = None if takes is None or takes - 1 >= aliases else takes - 1
                    break
        self.warnings = [
            f"{self.name}.{name} is not a handler and is never called. Did you mean {known[0]}?"
            for name in vars(cls)
            if not name.startswith("_")
            and name not in self._names.values()
            and (known := _nearest_handler(name))
            and known[0] not in self._names
        ]
        message = self._names.get("webSocketMessage")
        self.message_is_async = message is not None and inspect.iscoroutinefunction(getattr(cls, message))

    def build(self, ctx: Any, env: Any) -> Any:
        """A new instance; `ctx` and `env` are set even if its __init__ does not call the base's."""
        instance: Any = object.__new__(self.cls)
        instance.ctx, instance.env = ctx, env
        instance.__init__(ctx, env)
        return instance

    def has(self, handler: str) -> bool:
        return handler in self._names

    def handler(self, instance: Any, handler: str) -> Callable[..., Any] | None:
        """The bound handler, which may be called with all of its platform arguments; None if the class has none."""
        name = self._names.get(handler)
        if name is None:
            return None
        bound: Callable[..., Any] = getattr(instance, name)
        takes = self._takes[handler]
        return bound if takes is None else lambda *args: bound(*args[:takes])

    def bound_message_handler(self, instance: Any) -> Callable[..., Any] | None:
        return self.handler(instance, "webSocketMessage")


def _nearest_handler(name: str) -> list[str]:
    """The WebSocket handler that a method's name is a misspelling of, if any."""
    if "socket" not in name.lower() and not name.startswith("on_"):
        return []
    handlers = [handler for handler in _HANDLER_ARITY if handler.startswith("webSocket")]
    spelled = name.removeprefix("on_").replace("_", "").lower()
    lower = {handler.lower(): handler for handler in handlers} | {"message": "webSocketMessage", "close": "webSocketClose"}
    return [lower[match] for match in difflib.get_close_matches(spelled, lower, n=1, cutoff=0.8)]


class Worker:
    """A loaded worker: its entrypoint, its object classes, its `env` (filled in by the host)."""

    def __init__(self, entrypoint: Any, classes: dict[str, ObjectClass], compat: Compat) -> None:
        self.entrypoint = entrypoint
        self.entrypoints: dict[str, type] = {}  # every exported WorkerEntrypoint, for service bindings
        self.scheduled: Callable[..., Any] | None = None  # a module-level on_scheduled
        self.classes = classes
        self.compat = compat
        self.env = Env({})


def load_worker(
    main: Path, class_names: Sequence[str], compat: Compat, folder: Path | None = None, env: Env | None = None
) -> Worker:
    """Import the main module and find its classes; `folder` is the configuration's, `env` what the module may read while it
    is imported. Raises WorkerError or ConfigError with one clear line."""
    roost.names.install()
    env = LazyEnv.target = Env({}) if env is None else env
    vendored = [each / "python_modules" for each in (folder or main.parent, main.parent.parent, main.parent)]
    for path in (*map(str, dict.fromkeys(vendored)), str(main.parent)):
        if path not in sys.path:
            sys.path.insert(0, path)
    module = _import(main)
    exported = getattr(module, "__all__", None) or [name for name in vars(module) if not name.startswith("_")]
    values = {name: getattr(module, name) for name in exported if hasattr(module, name)}
    entrypoint = values.get("Default")
    if entrypoint is None and (legacy := values.get("on_fetch")) is not None:
        if compat.no_global_handlers:
            raise WorkerError(
                f"{main}: a module-level on_fetch is an entrypoint only with a compatibility_date before 2025-08-14 or the"
                " flag disable_python_no_global_handlers; write `class Default(WorkerEntrypoint)` with `async def"
                " fetch(self, request)`."
            )
        entrypoint = legacy
    if inspect.isclass(entrypoint) and not issubclass(entrypoint, WorkerEntrypoint):
        raise WorkerError(f"{main}: class Default must extend WorkerEntrypoint.")
    if inspect.isclass(entrypoint) and "on_fetch" in values:
        raise WorkerError(f"{main}: has both class Default and on_fetch; keep one of them.")
    if entrypoint is None:
        raise WorkerError(
            f"{main}: has no entrypoint; add `class Default(WorkerEntrypoint)` with `async def fetch(self, request)`."
        )
    classes = {}
    for name in class_names:
        cls = values.get(name)
        if not inspect.isclass(cls) or not issubclass(cls, DurableObject):
            found = [
                n
                for n, v in values.items()
                if inspect.isclass(v) and issubclass(v, DurableObject) and v is not DurableObject
            ]
            raise ConfigError(
                f"durable_objects.bindings: class {name!r} is not a DurableObject of {main.name}"
                f" (it has: {', '.join(found) or 'none'}).",
                key="durable_objects.bindings",
            )
        classes[name] = ObjectClass(cls, legacy=not compat.no_global_handlers)
    worker = Worker(entrypoint, classes, compat)
    worker.env = env
    worker.scheduled = None if compat.no_global_handlers else values.get("on_scheduled")
    worker.entrypoints = {
        name: value
        for name, value in values.items()
        if inspect.isclass(value) and issubclass(value, WorkerEntrypoint) and value is not WorkerEntrypoint
    }
    return worker


def _import(main: Path) -> Any:
    name = main.stem if main.stem.isidentifier() and main.stem not in sys.stdlib_module_names else "worker_main"
    spec = importlib.util.spec_from_file_location(name, main)
    if spec is None or spec.loader is None:
        raise ConfigError(f"main: {main} is not a Python file.", key="main")
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module
    try:
        spec.loader.exec_module(module)
    except SyntaxError as error:
        raise WorkerError(f"{error.filename}:{error.lineno}: syntax error: {error.msg}") from error
    except ModuleNotFoundError as error:
        raise WorkerError(f"{_missing_module(error)} ({_where(error, main)})") from error
    except ImportError as error:
        if (own := (error.name or "").removeprefix("roost.compat.")) in _OWN:
            text = _missing_name(own, str(error))
            raise WorkerError(f"{_where(error, main)}: {text}") from error
        raise WorkerError(f"{_where(error, main)}: {type(error).__name__}: {error}") from error
    except Exception as error:
        raise WorkerError(f"{_where(error, main)}: {type(error).__name__}: {error}") from error
    return module


_OWN = {"js", "workers", "asgi", "pyodide", "pyodide.ffi", "pyodide.http", "pyodide.code", "workflows"}


def _missing_name(module: str, text: str) -> str:
    """`from js import X` of what is not there."""
    found = re.search(r"cannot import name '([^']+)'", text)
    name = "it" if found is None else found[1]
    return f"Roost's {module!r} has no {name!r}: it is not supported; docs/reference/compatibility.md says what is."


def _missing_module(error: ModuleNotFoundError) -> str:
    name = error.name or ""
    if name.partition(".")[0] in _OWN:
        return str(error)
    if name.startswith(("pyodide_js", "_pyodide", "micropip", "_cloudflare")):
        return f"the worker needs {name!r}, which exists in Pyodide only; Roost runs CPython: use an ordinary package."
    return (
        f"the worker needs the package {name!r}, which {sys.executable} does not have; "
        "install it there, or make a .venv with it and Roost in the app's folder."
    )


def _where(error: BaseException, main: Path) -> str:
    """The deepest place in the user's files that an error passed."""
    frames = [f for f in traceback.extract_tb(error.__traceback__) if f.filename.startswith(str(main.parent))]
    return f"{frames[-1].filename}:{frames[-1].lineno}" if frames else str(main)
