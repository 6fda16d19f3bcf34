"""protocol/masking.py: the compiled line and the plain one give the same, for every size and kind of buffer."""

import importlib.machinery
import itertools
import os
import subprocess
import sys
from pathlib import Path

import pytest

from roost.protocol import masking
from roost.protocol.masking import compiled, unmask_plainly

SIZES = [*range(150), 255, 256, 257, 1023, 65_535, 65_536, 65_537, 200_003]


def by_definition(data, mask):
    """RFC 6455 §5.3, octet by octet."""
    return bytes(octet ^ key for octet, key in zip(data, itertools.cycle(mask), strict=False))


@pytest.fixture(params=["plain", "compiled"])
def unmask(request):
    if request.param == "plain":
        return unmask_plainly
    found = compiled()
    assert found is not None, "the tests' environment has the library"
    return found


def test_as_the_rfc_says(unmask):
    for size in SIZES:
        data, mask = os.urandom(size), os.urandom(4)
        assert unmask(data, mask) == by_definition(data, mask), size
        assert unmask(unmask(data, mask), mask) == data, size


@pytest.mark.parametrize("mask", [b"\0\0\0\0", b"\xff\xff\xff\xff", b"\x80\0\0\x01"])
def test_masks_at_the_edges(unmask, mask):
    data = bytes(range(256))
    for size in (0, 1, 2, 3, 4, 5, 7, 8, 9, 125, 126, 256):
        assert unmask(data[:size], mask) == by_definition(data[:size], mask)


@pytest.mark.parametrize("kind", [bytes, bytearray, memoryview])
def test_kinds_of_buffers_and_what_comes_back(unmask, kind):
    for start in range(9):  # whatever the alignment
        data = kind(bytes(range(200)))[start : start + 131]
        before = bytes(data)
        found = unmask(data, b"abcd")
        assert type(found) is bytes
        assert found == by_definition(before, b"abcd")
        assert bytes(data) == before


def test_the_compiled_one_is_used():
    assert (masking.unmask is unmask_plainly) is bool(os.environ.get("ROOST_NO_EXTENSIONS"))


@pytest.mark.parametrize("how", ["no library", "no compiled part", "an extension that is none", "another function"])
def test_without_it_the_plain_one_does(tmp_path, how):
    folder = tmp_path / "websockets"
    folder.mkdir()
    (folder / "__init__.py").write_text("1 / 0\n")
    suffix = importlib.machinery.EXTENSION_SUFFIXES[0]
    if how == "an extension that is none":
        (folder / f"speedups{suffix}").write_bytes(b"no ELF")
    elif how == "another function":
        import _json  # any extension that has no `apply_mask`

        (folder / f"speedups{suffix}").write_bytes(Path(_json.__file__).read_bytes())
    blocked = "sys.modules['websockets'] = None; " if how == "no library" else ""
    code = f"import sys; {blocked}from roost.protocol import masking as m; print(m.unmask is m.unmask_plainly)"
    path = os.pathsep.join([str(tmp_path), *filter(None, sys.path)])
    done = subprocess.run(
        [sys.executable, "-c", code], env={"PYTHONPATH": path}, capture_output=True, text=True, check=False
    )
    assert done.stdout == "True\n", done.stderr
