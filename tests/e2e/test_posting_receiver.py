"""The campaign's receiver counts as taken what it took, and nothing else."""

from __future__ import annotations

import socket
from pathlib import Path
from urllib.parse import urlsplit

import pytest

from tests.e2e.posting_receiver import PostingReceiver

HEAD = b"POST /rows HTTP/1.1\r\nhost: receiver\r\ncontent-length: 16\r\n\r\n"


@pytest.mark.parametrize("arrived", [b"", b'{"type":'], ids=["head", "half"])
def test_a_request_that_breaks_off_is_not_taken(tmp_path: Path, arrived: bytes) -> None:
    """Its sender was killed between the head and the body's end: no line is written, and later ones are whole."""
    receiver = PostingReceiver(tmp_path)
    receiver.start()
    try:
        address = urlsplit(receiver.url)
        for body in (arrived, b'{"type": "rows"}'):
            with socket.create_connection((str(address.hostname), address.port or 0), 60) as sender:
                sender.sendall(HEAD + body)
                sender.shutdown(socket.SHUT_WR)
                while sender.recv(1024):
                    pass
        assert set(receiver.bodies()) <= {b'{"type": "rows"}\n'}
    finally:
        receiver.kill()
