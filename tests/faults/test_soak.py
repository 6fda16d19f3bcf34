"""The short form of `make soak`: everything that could grow stays bounded under faults, and nothing is lost or dead."""

import importlib.util
from pathlib import Path

import pytest

pytestmark = pytest.mark.timeout(120)


def test_a_short_soak(capsys):
    path = Path(__file__).resolve().parents[2] / "benchmarks" / "soak.py"
    spec = importlib.util.spec_from_file_location("soak", path)
    soak = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(soak)
    with capsys.disabled():
        assert soak.soak(0.15, say=lambda text: None) == []
