"""Object ids, and which host slot owns an object.

An id is 32 bytes, written as 64 hex digits: 16 bytes of identity (from a name, or random), then 16 bytes that bind it
to its namespace, so that an id of another class is refused instead of silently naming a new object.

Source: Durable Object ids, reference 4.4 (`idFromName` is deterministic per class; `idFromString` validates).
"""

from __future__ import annotations

import hashlib
import hmac
import re

_HEX64 = re.compile(r"[0-9a-f]{64}\Z")


def namespace_key(worker_name: str, class_name: str) -> bytes:
    """The 32-byte key of one class of one worker: what makes equal names of two classes different objects."""
    return hashlib.sha256(b"roost-namespace\0" + worker_name.encode() + b"\0" + class_name.encode()).digest()


def _bind(key: bytes, identity: bytes) -> str:
    return (identity + hmac.digest(key, b"id\0" + identity, "sha256")[:16]).hex()


def id_from_name(key: bytes, name: str) -> str:
    """The id that `name` has in the namespace of `key`: 64 hex digits."""
    return _bind(key, hmac.digest(key, b"name\0" + name.encode("utf-8", "surrogatepass"), "sha256")[:16])


def id_from_random(key: bytes, random_16: bytes) -> str:
    """A unique id from 16 random bytes that the caller supplies."""
    return _bind(key, random_16)


def is_object_id(text: str) -> bool:
    """Whether `text` is 64 lower-case hex digits: the only form that may reach a file name."""
    return _HEX64.match(text) is not None


def belongs_to(key: bytes, object_id: str) -> bool:
    """Whether a well-formed id was made for the namespace of `key`."""
    identity = bytes.fromhex(object_id[:32])
    return hmac.compare_digest(_bind(key, identity), object_id)


def slot_of(object_id: str, slots: int) -> int:
    """The host slot (0 to slots - 1) that owns an object: rendezvous hash, so that a new slot moves 1/n of them."""
    if slots == 1:
        return 0
    identity = bytes.fromhex(object_id)
    weights = [hashlib.blake2b(identity, digest_size=8, key=slot.to_bytes(4, "big")).digest() for slot in range(slots)]
    return weights.index(max(weights))
