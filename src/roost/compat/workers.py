"""What Python Workers import. Everything here is defined in `roost.api`; names follow the platform's SDK (1.9.5)."""

import importlib
from typing import Any

from roost.api.buffers import Blob, BlobEnding, BlobValue, File
from roost.api.entrypoint import (
    DurableObject,
    RpcTarget,
    WorkerEntrypoint,
    WorkflowEntrypoint,
    env,
    fetch,
    handler,
    import_from_javascript,
    patch_env,
    python_from_rpc,
    python_to_rpc,
    wait_until,
)
from roost.api.forms import FormData, FormDataValue
from roost.api.headers import Headers
from roost.api.http import Body, FetchResponse, Request, Response
from roost.api.rpc_stubs import RpcStub
from roost.api.state import DurableObjectState as Context

waitUntil = wait_until
JSBody = Body
FetchKwargs = dict[str, Any]
RequestInitCfProperties = dict[str, Any]

__all__ = [
    "Blob",
    "BlobEnding",
    "BlobValue",
    "Body",
    "Context",
    "DurableObject",
    "FetchKwargs",
    "FetchResponse",
    "File",
    "FormData",
    "FormDataValue",
    "Headers",
    "JSBody",
    "Request",
    "RequestInitCfProperties",
    "Response",
    "RpcStub",
    "RpcTarget",
    "WorkerEntrypoint",
    "WorkflowEntrypoint",
    "env",
    "fetch",
    "handler",
    "import_from_javascript",
    "patch_env",
    "python_from_rpc",
    "python_to_rpc",
    "waitUntil",
    "wait_until",
]


def __getattr__(name: str) -> Any:
    if name in ("asgi", "rpc", "workflows", "wsgi"):  # `from workers import wsgi`
        return importlib.import_module(f"roost.compat.{name}")
    raise AttributeError(f"module 'workers' has no attribute {name!r}")
