"""Opening an object's file: at first only to read, and made when the object first writes."""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING, Any, Final
from urllib.parse import quote

import apsw

from roost.errors import ConfigError
from roost.storage.errors import NeverWritten, StorageError
from roost.storage.folding import size_of
from roost.storage.object_file import FORMAT, MAX_PAGES, SCHEMA, check_format, out_of_files

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from pathlib import Path

_log = logging.getLogger("roost.storage")

_BUSY_TIMEOUT_MS: Final = 10_000  # for its log to be folded while a handler goes on, or `roost storage` to look at the file
_BORN_BYTES: Final = 3 * 4096  # a file of so many has its tables: opening it to write changes nothing


class ObjectFile:
    """One object's file, open or not. `database.Database` writes it."""

    def __init__(
        self,
        path: Path,
        name: str | None,
        before_opening: Callable[[], None],
        opened: Callable[[], None],
        is_known: Callable[[], bool],
        make_room: Callable[[], bool],
        will_write: Callable[[], bool],
    ) -> None:
        self._path = path
        self._name = name  # of the object: kept in the file, for those who read it without a worker
        self._before_opening = before_opening  # waits until an earlier owner has closed the same file
        self._opened = opened
        self._is_known = is_known  # whether somebody else says that the object has written
        self._make_room = make_room  # closes other files if the process can open no more; whether it could
        self._will_write = will_write  # whether who reads now is likely to write soon
        self._connection: apsw.Connection | None = None
        self._reader: apsw.Connection | None = None
        self._closed = False
        self._unborn = False  # the file is what a cut first write has left
        self._is_new = False  # the file and its name may not be on the disk yet
        self._log_is_new = False  # nor the log's name
        self.was_left_unsynced = False  # found a log of an earlier life that may not be on the disk

    def _prepare(self, connection: apsw.Connection) -> None:
        """A connection that writes is there: set its limits."""
        raise NotImplementedError

    @property
    def is_open(self) -> bool:
        return self._connection is not None or self._reader is not None

    @property
    def may_be_empty(self) -> bool:
        """Whether this life may have deleted what was there."""
        return self._connection is not None

    def exists(self) -> bool:
        """Whether the object has ever written (and not deleted everything since). Raises StorageError if the file is what
        a cut first write leaves, though the object is known to have written."""
        if self._connection is not None or self._reader is not None:
            return True
        if self._unborn:
            return False
        self._before_opening()
        if not self._path.exists():
            return False
        try:
            return self._reading() is not None
        except NeverWritten as error:
            self._check_unborn(error)
            return False

    def _check_unborn(self, error: NeverWritten) -> None:
        if not self._unborn:
            if self._is_known():
                raise StorageError(f"{self._path} is damaged: it is empty, but its object has an alarm.") from None
            self._unborn = True
            _log.warning("storage: %s", error)

    def _reading(self) -> apsw.Connection:
        """A connection to read by. Until the object first writes, one without locks, log and shared memory.

        Opening those is most of what waking to read costs (measured: 100 µs instead of 550). It is sound because nobody
        else writes the file (the node holds the folder, the host the object), and because there is no log to recover. Where
        nearly every life writes, the 100 are saved instead.
        """
        if self._connection is not None or self._closed:
            return self.connection()
        if self._reader is None:
            if size_of(f"{self._path}-wal") > 0:
                return self.connection()
            if self._will_write() and size_of(self._path) >= _BORN_BYTES:
                try:
                    return self.connection()
                except StorageError:
                    pass  # a full disk, where reading still works
            self._before_opening()
            flags = apsw.SQLITE_OPEN_READONLY | apsw.SQLITE_OPEN_URI
            name = f"file:{quote(str(self._path))}?immutable=1"
            try:
                try:
                    reader = apsw.Connection(name, flags=flags)
                except apsw.CantOpenError:
                    if not out_of_files() or not self._make_room():
                        raise
                    reader = apsw.Connection(name, flags=flags)
                try:
                    self._check_version(reader)
                except BaseException:
                    reader.close()
                    raise
            except apsw.Error as error:
                raise self._unreadable(error) from error
            self._reader = reader
            self._opened()
        return self._reader

    def _check_version(self, connection: apsw.Connection) -> None:
        version = connection.pragma("user_version")
        if version == FORMAT:
            return
        if version != 0:
            raise ConfigError(f"{self._path} has format {version}; this Roost knows {FORMAT}. Use the newer one.")
        check_format(connection, self._path)

    def connection(self) -> apsw.Connection:
        """The connection, opened (and the file created) if need be. Raises ConfigError for a newer format."""
        if self._closed:
            raise StorageError("the object was reset or is asleep; this handler belongs to its earlier life.")
        if self._connection is None:
            self._before_opening()
            # A file that an earlier life has not lived to sync is as good as new; so is a log that it has left.
            self.was_left_unsynced = size_of(f"{self._path}-wal") > 0
            self._is_new = self.was_left_unsynced or not size_of(self._path)
            self._log_is_new = True
            existed = self._path.exists()
            self._path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
            try:
                try:
                    connection = self._open(existed=existed)
                except (apsw.CantOpenError, apsw.IOError):
                    if not out_of_files() or not self._make_room():
                        raise
                    connection = self._open(existed=existed)
            except apsw.Error as error:
                raise self._unreadable(error) from error
            if self._reader is not None:
                self._reader.close()
                self._reader = None
            self._prepare(connection)
            self._connection = connection
            self._opened()
        return self._connection

    def _open(self, *, existed: bool) -> apsw.Connection:
        """Open the file; give one that was never written (or not to the end of its first commit) its tables."""
        connection = apsw.Connection(str(self._path))
        try:
            connection.set_busy_timeout(_BUSY_TIMEOUT_MS)
            connection.pragma("synchronous", "off")  # every sync is ours, on another thread; `close` turns it on
            if connection.pragma("journal_mode", "wal") != "wal":
                raise StorageError(f"{self._path}: SQLite cannot keep a log (-wal) on this file system.")
            connection.pragma("wal_autocheckpoint", 0)
            connection.pragma("foreign_keys", 1)
            connection.pragma("max_page_count", MAX_PAGES)
            try:
                self._check_version(connection)
            except NeverWritten as error:
                if existed:
                    self._check_unborn(error)
                self._is_new = True
                with connection:
                    for statement in SCHEMA:
                        connection.execute(statement)
                    if self._name is not None:
                        connection.execute("INSERT INTO _cf_METADATA VALUES ('name', ?)", (self._name,))
                    connection.pragma("user_version", FORMAT)
                self._unborn = False
        except BaseException:
            connection.close()
            raise
        return connection

    def _run(self, sql: str, bindings: Sequence[Any]) -> None:
        try:
            self.connection().execute(sql, bindings)
        except apsw.Error as error:
            raise StorageError(f"a write failed: {error}") from error

    def _row(self, sql: str, bindings: tuple[Any, ...]) -> Any:
        try:
            return self._reading().execute(sql, bindings).fetchone()
        except apsw.Error as error:
            raise self._unreadable(error) from error

    def _unreadable(self, error: Exception) -> StorageError:
        if isinstance(error, apsw.CantOpenError | apsw.IOError) and out_of_files():
            return StorageError(f"the object's file {self._path} cannot be opened: too many open files; raise `ulimit -n`.")
        if isinstance(error, apsw.FullError):
            return StorageError(f"the object's file {self._path} cannot be written: {error}; make room on its disk.")
        return StorageError(f"the object's file {self._path} cannot be read: {error}; `roost check` tells more.")
