"""HTTP itself: connections that stay, requests in a row, both versions, and what is not HTTP at all."""

import contextlib
import json
import socket
from pathlib import Path

import httpx
import pytest

from counterfoil.contract.limits import Limits
from tests.gateway.http2 import Http2Connection
from tests.gateway.server import SOURCE, TOKEN, RunningGateway, batch, is_closed, read_answer, request_head, row, until

JSON = ("content-type", "application/json")


def request(path: str, body: bytes) -> bytes:
    return request_head(path, f"content-length: {len(body)}") + body


def test_a_connection_is_kept_for_more_requests(gateway: RunningGateway) -> None:
    """Good ones and refused ones, one after the other, on one connection."""
    with gateway.connect() as connection:
        for index in range(20):
            connection.sendall(request("/api/v1/batch", batch(row(str(index)))))
            assert read_answer(connection).status == 200
            connection.sendall(request("/api/v1/batch", b"no"))
            assert read_answer(connection).status == 400
    assert gateway.distinct_ids() == [str(index) for index in range(20)]


def test_pipelined_requests_are_answered_in_order(gateway: RunningGateway) -> None:
    """Sent at once, each gets its own answer, in the order of the requests."""
    with gateway.connect() as connection:
        connection.sendall(
            request("/api/v1/track", json.dumps({"token": TOKEN, **row("a")}).encode())
            + request("/api/v1/batch", batch(row("b"), row("c")))
            + request("/nowhere", b"{}")
        )
        statuses = []
        received = b""
        while received.count(b"HTTP/1.1 ") < 3 or not received.endswith(b"}"):
            received += connection.recv(1 << 16)
        statuses = [int(part.split()[0]) for part in received.split(b"HTTP/1.1 ")[1:]]
    assert statuses == [200, 200, 404]
    assert gateway.distinct_ids() == ["a", "b", "c"]


def test_a_connection_is_closed_when_asked(gateway: RunningGateway) -> None:
    """`Connection: close`, and HTTP/1.0 that doesn't ask for more."""
    body = batch(row("a"))
    with gateway.connect() as connection:
        connection.sendall(request_head("/api/v1/batch", f"content-length: {len(body)}", "connection: close") + body)
        assert read_answer(connection).status == 200
        assert is_closed(connection)
    with gateway.connect() as connection:
        connection.sendall(request("/api/v1/batch", body).replace(b"HTTP/1.1", b"HTTP/1.0"))
        assert connection.recv(1 << 16).startswith(b"HTTP/1.0 200")


@pytest.mark.parametrize(
    "sent",
    [
        b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03",
        b"hello\r\n\r\n",
        b"GET\r\n\r\n",
        b"POST /api/v1/batch HTTP/9.9\r\n\r\n",
        b"POST /api/v1/batch HTTP/1.1\r\nhost: x\r\ncontent-length: -1\r\n\r\n",
        b"POST /api/v1/batch HTTP/1.1\r\nhost: x\r\ncontent-length: 1x\r\n\r\n",
        b"POST /api/v1/batch HTTP/1.1\r\nhost: x\r\ncontent-length: 99999999999999999999\r\n\r\n",
        b"POST /api/v1/batch HTTP/1.1\r\nhost: x\r\ncontent-length: 5\r\ncontent-length: 6\r\n\r\n",
        b"POST /api/v1/batch HTTP/1.1\r\nhost: x\r\ntransfer-encoding: gzip\r\n\r\n",
        b"POST /api/v1/batch HTTP/1.1\r\nhost x\r\n\r\n",
        b"POST /api/v1/batch HTTP/1.1\r\nx: \x00\r\n\r\n",
        b"GET /%s HTTP/1.1\r\n\r\n" % (b"a" * 200_000),
        b"GET / HTTP/1.1\r\n" + b"".join(b"x-%d: y\r\n" % index for index in range(1000)) + b"\r\n",
    ],
)
def test_what_is_not_http_is_refused_and_closed(gateway: RunningGateway, sent: bytes) -> None:
    """No answer but a 4xx, no worker harmed, nothing kept."""
    with gateway.connect() as connection:
        received = b""
        # What is refused before its end is read no further: the rest may meet a connection that is closed.
        with contextlib.suppress(ConnectionError):
            connection.sendall(sent)
        with contextlib.suppress(ConnectionError):
            received = connection.recv(1 << 16)
        assert received == b"" or received.startswith(b"HTTP/1.1 4")
    assert gateway.post("/batch", batch(row("a"))).status_code == 200
    assert gateway.distinct_ids() == ["a"]


