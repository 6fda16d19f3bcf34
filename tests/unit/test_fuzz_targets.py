"""The targets of `make fuzz`, with hypothesis: noise, and noise behind plausible beginnings."""

import sys
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

sys.path.insert(0, str(Path(__file__).parents[1] / "fuzz"))

from targets import TARGETS

BEGINNINGS = {
    "frames": [b"\x81\x85abcd", b"\x01\x82abcdxx", b"\xc1\x83abcd", b"\x82\xfe\x01\x00abcd", b"\x88\x82abcd"],
    "deflated": [b"\xf2H\xcd\xc9\xc9\x07\x00", b"permessage-deflate; "],
    "head": [b"GET / HTTP/1.1\r\nHost: a\r\n", b"POST /x HTTP/1.1\r\nTransfer-Encoding: chunked\r\n\r\n5\r\n",
             b"HTTP/1.1 101 \r\n"],
    "envelope": [b"\x20\0\0\0\x01\x01\0\0", b"\x20\0\0\0\x0b\0\0\0"],
    "values": [b"{\x02", b"[\x01", b"\x82\xa1a", b"i\x80"],
    "configuration": [b'main = "worker.py"\n', b'{"main": "worker.py", ', b"[limits]\n", b"compatibility_flags = [",
                      b"[[migrations]]\n"],
    "forms": [b"a=1&b", b'--x\r\nContent-Disposition: form-data; name="a"\r\n\r\n'],
}  # fmt: skip


@pytest.mark.parametrize("name", TARGETS)
def test_target(name):
    beginnings = [b"", *BEGINNINGS[name]]

    @settings(max_examples=300, deadline=None, suppress_health_check=list(HealthCheck))
    @given(st.sampled_from(beginnings), st.one_of(st.binary(max_size=500), st.text(max_size=200).map(str.encode)))
    def run(beginning, rest):
        TARGETS[name](beginning + rest)

    run()
