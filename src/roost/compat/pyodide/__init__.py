"""`pyodide`: what Cloudflare's Python sources import of it. On CPython there is nothing to convert or to destroy."""

__version__ = "0.28.0"
