"""closes.py: one table, and each entry says when."""

import re

from conftest import ROOT
from roost.closes import WHEN, CloseCode, table


def test_each_says_when_and_none_is_forgotten():
    assert set(WHEN) == set(table())
    assert all(WHEN.values())


def test_reasons_fit_in_a_frame():
    assert all(len(close.reason.encode()) <= 123 for close in table().values())


def test_codes_are_the_registrys():
    assert {code.value for code in CloseCode} <= {1000, 1001, 1002, 1003, *range(1005, 1016)}


def test_no_reason_is_written_elsewhere():
    """A code of Roost's own has its words here, and nowhere else."""
    reasons = {close.reason for close in table().values() if close.reason and "{" not in close.reason}
    for file in (ROOT / "src/roost").rglob("*.py"):
        if file.name != "closes.py":
            found = [text for text in re.findall(r'"([^"\n]{8,})"', file.read_text()) if text in reasons]
            assert not found, file
