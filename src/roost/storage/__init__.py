"""One SQLite file per object. Blocking calls only; who must not wait calls them from a thread."""
