"""`pyodide.code`: `relaxed_call`, which drops surplus positional arguments."""

from __future__ import annotations

import inspect
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Callable


def accepted_positionals(function: Callable[..., Any]) -> int | None:
    """How many positional arguments `function` takes; None for any number."""
    count = 0
    for parameter in inspect.signature(function).parameters.values():
        if parameter.kind is parameter.VAR_POSITIONAL:
            return None
        if parameter.kind in (parameter.POSITIONAL_ONLY, parameter.POSITIONAL_OR_KEYWORD):
            count += 1
    return count


def relaxed_call(function: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
    """Call `function` with as many of `args` as it takes. Source: reference 1.2 (handlers' arity)."""
    takes = accepted_positionals(function)
    return function(*(args if takes is None else args[:takes]), **kwargs)
