"""A pytest plugin: each line that runs is noted under the test that runs it, its fixtures included."""

from __future__ import annotations

from typing import Any

import coverage
import pytest


@pytest.hookimpl(wrapper=True)
def pytest_runtest_protocol(item: Any) -> Any:
    current = coverage.Coverage.current()
    if current is not None:
        current.switch_context(item.nodeid.partition("[")[0])
    return (yield)