@pytest.mark.parametrize("piece", [b"zz\r\n", b"-5\r\nhello\r\n", b"ffffffffffffffffff\r\n", b"5\r\nhelloX"])
def test_broken_chunks_are_no_body(gateway: RunningGateway, piece: bytes) -> None:
    """What breaks the framing ends the request as a body that ended early."""
    with gateway.connect() as connection:
        received = b""
        connection.sendall(request_head("/api/v1/batch", "transfer-encoding: chunked") + piece)
        # It may be refused and closed before its end.
        with contextlib.suppress(OSError):
            connection.shutdown(socket.SHUT_WR)
        with contextlib.suppress(ConnectionError):
            received = connection.recv(1 << 16)
        assert received == b"" or received.startswith(b"HTTP/1.1 4")
    assert gateway.frames() == []


def test_a_length_beside_chunks_does_not_smuggle(gateway: RunningGateway) -> None:
    """With both, chunks count or the request is refused: never is the rest read as a second request."""
    body = batch(row("a"))
    smuggled = request("/api/v1/batch", batch(row("smuggled")))
    head = request_head("/api/v1/batch", f"content-length: {len(body)}", "transfer-encoding: chunked")
    with gateway.connect() as connection:
        connection.sendall(head + b"%x\r\n%b\r\n" % (len(body) + len(smuggled), body + smuggled) + b"0\r\n\r\n")
        assert read_answer(connection).status == 400
    assert gateway.frames() == []


def test_headers_that_are_no_text_count_as_absent(gateway: RunningGateway) -> None:
    """A Content-Type of other bytes is none."""
    with gateway.connect() as connection:
        connection.sendall(
            b"POST /api/v1/batch HTTP/1.1\r\nhost: x\r\ncontent-type: \xff\r\ncontent-length: 2\r\n\r\n{}"
        )
        assert read_answer(connection).status == 415


def test_http2_without_tls(gateway: RunningGateway) -> None:
    """With prior knowledge, requests beside each other on one connection, bodies in pieces and without a length."""
    with gateway.connect() as connection:
        http2 = Http2Connection(connection)
        body = batch(row("a"), row("b"))
        streams = [
            http2.send("POST", "/api/v1/batch", [body[:10], body[10:]], [JSON]),
            http2.send(
                "POST", "/api/v1/batch", [batch(row("c"))], [JSON, ("content-length", str(len(batch(row("c")))))]
            ),
            http2.send("POST", "/api/v1/batch", [b"no"], [JSON]),
            http2.send("GET", "/livez"),
            http2.send("POST", "/nowhere", [b"x" * 1000], [JSON]),
        ]
        answers = http2.answers(streams)
    assert [answers[stream][0] for stream in streams] == [200, 200, 400, 200, 404]
    assert json.loads(answers[streams[0]][1])["accepted"] == 2
    assert sorted(gateway.distinct_ids()) == ["a", "b", "c"]


def test_http2_holds_a_body_to_its_length_and_limit(tmp_path: Path) -> None:
    """Too large is 413 or a reset, shorter than said never a success; the connection goes on."""
    with RunningGateway(tmp_path, limits=Limits(body_bytes_max=20_000)) as gateway, gateway.connect() as connection:
        http2 = Http2Connection(connection)
        large = http2.send("POST", "/api/v1/batch", [b" " * 10_000] * 3, [JSON])
        short = http2.send("POST", "/api/v1/batch", [batch(row("a"))], [JSON, ("content-length", "5000")])
        good = http2.send("POST", "/api/v1/batch", [batch(row("z"))], [JSON])
        answers = http2.answers([large, short, good])
        assert answers[large][0] == -1  # 413 is not in the static table.
        assert json.loads(answers[large][1])["limit"] == 20_000
        assert answers[short][0] in (0, 400)
        assert answers[good][0] == 200
        assert gateway.distinct_ids() == ["z"]


def test_a_path_may_be_percent_encoded(gateway: RunningGateway) -> None:
    """It is the same path."""
    assert (
        httpx.post(
            f"{gateway.url}/api/v1/b%61tch", content=batch(row("a")), headers=dict([JSON]), timeout=60
        ).status_code
        == 200
    )


def test_a_slow_http2_body_is_cut_off(tmp_path: Path) -> None:
    """Its stream gets 408; the others of its connection are served."""
    with RunningGateway(tmp_path, limits=Limits(request_seconds_max=1)) as gateway, gateway.connect() as connection:
        http2 = Http2Connection(connection)
        slow = http2.send("POST", "/api/v1/batch", [b'{"token"'], [JSON], is_whole=False)
        until(lambda: gateway.held_bytes() > 0, "held what was sent")
        gateway.reload([SOURCE], Limits())
        good = http2.send("POST", "/api/v1/batch", [batch(row("a"))], [JSON])
        answers = http2.answers([slow, good])
        assert answers[slow][0] == -1  # 408 is not in the static table.
        assert "did not arrive" in json.loads(answers[slow][1])["error"]
        assert answers[good][0] == 200
