"""Bodies: within their size, their time and the worker's budget; whatever is wrong with one is answered."""

import contextlib
import gzip
import json
import select
import zlib
from collections.abc import Callable
from pathlib import Path

import brotli
import httpx
import pytest
import zstandard

from counterfoil.contract.limits import Limits
from tests.gateway.alone import AloneGateway
from tests.gateway.server import SOURCE, RunningGateway, batch, is_closed, read_answer, request_head, row, until

MIB = 1024 * 1024
SMALL = Limits(body_bytes_max=100_000)

DEFLATERS: dict[str, Callable[[bytes], bytes]] = {
    "gzip": lambda body: gzip.compress(body, 1),
    "x-gzip": gzip.compress,
    "deflate": lambda body: zlib.compress(body, 1),
    "zstd": zstandard.ZstdCompressor().compress,
    "br": lambda body: brotli.compress(body, quality=1),
    " GZip ": gzip.compress,
}


def padded(body_bytes: int, distinct_id: str = "a") -> bytes:
    """A batch of one row of exactly so many bytes."""
    empty = batch(row(distinct_id))
    return empty[:-1] + b" " * (body_bytes - len(empty)) + b"}"


def chunked(*pieces: bytes) -> bytes:
    return b"".join(b"%x\r\n%b\r\n" % (len(piece), piece) for piece in pieces)


@pytest.mark.parametrize("encoding", DEFLATERS)
@pytest.mark.parametrize("path", ["/batch", "/track"])
def test_a_compressed_body_is_inflated(gateway: RunningGateway, path: str, encoding: str) -> None:
    """Every encoding of the contract, on every path, in any case."""
    sent = {"token": "live-token", "events": [row("a")], **row("a")}
    answer = gateway.post(path, DEFLATERS[encoding](json.dumps(sent).encode()), content_encoding=encoding.strip())
    assert answer.status_code == 200
    assert gateway.distinct_ids() == ["a"]


def test_identity_is_no_compression(gateway: RunningGateway) -> None:
    """It is an encoding's name, too."""
    assert gateway.post("/batch", batch(row("a")), content_encoding="identity").status_code == 200


@pytest.mark.parametrize("encoding", ["compress", "gzip, gzip", "aws-chunked", "*"])
def test_an_encoding_that_is_not_spoken_is_415(gateway: RunningGateway, encoding: str) -> None:
    """The answer names those that are, and not what was sent."""
    answer = gateway.post("/batch", batch(row("a")), content_encoding=encoding)
    assert answer.status_code == 415
    assert "gzip, deflate, zstd, br" in answer.json()["error"]


@pytest.mark.parametrize("encoding", ["gzip", "deflate", "zstd", "br"])
def test_damaged_compression_is_400(gateway: RunningGateway, encoding: str) -> None:
    """Not compressed at all, or cut: either way nothing is kept."""
    body = DEFLATERS[encoding](batch(row("a")))
    for damaged in (batch(row("a")), body[:-1], b""):
        answer = gateway.post("/batch", damaged, content_encoding=encoding)
        assert answer.status_code == 400
        assert encoding in answer.json()["error"]
    assert gateway.frames() == []


def test_a_body_at_its_limit_is_taken_and_one_byte_more_is_413(tmp_path: Path) -> None:
    """The limit is told in bytes, with its unit."""
    with RunningGateway(tmp_path, limits=SMALL) as gateway:
        assert gateway.post("/batch", padded(100_000)).status_code == 200
        answer = gateway.post("/batch", padded(100_001))
        assert answer.status_code == 413
        assert answer.json() == {"success": False, "error": "the body is larger than 100000 bytes", "limit": 100_000}
        assert len(gateway.frames()) == 1


@pytest.mark.parametrize("encoding", ["gzip", "deflate", "zstd", "br"])
def test_the_limit_holds_for_the_inflated_body_too(tmp_path: Path, encoding: str) -> None:
    """At the limit it is taken, one byte more is 413, and a bomb is no more than that."""
    with RunningGateway(tmp_path, limits=SMALL) as gateway:
        assert (
            gateway.post("/batch", DEFLATERS[encoding](padded(100_000)), content_encoding=encoding).status_code == 200
        )
        for body in (padded(100_001), bytes(20 * MIB)):
            answer = gateway.post("/batch", DEFLATERS[encoding](body), content_encoding=encoding)
            assert (answer.status_code, answer.json()["limit"]) == (413, 100_000)
            assert "decompressed" in answer.json()["error"]


