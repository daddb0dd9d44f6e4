"""As much of HTTP/2 (RFC 9113) as a test needs to send requests over one connection and read their answers.

Headers go out as literals that are not indexed and not Huffman-coded (RFC 7541, section 6.2.2); of the answer's only
the status is read, from the static table (section 6.1), where the usual ones stand.
"""

from __future__ import annotations

import socket
import struct
from collections.abc import Iterable

PREFACE = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"
DATA, HEADERS, RST_STREAM, SETTINGS, PING, GOAWAY, WINDOW_UPDATE = 0, 1, 3, 4, 6, 7, 8
ACK = END_STREAM = 1
END_HEADERS = 4
STATUSES = {0x88: 200, 0x89: 204, 0x8A: 206, 0x8B: 304, 0x8C: 400, 0x8D: 404, 0x8E: 500}


class Http2Connection:
    """One connection; `socket` is connected and, for TLS, wrapped already."""

    def __init__(self, connection: socket.socket) -> None:
        self._connection = connection
        self._received = b""
        self._next_stream = 1
        connection.sendall(PREFACE + frame(SETTINGS, 0, 0))

    def send(
        self,
        method: str,
        path: str,
        body: Iterable[bytes] = (),
        headers: Iterable[tuple[str, str]] = (),
        *,
        is_whole: bool = True,
    ) -> int:
        """Send a request, its body in these pieces (and no end, when it is not whole); the number of its stream."""
        stream = self._next_stream
        self._next_stream += 2
        named = [(":method", method), (":scheme", "http"), (":authority", "test"), (":path", path), *headers]
        block = b"".join(_literal(name, value) for name, value in named)
        self._connection.sendall(frame(HEADERS, END_HEADERS, stream, block))
        for piece in body:
            self._connection.sendall(frame(DATA, 0, stream, piece))
        if is_whole:
            self._connection.sendall(frame(DATA, END_STREAM, stream))
        return stream

    def answers(self, streams: Iterable[int]) -> dict[int, tuple[int, bytes]]:
        """Status and body of each stream; a stream that was reset has status 0."""
        waiting = set(streams)
        statuses: dict[int, int] = {}
        bodies: dict[int, bytes] = {}
        while waiting:
            kind, flags, stream, payload = self._read_frame()
            if kind == SETTINGS and not flags & ACK:
                self._connection.sendall(frame(SETTINGS, ACK, 0))
            elif kind == HEADERS:
                statuses[stream] = STATUSES.get(payload[0], -1)
            elif kind == DATA:
                bodies[stream] = bodies.get(stream, b"") + payload
            elif kind == RST_STREAM:
                statuses.setdefault(stream, 0)
            if kind == RST_STREAM or (kind in (HEADERS, DATA) and flags & END_STREAM):
                waiting.discard(stream)
        return {stream: (status, bodies.get(stream, b"")) for stream, status in statuses.items()}

    def _read_frame(self) -> tuple[int, int, int, bytes]:
        head = self._read(9)
        length, kind, flags, stream = int.from_bytes(head[:3], "big"), head[3], head[4], int.from_bytes(head[5:], "big")
        return kind, flags, stream, self._read(length)

    def _read(self, count: int) -> bytes:
        while len(self._received) < count:
            received = self._connection.recv(1 << 16)
            if not received:
                raise ConnectionError("closed in the middle of a frame")
            self._received += received
        found, self._received = self._received[:count], self._received[count:]
        return found


def frame(kind: int, flags: int, stream: int, payload: bytes = b"") -> bytes:
    return struct.pack(">I", len(payload))[1:] + bytes((kind, flags)) + struct.pack(">I", stream) + payload


def _literal(name: str, value: str) -> bytes:
    return b"\0" + _string(name.encode()) + _string(value.encode())


def _string(text: bytes) -> bytes:
    assert len(text) < 127
    return bytes((len(text),)) + text
