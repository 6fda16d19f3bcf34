"""In which language the workers of a test are written. `pytest --language NAME` chooses one or several; there is one today.

A suite that judges a host (conformance, faults, costs) gets the parameter `language` from `tests/conftest.py`. Its sources
are text, which is Python, or a dict by language. A test without a source in the chosen language is skipped, and says so.
"""

from typing import NamedTuple

import pytest


class Language(NamedTuple):
    """How a worker's file is called."""

    name: str
    suffix: str


LANGUAGES = {"python": Language("python", ".py")}
JUDGED = ("conformance", "faults", "test_costs.py")
"""Folders and files of tests whose every test has the parameter."""


class Chosen:
    """The one that the running test is about."""

    language = LANGUAGES["python"]


def source_of(source):
    """A test's source in the chosen language."""
    if isinstance(source, str):
        source = {"python": source}
    if Chosen.language.name not in source:
        pytest.skip(f"it has no source in {Chosen.language.name}")
    return source[Chosen.language.name]
