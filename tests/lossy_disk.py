"""A disk that forgets what was not synced: what SQLite and Roost write to a folder, and what a power loss leaves of it.

A SQLite file system (VFS) under every connection of the process notes each write, truncation, creation and removal;
`os.fsync` notes what is made durable. An image of the folder after a power loss has, of every file, what was synced, and
of what came after it any part: each write or truncation by itself, in order. A name is durable only once its folder was
synced.

This is stricter than any real file system. Source: the model of LazyFS, and of "All File Systems Are Not Created Equal"
(Pillai et al., OSDI 2014).
"""

import contextlib
import os
from pathlib import Path

import apsw


class Inode:
    """One file's content: as it was last synced, and what came since, as (offset, bytes) or (None, new size)."""

    def __init__(self):
        self.durable = bytearray()
        self.since = []

    def sync(self):
        for change in self.since:
            apply(self.durable, change)
        self.since = []


def apply(content, change):
    offset, what = change
    if offset is None:
        del content[what:]
        content.extend(bytes(what - len(content)))
    else:
        content.extend(bytes(max(0, offset - len(content))))
        content[offset : offset + len(what)] = what


class LossyDisk:
    """What is below `root`, while `watching`. Only database files and their logs; the shared memory is no data."""

    def __init__(self, root):
        self.root = str(root)
        self.names = {}  # path -> Inode, as the running process sees it
        self.durable_names = {}
        self.folders = {self.root}  # whose own names are durable
        self.synced = []  # paths relative to root, in order
        self.changed = lambda: None  # called after every change
        self.before_write = lambda: None  # may raise apsw.FullError

    def concerns(self, path):
        return (
            path is not None and path.startswith(self.root) and path.endswith((".sqlite", ".sqlite-wal", ".sqlite-journal"))
        )

    def inode(self, path):
        if path not in self.names:
            self.names[path] = Inode()
            self.changed()
        return self.names[path]

    def change(self, inode, change):
        inode.since.append(change)
        self.changed()

    def removed(self, path):
        if self.names.pop(path, None) is not None:
            self.changed()

    def fsynced(self, path):
        if not path.startswith(self.root):
            return
        self.synced.append(os.path.relpath(path, self.root))
        if path in self.names:
            self.names[path].sync()
        elif os.path.isdir(path):
            self.durable_names = {
                name: inode for name, inode in self.durable_names.items() if os.path.dirname(name) != path
            }
            self.durable_names.update({name: i for name, i in self.names.items() if os.path.dirname(name) == path})
            self.folders.update(str(each) for each in Path(path).iterdir() if each.is_dir())

    def image(self, target, chance, how="any"):
        """Make the folder that a power loss now would leave. `how`: of what was not synced, "nothing", "any" part, "all",
        or of each file only the "last" changes."""

        def kept():
            return how == "all" or (how != "nothing" and chance.random() < 0.5)

        names = dict(self.durable_names)
        for path in {*self.names, *names}:
            if names.get(path) is not self.names.get(path) and kept():
                if path in self.names:
                    names[path] = self.names[path]
                else:
                    del names[path]
        for path, inode in names.items():
            if not self._reachable(os.path.dirname(path)) and how != "all":
                continue
            content = bytearray(inode.durable)
            first = chance.randrange(len(inode.since) + 1) if how == "last" else 0
            for change in inode.since[first:]:
                if how == "last" or kept():
                    apply(content, change)
            file = Path(target) / os.path.relpath(path, self.root)
            file.parent.mkdir(parents=True, exist_ok=True)
            file.write_bytes(content)

    def _reachable(self, folder):
        while folder != self.root:
            if folder not in self.folders:
                return False
            folder = os.path.dirname(folder)
        return True

    @contextlib.contextmanager
    def watching(self, monkeypatch):
        """Every connection that is opened meanwhile, and every `os.fsync`."""
        vfs = _Vfs(self)
        fsync = os.fsync

        def noted(fd):
            fsync(fd)
            self.fsynced(os.readlink(f"/proc/self/fd/{fd}"))

        with monkeypatch.context() as patch:
            patch.setattr(os, "fsync", noted)
            patch.setattr(os, "unlink", self._removing(os.unlink))
            try:
                yield self
            finally:
                vfs.unregister()

    def _removing(self, unlink):
        def removing(path, **options):
            unlink(path, **options)
            self.removed(str(path))

        return removing


class _Vfs(apsw.VFS):
    def __init__(self, disk):
        self._disk = disk
        super().__init__("lossy", base="unix", makedefault=True)

    def xOpen(self, name, flags):
        path = name.filename() if isinstance(name, apsw.URIFilename) else name
        return _File(self._disk, path, name, flags)

    def xDelete(self, path, sync_folder):
        super().xDelete(path, sync_folder)
        self._disk.removed(path)
        if sync_folder:
            self._disk.fsynced(os.path.dirname(path))


class _File(apsw.VFSFile):
    def __init__(self, disk, path, name, flags):
        super().__init__("unix", name, flags)
        self._disk = disk
        self._path = path
        self._inode = disk.inode(path) if disk.concerns(path) and flags[1] & apsw.SQLITE_OPEN_READWRITE else None

    def xWrite(self, data, offset):
        self._disk.before_write()
        super().xWrite(data, offset)
        if self._inode is not None:
            self._disk.change(self._inode, (offset, bytes(data)))

    def xTruncate(self, size):
        super().xTruncate(size)
        if self._inode is not None:
            self._disk.change(self._inode, (None, size))

    def xSync(self, flags):
        super().xSync(flags)
        if self._inode is not None:
            self._disk.fsynced(self._path)
