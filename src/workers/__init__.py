"""What Python Workers import. Everything here is defined in `roost.api`; names follow the platform's SDK (1.9.5)."""

from roost.api.buffers import Blob, File
from roost.api.entrypoint import (
    DurableObject,
    WorkerEntrypoint,
    WorkflowEntrypoint,
    env,
    fetch,
    handler,
    wait_until,
)
from roost.api.headers import Headers
from roost.api.http import Body, FetchResponse, Request, Response
from roost.api.state import DurableObjectState as Context

waitUntil = wait_until

__all__ = [
    "Blob",
    "Body",
    "Context",
    "DurableObject",
    "FetchResponse",
    "File",
    "Headers",
    "Request",
    "Response",
    "WorkerEntrypoint",
    "WorkflowEntrypoint",
    "env",
    "fetch",
    "handler",
    "waitUntil",
    "wait_until",
]


def __getattr__(name: str) -> object:
    known = {"FormData", "BlobEnding", "patch_env", "python_from_rpc", "python_to_rpc", "import_from_javascript"}
    if name in known:
        raise ImportError(f"workers.{name} is not supported by Roost yet; see docs/reference/compatibility.md.")
    raise AttributeError(f"module 'workers' has no attribute {name!r}")
