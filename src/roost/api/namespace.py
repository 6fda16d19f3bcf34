"""Durable Object namespaces, ids and stubs: naming an object and calling it. Source: reference 4.4.

A stub holds no connection; calling it asks the host, which knows whether the object is here or elsewhere.
"""

from __future__ import annotations

from functools import lru_cache
from typing import TYPE_CHECKING, Any, Protocol

from roost import ids
from roost.api.aliases import with_snake_case
from roost.api.http import Request, Response
from roost.api.rpc import member
from roost.errors import JsException, JsTypeError
from roost.events import ObjectRef
from roost.values import is_unicode

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

    from roost.api.rpc import RpcMember

_KNOWN_NAMES = 16  # whose ids are kept: two digests cost as much as the rest of a call; each keeps a page of heap
_MAX_NAME_BYTES = 1024  # of a name that its object is told of
_HINTS = ("wnam", "enam", "sam", "weur", "eeur", "apac", "apac-ne", "apac-se", "oc", "afr", "me")


class ObjectCaller(Protocol):
    """What carries a stub's call to its object."""

    async def fetch_object(self, ref: ObjectRef, request: Request) -> Response: ...

    def call_object(self, ref: ObjectRef, method: str, arguments: bytes) -> Awaitable[Any]: ...


@with_snake_case
class DurableObjectId:
    """The identity of one object of one class. `str(id)` is 64 hex digits."""

    __slots__ = ("_ref",)

    def __init__(self, ref: ObjectRef) -> None:
        self._ref = ref

    @property
    def ref(self) -> ObjectRef:
        """Class, id and name, as the link carries them."""
        return self._ref

    @property
    def name(self) -> str | None:
        """The name it was made from by `idFromName`; None for ids made otherwise."""
        return self._ref.name

    def toString(self) -> str:
        return self._ref.id

    def equals(self, other: object) -> bool:
        return self == other

    def __str__(self) -> str:
        return self._ref.id

    def __eq__(self, other: object) -> bool:
        return isinstance(other, DurableObjectId) and (self._ref.class_name, self._ref.id) == (
            other._ref.class_name,
            other._ref.id,
        )

    def __hash__(self) -> int:
        return hash((self._ref.class_name, self._ref.id))

    def __repr__(self) -> str:
        return f"<DurableObjectId {self._ref.class_name}({self._ref.name or self._ref.id[:12]})>"


class _Methods:
    """`api.rpc.MethodCaller` of one object. Not the stub itself: an object may have a method named `call`."""

    __slots__ = ("_caller", "_ref")

    def __init__(self, ref: ObjectRef, caller: ObjectCaller) -> None:
        self._ref = ref
        self._caller = caller

    def call(self, method: str, arguments: bytes) -> Awaitable[Any]:
        return self._caller.call_object(self._ref, method, arguments)


class DurableObjectStub:
    """A handle on an object, wherever it is: `await stub.fetch(request_or_url, **options)`, `await stub.method(...)`.

    Its calls arrive in the order they were made. A method is called at once, `fetch` where it is awaited, as in the SDK.
    """

    def __init__(self, object_id: DurableObjectId, caller: ObjectCaller) -> None:
        self.id = object_id
        self._caller = caller

    @property
    def name(self) -> str | None:
        return self.id.name

    async def fetch(self, resource: Any, options: Any = None, **opts: Any) -> Response:
        """Call the object's `fetch`. The URL must be absolute; its host does not matter."""
        if isinstance(resource, Request) and not opts and options is None:
            request = resource
        else:
            request = Request(resource, options, **opts)
        if "://" not in request.url:
            raise JsTypeError(f"Fetch API cannot load: {request.url} (a stub needs a full URL, such as http://object/path)")
        return await self._caller.fetch_object(self.id.ref, request)

    def __getattr__(self, name: str) -> RpcMember:
        return member(_Methods(self.id.ref, self._caller), name)

    def __repr__(self) -> str:
        return f"<DurableObjectStub {self.id!r}>"


@with_snake_case
class DurableObjectNamespace:
    """`env.BINDING`: the objects of one class."""

    def __init__(self, class_name: str, key: bytes, caller: ObjectCaller, random_bytes: Callable[[int], bytes]) -> None:
        self._class_name = class_name
        self._key = key
        self._caller = caller
        self._random_bytes = random_bytes
        self._named = lru_cache(_KNOWN_NAMES)(self._from_name)

    def idFromName(self, name: str) -> DurableObjectId:
        """The same id for the same name, always."""
        text = str(name)
        return DurableObjectId(self._named(text) if len(text) <= _MAX_NAME_BYTES else self._from_name(text))

    def _from_name(self, name: str) -> ObjectRef:
        named = name if len(name.encode("utf-8", "surrogatepass")) <= _MAX_NAME_BYTES and is_unicode(name) else None
        return ObjectRef(self._class_name, ids.id_from_name(self._key, name), named)

    def newUniqueId(self, options: Any = None, *, jurisdiction: str | None = None) -> DurableObjectId:
        """A random id."""
        if jurisdiction is not None or (isinstance(options, dict) and options.get("jurisdiction")):
            raise JsException("Jurisdiction restrictions are not implemented in Roost.")
        return DurableObjectId(ObjectRef(self._class_name, ids.id_from_random(self._key, self._random_bytes(16))))

    def idFromString(self, text: str) -> DurableObjectId:
        """An id back from `str(id)`. Raises TypeError if it is malformed or of another class."""
        if not ids.is_object_id(text):
            raise JsTypeError("Invalid Durable Object ID: must be 64 hex digits")
        if not ids.belongs_to(self._key, text):
            raise JsTypeError("Invalid Durable Object ID: not valid for this namespace")
        return DurableObjectId(ObjectRef(self._class_name, text))

    def get(self, object_id: DurableObjectId, options: Any = None, **opts: Any) -> DurableObjectStub:
        """A stub; the object is not contacted. `locationHint` is checked and otherwise without effect on one node."""
        if not isinstance(object_id, DurableObjectId):
            raise JsTypeError(
                f"get() needs an id from idFromName, newUniqueId or idFromString, not {type(object_id).__name__}; "
                "for a name use getByName(name)."
            )
        if object_id.ref.class_name != self._class_name:
            raise JsTypeError("get called on a Durable Object namespace with an ID of another namespace")
        hint = opts.get("locationHint") or (options.get("locationHint") if isinstance(options, dict) else None)
        if hint is not None and hint not in _HINTS:
            raise JsTypeError(f"Unknown locationHint {hint!r}; one of {', '.join(_HINTS)}.")
        return DurableObjectStub(object_id, self._caller)

    def getByName(self, name: str, options: Any = None, **opts: Any) -> DurableObjectStub:
        """`get(idFromName(name))`."""
        return self.get(self.idFromName(name), options, **opts)

    def jurisdiction(self, name: str) -> DurableObjectNamespace:
        raise JsException("Jurisdiction restrictions are not implemented in Roost.")

    def __repr__(self) -> str:
        return f"<DurableObjectNamespace {self._class_name}>"
