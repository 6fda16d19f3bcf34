"""Roost: a self-hosted Workers runtime in Python.

Worker code imports `workers`, `js` and `pyodide`, never this package. `docs/design/architecture.md` is the map.
"""

__version__ = "0.1.0"
