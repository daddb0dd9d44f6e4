"""What a sender controls before there is a body: heads are bounded, and an endless one ends its connection."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.gateway.server import RunningGateway, batch, row

HEAD_BYTES = 256 * 1024


@pytest.fixture
def gateway(tmp_path: Path) -> Iterator[RunningGateway]:
    with RunningGateway(tmp_path) as running:
        yield running


@pytest.mark.parametrize(
    "head",
    [
        b"POST /" + b"a" * HEAD_BYTES + b" HTTP/1.1\r\nhost: test\r\n\r\n",
        b"POST /api/v1/batch HTTP/1.1\r\nhost: test\r\nx-long: " + b"a" * HEAD_BYTES + b"\r\n\r\n",
        b"POST /api/v1/batch HTTP/1.1\r\nhost: test\r\n" + b"x-many: a\r\n" * (HEAD_BYTES // 11) + b"\r\n",
        b"A" * HEAD_BYTES,
    ],
    ids=["path", "header", "headers", "method"],
)
def test_an_endless_head_is_refused(gateway: RunningGateway, head: bytes) -> None:
    """A path, a header, a number of headers or a method beyond 64 KiB is answered 4xx or closed."""
    received = b""
    with gateway.connect() as connection:
        try:
            connection.sendall(head)
            while piece := connection.recv(65_536):
                received += piece
        except ConnectionError:
            pass
    assert received == b"" or received.startswith(b"HTTP/1.1 4")
    assert gateway.post("/batch", batch(row("after"))).status_code == 200
