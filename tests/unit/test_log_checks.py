"""`roost.testing.running` fails for an error of Roost's own, which nobody would see otherwise."""

import pytest

from conftest import ROOT
from here import running_here
from roost import testing
from roost.gateway.routing.host_slot import HostSlot
from roost.testing import running, wait_for
from roost.testing.node import faults_in

ROOM = ROOT / "benchmarks" / "apps" / "room"


def test_what_counts_as_an_error_of_roosts_own():
    own = f'  File "{testing.__path__[0].removesuffix("testing")}gateway/x.py", line 1, in f'
    assert faults_in(["all is well", "worker failed", '  File "/app/worker.py", line 3, in fetch', "ValueError: no"]) == []
    assert faults_in(["gateway: internal error in Done; please report it", "Traceback", "end"]) != []
    found = faults_in(["before", own, "AttributeError: x", *(f"line {number}" for number in range(30))])
    assert found[0] == own
    assert "before" not in found
    assert len(found) == 15
    assert len(faults_in([own] * 1000)) == 60


BREAKER = """
from roost.gateway.routing.host_slot import HostSlot
HostSlot.done = lambda self, upto, stragglers: 1 / 0
"""


def test_it_ends_the_block_with_an_error(tmp_path):
    breaker = tmp_path / "breaker"
    breaker.mkdir()
    (breaker / "sitecustomize.py").write_text(BREAKER)
    with (
        pytest.raises(AssertionError, match="errors of Roost's own in the log"),
        running(ROOM, "--inline", env={"PYTHONPATH": str(breaker)}) as node,
        node.connect("/echo/a") as ws,
    ):
        ws.send("a")
        assert ws.recv() == "a"
        wait_for(lambda: node.logged("internal error"))


def test_so_does_a_node_in_this_process(tmp_path, monkeypatch):
    monkeypatch.setattr(HostSlot, "done", lambda self, upto, stragglers: 1 / 0)
    with (
        pytest.raises(AssertionError, match="errors of Roost's own in the log"),
        running_here(ROOM, tmp_path / "data") as node,
        node.connect("/echo/a") as ws,
    ):
        ws.send("a")
        assert ws.recv() == "a"
        wait_for(lambda: any("internal error" in line for line in node.log))