def test_too_many_rows_are_413_in_rows(tmp_path: Path) -> None:
    """The limit that was exceeded is told in rows, and the text says so."""
    with RunningGateway(tmp_path, limits=Limits(rows_max=3)) as gateway:
        assert gateway.post("/batch", batch(*(row(one) for one in "abc"))).status_code == 200
        answer = gateway.post("/batch", batch(*(row(one) for one in "abcd")))
        assert (answer.status_code, answer.json()["limit"]) == (413, 3)
        assert "rows" in answer.json()["error"]


@pytest.mark.parametrize("pieces", [1, 7, 400])
def test_a_chunked_body_is_read_to_its_end(gateway: RunningGateway, pieces: int) -> None:
    """It has no length, and is one body all the same."""
    body = batch(*(row(str(index)) for index in range(50)))
    size = -(-len(body) // pieces)
    with gateway.connect() as connection:
        connection.sendall(request_head("/api/v1/batch", "transfer-encoding: chunked"))
        for start in range(0, len(body), size):
            connection.sendall(chunked(body[start : start + size]))
        connection.sendall(b"0\r\n\r\n")
        assert read_answer(connection).json()["accepted"] == 50
        connection.sendall(request_head("/api/v1/batch", "transfer-encoding: chunked") + chunked(batch(row("z")), b""))
        assert read_answer(connection).status == 200
    assert gateway.distinct_ids() == [*map(str, range(50)), "z"]


def test_a_chunked_body_that_is_too_large_is_413_when_it_is(tmp_path: Path) -> None:
    """What follows is read and thrown away, so that the sender gets to read the answer."""
    with RunningGateway(tmp_path, limits=SMALL) as gateway, gateway.connect() as connection:
        connection.sendall(request_head("/api/v1/batch", "transfer-encoding: chunked"))
        for _ in range(19):
            connection.sendall(chunked(b" " * 10_000))
        connection.sendall(b"0\r\n\r\n")
        assert read_answer(connection).status == 413
        connection.sendall(request_head("/livez", method="GET"))
        assert read_answer(connection).status == 200


@pytest.mark.parametrize("path", ["/api/v1/batch", "/nowhere", "/livez"])
def test_the_rest_of_a_refused_body_is_read_before_the_answer(tmp_path: Path, path: str) -> None:
    """Up to twice the limit: the answer is read from a connection that still stands."""
    with RunningGateway(tmp_path, limits=Limits(body_bytes_max=4 * MIB)) as gateway, gateway.connect() as connection:
        connection.sendall(request_head(path, f"content-length: {7 * MIB}"))
        for _ in range(7):
            connection.sendall(b" " * MIB)
        assert read_answer(connection).status == {"/api/v1/batch": 413, "/nowhere": 404, "/livez": 405}[path]
        connection.sendall(request_head("/livez", method="GET"))
        assert read_answer(connection).status == 200


def test_a_body_without_end_is_not_read_without_end(tmp_path: Path) -> None:
    """Past twice the limit the answer is given and the connection closed."""
    with RunningGateway(tmp_path, limits=SMALL) as gateway, gateway.connect() as connection:
        connection.sendall(request_head("/api/v1/batch", "transfer-encoding: chunked"))
        endless = chunked(b" " * 100_000) * 200
        with pytest.raises((ConnectionResetError, BrokenPipeError)):
            connection.sendall(endless)


def test_who_waits_to_be_told_to_continue_is_answered_at_once(tmp_path: Path) -> None:
    """Such a sender has sent nothing yet: it gets the refusal alone, or `100 Continue`."""
    with RunningGateway(tmp_path, limits=SMALL) as gateway:
        with gateway.connect() as connection:
            connection.sendall(request_head("/api/v1/batch", "content-length: 150000", "expect: 100-continue"))
            assert read_answer(connection).status == 413
            assert is_closed(connection)
        body = batch(row("a"))
        with gateway.connect() as connection:
            connection.sendall(request_head("/api/v1/batch", f"content-length: {len(body)}", "expect: 100-continue"))
            assert read_answer(connection).status == 100
            connection.sendall(body)
            assert read_answer(connection).status == 200


@pytest.mark.parametrize("path", ["/api/v1/batch", "/nowhere"])
def test_a_connection_whose_rest_is_not_read_is_said_to_close(tmp_path: Path, path: str) -> None:
    """Who sends a body without waiting to be told to learns from the answer that no request can follow it."""
    with RunningGateway(tmp_path, limits=SMALL) as gateway, gateway.connect() as connection:
        connection.sendall(request_head(path, "content-length: 150000", "expect: 100-continue") + b" " * 1000)
        answer = read_answer(connection)
        assert (answer.status, answer.headers["connection"]) == (413 if path.endswith("batch") else 404, "close")
        kept = gateway.connect()
        kept.sendall(request_head("/nowhere", "content-length: 1000") + b" " * 1000)
        assert "connection" not in read_answer(kept).headers
        kept.close()


def test_a_body_shorter_than_its_length_is_400(gateway: RunningGateway) -> None:
    """A sender that stops sending and still listens is told; nothing of it is kept, whole rows or not."""
    body = batch(row("a"))
    with gateway.connect() as connection:
        connection.sendall(request_head("/api/v1/batch", f"content-length: {len(body) + 10}") + body)
        connection.shutdown(1)
        answer = read_answer(connection)
    assert (answer.status, answer.json()["error"]) == (400, "the body is shorter than its Content-Length")
    assert gateway.frames() == []


def test_a_chunked_body_that_breaks_off_is_400(gateway: RunningGateway) -> None:
    """What a body lacks, its JSON lacks too."""
    with gateway.connect() as connection:
        connection.sendall(request_head("/api/v1/batch", "transfer-encoding: chunked") + chunked(batch(row("a"))[:-5]))
        connection.shutdown(1)
        assert read_answer(connection).status == 400
    assert gateway.frames() == []


def test_a_sender_that_leaves_in_the_middle_harms_nobody(gateway: RunningGateway) -> None:
    """The worker goes on, and nothing of the broken request is kept."""
    for _ in range(20):
        with gateway.connect() as connection:
            connection.sendall(request_head("/api/v1/batch", "content-length: 1000") + b'{"token":"live')
    assert gateway.post("/batch", batch(row("a"))).status_code == 200
    assert gateway.distinct_ids() == ["a"]


def test_a_slow_body_is_cut_off(tmp_path: Path) -> None:
    """A request that has not arrived in time gets 408, and its connection is closed."""
    with RunningGateway(tmp_path, limits=Limits(request_seconds_max=1)) as gateway:
        for head in ("content-length: 1000", "transfer-encoding: chunked"):
            with gateway.connect() as connection:
                connection.sendall(request_head("/api/v1/batch", head))
                answer = read_answer(connection)
                assert (answer.status, answer.headers["connection"]) == (408, "close")
                assert answer.json() == {"success": False, "error": "the request did not arrive within 1 seconds"}
                assert is_closed(connection)
        gateway.reload([SOURCE], Limits())
        assert gateway.post("/batch", batch(row("a"))).status_code == 200


def test_a_trickle_is_cut_off_too(tmp_path: Path) -> None:
    """The time is for the whole request: a byte now and then does not extend it."""
    with RunningGateway(tmp_path, limits=Limits(request_seconds_max=1)) as gateway, gateway.connect() as connection:
        connection.sendall(request_head("/api/v1/batch", "content-length: 100000"))
        for _ in range(1000):
            if select.select([connection], [], [], 0.1)[0]:
                break
            # Between the look and this it may have been cut off; what it was told is still there to be read.
            with contextlib.suppress(ConnectionError):
                connection.sendall(b" ")
        assert read_answer(connection).status == 408


def test_slow_headers_are_cut_off(tmp_path: Path) -> None:
    """A connection that never says what it wants is closed."""
    with RunningGateway(tmp_path, limits=Limits(request_seconds_max=1)) as gateway, gateway.connect() as connection:
        connection.sendall(b"POST /api/v1/batch HTTP/1.1\r\nhost: x\r\n")
        assert b" 200 " not in connection.recv(1000)


def test_a_worker_over_its_budget_refuses_at_once(tmp_path: Path) -> None:
    """500, to be sent again; requests still arriving hold half of the budget, which is free when they are gone."""
    with RunningGateway(tmp_path, limits=Limits(body_bytes_max=MIB), bodies_bytes_max=4 * MIB) as gateway:
        holders = [gateway.connect() for _ in range(2)]
        for holder in holders:
            holder.sendall(request_head("/api/v1/batch", f"content-length: {MIB}") + b" " * (MIB - 1))
        until(lambda: gateway.held_bytes() == 2 * (MIB - 1), "held what was sent")
        refused = gateway.post("/batch", padded(500_000))
        assert refused.status_code == 500
        assert (refused.json()["success"], refused.json()["retryable"]) == (False, True)
        assert refused.headers["retry-after"] == "1"
        assert gateway.post("/batch", batch(row("small"))).status_code == 200, (
            "stalled senders keep out large bodies alone"
        )
        for holder in holders:
            holder.sendall(b" ")
            assert read_answer(holder).status == 400
            holder.close()
        assert gateway.post("/batch", padded(500_000)).status_code == 200


def test_the_rest_of_a_body_without_room_is_not_waited_for(tmp_path: Path) -> None:
    """A sender that stalls behind a body for which there was no room is answered, and its connection is closed."""
    with (
        RunningGateway(tmp_path, limits=Limits(body_bytes_max=MIB), bodies_bytes_max=MIB) as gateway,
        gateway.connect() as holder,
        gateway.connect() as late,
    ):
        holder.sendall(request_head("/api/v1/batch", f"content-length: {MIB}") + b" " * (MIB - 1))
        until(lambda: gateway.held_bytes() == MIB - 1, "held what was sent")
        late.sendall(request_head("/api/v1/batch", f"content-length: {MIB}") + b" " * 1000)
        answer = read_answer(late)
        assert (answer.status, answer.headers["retry-after"], answer.headers["connection"]) == (500, "1", "close")
        assert gateway.held_bytes() == MIB - 1


def test_what_a_body_inflates_to_counts_for_the_budget(tmp_path: Path) -> None:
    """A body that fits compressed and not inflated is refused over the budget."""
    with RunningGateway(tmp_path, limits=Limits(body_bytes_max=3 * MIB), bodies_bytes_max=2 * MIB) as gateway:
        answer = gateway.post("/batch", gzip.compress(padded(3 * MIB)), content_encoding="gzip")
        assert (answer.status_code, answer.json()["retryable"]) == (500, True)
        assert gateway.post("/batch", gzip.compress(padded(MIB)), content_encoding="gzip").status_code == 200


def test_the_largest_bodies_have_room(gateway: RunningGateway) -> None:
    """With the defaults a body of the largest size is taken, also compressed when that makes it no smaller."""
    rows = [row(f"large-{number}", note="x" * 1_000_000) for number in range(16)]
    body = batch(*rows)
    body = body[:-1] + b" " * (Limits().body_bytes_max - 2000 - len(body)) + b"}"
    stored = gzip.compress(body, 0)
    assert len(body) < len(stored) <= Limits().body_bytes_max
    assert gateway.post("/batch", body).json()["accepted"] == len(rows)
    assert gateway.post("/batch", stored, content_encoding="gzip").json()["accepted"] == len(rows)


def test_announcing_a_body_holds_nothing(tmp_path: Path) -> None:
    """Only bytes that have come count, so that promises don't keep others out."""
    with RunningGateway(tmp_path, limits=Limits(body_bytes_max=MIB), bodies_bytes_max=2 * MIB) as gateway:
        announcers = [gateway.connect() for _ in range(10)]
        for announcer in announcers:
            announcer.sendall(request_head("/api/v1/batch", f"content-length: {MIB}"))
        assert gateway.post("/batch", padded(MIB)).status_code == 200
        for announcer in announcers:
            announcer.close()


@pytest.mark.parametrize("encoding", ["gzip", "deflate", "zstd", "br"])
def test_a_bomb_costs_no_more_memory_than_the_limit(tmp_path: Path, encoding: str) -> None:
    """A small body that would inflate to 256 MiB leaves a worker below 150 MiB."""
    bomb = DEFLATERS[encoding](bytes(256 * MIB))
    with AloneGateway(tmp_path) as gateway:
        with httpx.Client(
            timeout=60, headers={"content-type": "application/json", "content-encoding": encoding}
        ) as client:
            for _ in range(3):
                answer = client.post(f"{gateway.url}/api/v1/batch", content=bomb)
                assert (answer.status_code, answer.json()["limit"]) == (413, 16 * MIB)
        assert gateway.memory_bytes_max() < 150 * MIB
