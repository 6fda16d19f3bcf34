"""What can go wrong with an object's storage."""

from __future__ import annotations

from roost.errors import JsException, RoostError


class StorageError(RoostError):
    """A commit could not be made durable: the disk is full or broken. The object is reset; what it held back is dropped."""


class NeverWritten(StorageError):
    """The file is what a cut first write has left: there is no object yet, and the next write makes it."""


class SqlError(JsException):
    """The user's SQL is wrong or forbidden; `.message` is SQLite's own, with the fix where we know one."""
