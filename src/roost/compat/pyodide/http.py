"""`pyodide.http`."""

from roost.api.entrypoint import fetch as pyfetch
from roost.api.http import FetchResponse

__all__ = ["FetchResponse", "pyfetch"]
