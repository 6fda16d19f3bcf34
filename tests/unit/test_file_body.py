"""A file as an answer's body: in windows, byte for byte, and an error where it is no longer what was promised."""

import os
import socket

import pytest

from roost.gateway.io.file_body import WINDOW_BYTES, FileBody

CONTENT = os.urandom(3 * WINDOW_BYTES + 17)


@pytest.fixture
def path(tmp_path):
    (tmp_path / "file").write_bytes(CONTENT)
    return tmp_path / "file"


class Channel:
    """One that encrypts keeps what it is given; a plain one has a descriptor."""

    def __init__(self, fd=-1):
        self.fd = fd
        self.written = []

    def write(self, data):
        self.written.append(data)


@pytest.fixture
def pair():
    ours, theirs = socket.socketpair()
    ours.setblocking(False)
    with ours, theirs:
        yield ours, theirs


@pytest.mark.parametrize(("offset", "size"), [(0, len(CONTENT)), (5, 0), (7, 100), (WINDOW_BYTES - 1, 2 * WINDOW_BYTES)])
def test_an_encrypted_part(path, offset, size):
    body, channel = FileBody(str(path), offset, size), Channel()
    while not body.is_sent:
        assert body.send(channel, plain=False)
    body.close()
    assert b"".join(channel.written) == CONTENT[offset : offset + size]
    assert all(len(window) <= WINDOW_BYTES for window in channel.written)


def test_a_plain_part_waits_for_its_reader(path, pair):
    ours, theirs = pair
    body, channel = FileBody(str(path), 10, len(CONTENT) - 10), Channel(ours.fileno())
    got, waited = b"", 0
    while not body.is_sent:
        if not body.send(channel, plain=True):
            waited += 1
            got += theirs.recv(1_000_000)
    ours.close()
    while data := theirs.recv(1_000_000):
        got += data
    assert got == CONTENT[10:]
    assert waited
    body.close()


@pytest.mark.parametrize("plain", [True, False])
def test_a_file_that_became_shorter(path, pair, plain):
    body = FileBody(str(path), 0, 100)
    os.truncate(path, 0)
    with pytest.raises(OSError, match="shorter than its answer said"):
        body.send(Channel(pair[0].fileno()), plain=plain)
    body.close()


def test_it_owns_its_file(path):
    body = FileBody(str(path), 0, 1)
    fd = body._fd
    os.fstat(fd)
    body.close()
    body.close()  # only once: another may have the number by now
    with pytest.raises(OSError):
        os.fstat(fd)
    with pytest.raises(FileNotFoundError):
        FileBody(str(path) + "x", 0, 1)
