"""What a host's process is started with."""

import json
import os
import sys

import pytest

from roost.node.host_process import forget_allocator, has_glibc, host_environment
from roost.testing import running

APP = """
import os, subprocess, sys
from workers import Response, WorkerEntrypoint

class Default(WorkerEntrypoint):
    async def fetch(self, request):
        child = subprocess.run([sys.executable, "-c", "import os; print(os.environ.get('PYTHONMALLOC'))"],
                               capture_output=True, text=True, check=True)
        started = open("/proc/self/environ").read()
        return Response.json([started.count("PYTHONMALLOC=malloc"), os.environ.get("PYTHONMALLOC"), child.stdout.strip()])
"""


def test_a_host_allocates_as_glibc_does():
    given = host_environment({"A": "b"}, glibc=True)
    assert given["PYTHONMALLOC"] == "malloc"
    forget_allocator(given)
    assert given == {"A": "b"}


@pytest.mark.parametrize("environment", [{"PYTHONMALLOC": "pymalloc"}, {"GLIBC_TUNABLES": "glibc.malloc.check=3"}])
def test_who_chooses_an_allocator_has_it(environment):
    assert host_environment(environment, glibc=True) == environment
    forget_allocator(environment)
    assert environment


def test_without_glibc_nothing_is_set():
    assert host_environment({"A": "b"}, glibc=False) == {"A": "b"}


@pytest.mark.skipif(sys.platform != "linux" or not has_glibc(), reason="glibc's allocator")
@pytest.mark.skipif("PYTHONMALLOC" in os.environ, reason="chosen already")
def test_what_a_worker_starts_has_its_own_allocator(make_app):
    with running(make_app(APP)) as node:
        assert json.loads(node.get("/")[2]) == [1, None, "None"]
