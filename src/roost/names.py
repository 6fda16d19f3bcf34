"""What worker code imports: `workers`, `js`, `pyodide`, `asgi`, wherever Roost was imported by this module.

    import roost.names      # in a test or REPL, before `import worker`

A finder puts them in front of whatever is installed under the same names, such as Cloudflare's `workers-runtime-sdk`. A
host imports this module before the worker; other programs have those names only if they ask for them here.
"""

from __future__ import annotations

import importlib
import importlib.abc
import importlib.machinery
import sys
from typing import TYPE_CHECKING, Any, Final

if TYPE_CHECKING:
    from collections.abc import Sequence
    from types import ModuleType

NAMES: Final = {
    "asgi": "roost.compat.asgi",
    "js": "roost.compat.js",
    "wsgi": "roost.compat.wsgi",
    "pyodide": "roost.compat.pyodide",
    "pyodide.code": "roost.compat.pyodide.code",
    "pyodide.ffi": "roost.compat.pyodide.ffi",
    "pyodide.http": "roost.compat.pyodide.http",
    "workers": "roost.compat.workers",
    "workers.asgi": "roost.compat.asgi",
    "workers.rpc": "roost.compat.rpc",
    "workers.workflows": "roost.compat.workflows",
    "workers.wsgi": "roost.compat.wsgi",
}


class _Finder(importlib.abc.MetaPathFinder, importlib.abc.Loader):
    """Each name is the module of Roost itself, not a second copy of it."""

    def find_spec(
        self, fullname: str, path: Sequence[str] | None, target: ModuleType | None = None
    ) -> importlib.machinery.ModuleSpec | None:
        if fullname in NAMES:
            return importlib.machinery.ModuleSpec(fullname, self, is_package=fullname in ("workers", "pyodide"))
        if fullname.partition(".")[0] in _PACKAGES:
            raise ModuleNotFoundError(
                f"Roost has no {fullname}; it has {', '.join(sorted(NAMES))}. See docs/reference/compatibility.md.",
                name=fullname,
            )
        return None

    def create_module(self, spec: importlib.machinery.ModuleSpec) -> Any:
        module = importlib.import_module(NAMES[spec.name])
        self._specs[spec.name] = module.__spec__
        return module

    def exec_module(self, module: ModuleType) -> None:
        """It was executed under its own name, and keeps that."""
        for name, spec in list(self._specs.items()):
            if spec is not None and NAMES[name] == spec.name and sys.modules.get(spec.name) is module:
                module.__spec__ = spec
                del self._specs[name]

    def __init__(self) -> None:
        self._specs: dict[str, importlib.machinery.ModuleSpec | None] = {}


_PACKAGES: Final = ("asgi", "js", "pyodide", "workers", "wsgi")


def install() -> None:
    """Put Roost's names first. What another package has put under them is forgotten."""
    if not any(isinstance(finder, _Finder) for finder in sys.meta_path):
        sys.meta_path.insert(0, _Finder())
    for name in list(sys.modules):
        if name.partition(".")[0] in _PACKAGES and sys.modules[name] is not sys.modules.get(NAMES.get(name, "")):
            del sys.modules[name]


install()
