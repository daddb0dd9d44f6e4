"""Rows: what was accepted lies in the queue, with its facts, and the answer says which did not."""

import json
import time
import uuid
from pathlib import Path

import httpx
import pytest
import xxhash

from counterfoil.contract.facts import RowFlag, key_hash, key_prefix
from counterfoil.queue.settings import QueueSettings
from counterfoil.sources import AllowedEvent, SourceSettings, token_sha256
from tests.gateway.server import SOURCE, TEST_TOKEN, TOKEN, RunningGateway, batch, row

NOW_MS = 1_750_000_000_123


def flags_of(gateway: RunningGateway) -> list[RowFlag]:
    return [RowFlag(int(flag)) for frame in gateway.frames() for flag in frame.facts.flags]


def test_accepted_rows_lie_in_the_queue_when_they_are_answered(gateway: RunningGateway) -> None:
    """P1: once the answer is here, every accepted row is durable, value for value and in order."""
    sent = [row("a", eventProperties={"price": 12.5, "tags": ["x", None]}), row("b", userId="u", email="e@x.org")]
    answer = gateway.post("/batch", batch(*sent))
    assert answer.status_code == 200
    assert answer.json() == {
        "success": True,
        "accepted": 2,
        "failed": 0,
        "results": [{"index": 0, "success": True}, {"index": 1, "success": True}],
    }
    assert gateway.rows() == sent


def test_a_row_fails_alone(gateway: RunningGateway) -> None:
    """P2: broken rows of every kind between good ones are answered one by one, and the good ones are kept."""
    rows = [
        json.dumps(row("a")).encode(),
        b"7",
        b'{"event":"x","distinctId":"\\ud800"}',
        b'{"event":"x","distinctId":"b\xff"}',
        b"[" * 10_000 + b"]" * 10_000,
        b'{"event":"x","distinctId":"c","eventProperties":{"n":1e400}}',
        b'{"event":"x"}',
        json.dumps(row("z")).encode(),
    ]
    answer = gateway.post("/batch", b'{"token":"%s","events":[%s]}' % (TOKEN.encode(), b",".join(rows)))
    assert answer.status_code == 207
    body = answer.json()
    assert (body["success"], body["accepted"], body["failed"]) == (False, 2, 6)
    assert [result["index"] for result in body["results"]] == list(range(8))
    assert [result["success"] for result in body["results"]] == [True] + 6 * [False] + [True]
    assert {result["code"] for result in body["results"] if not result["success"]} == {"invalid_event"}
    assert gateway.distinct_ids() == ["a", "z"]


def test_when_every_row_is_invalid_the_reasons_reach_the_sender(gateway: RunningGateway) -> None:
    """207, not 400, and nothing is kept."""
    answer = gateway.post("/batch", batch({}, {}))
    assert (answer.status_code, answer.json()["accepted"], answer.json()["failed"]) == (207, 0, 2)
    assert gateway.frames() == []


def test_a_frame_holds_what_the_server_knows_of_a_request(tmp_path: Path) -> None:
    """Source, time of receipt and request id stand in the frame, key and content hash beside each row."""
    with RunningGateway(tmp_path, clock_ms=lambda: NOW_MS) as gateway:
        answer = gateway.post("/batch", batch(row("a", time=NOW_MS - 1), row("b")))
        (frame,) = gateway.frames()
    assert frame.facts.source == "website"
    assert frame.received_at_ms == NOW_MS
    assert uuid.UUID(bytes=frame.request_id) == uuid.UUID(answer.headers["x-request-id"])
    assert frame.sender_version is None
    assert [bytes(key) for key in frame.facts.key_hashes] == [key_hash(key_prefix("website"), one) for one in "ab"]
    assert list(frame.facts.content_hashes) == [
        int.from_bytes(xxhash.xxh3_64_digest(frame.row(index)), "little") for index in range(2)
    ]
    assert list(frame.facts.flags) == [0, 0]
    assert list(frame.facts.destination_set) == [0, 0]


def test_a_large_request_becomes_several_frames(tmp_path: Path) -> None:
    """Frames take as many rows as the queue wants, in order; all of them carry the request's id."""
    rows = [row(str(index)) for index in range(1000)]
    with RunningGateway(tmp_path, queue=QueueSettings(frame_rows_max=300, reserve_bytes=0)) as gateway:
        answer = gateway.post("/batch", batch(*rows))
        frames = gateway.frames()
    assert answer.json()["accepted"] == 1000
    assert [frame.facts.row_count for frame in frames] == [300, 300, 300, 100]
    assert len({frame.request_id for frame in frames}) == 1
    assert gateway.rows() == rows


def test_a_request_of_ten_thousand_rows_is_answered_whole(gateway: RunningGateway) -> None:
    """What is judged in pieces has its indexes and its order as if it were not, broken rows among it."""
    rows = [row(f"order-{index}", fill="x" * 200) if index % 10 else {"event": "x"} for index in range(10_000)]
    answer = gateway.post("/batch", batch(*rows))
    assert answer.status_code == 207
    results = answer.json()["results"]
    assert [result["index"] for result in results] == list(range(10_000))
    assert [result["success"] for result in results] == [index % 10 != 0 for index in range(10_000)]
    assert all(results[index]["message"].startswith(f"events[{index}].distinctId:") for index in range(0, 10_000, 10))
    assert gateway.distinct_ids() == [f"order-{index}" for index in range(10_000) if index % 10]


def test_rows_may_be_kept_compressed(tmp_path: Path) -> None:
    """With compression set they read back the same."""
    with RunningGateway(tmp_path, queue=QueueSettings(compression="zstd", reserve_bytes=0)) as gateway:
        gateway.post("/batch", batch(*(row(str(index)) for index in range(100))))
        assert gateway.distinct_ids() == [str(index) for index in range(100)]


def test_rows_of_the_test_token_are_marked(gateway: RunningGateway) -> None:
    """They are judged and answered like any other, and kept as test rows."""
    answer = gateway.post("/batch", batch(row("a"), {}, token=TEST_TOKEN))
    assert (answer.status_code, answer.json()["accepted"]) == (207, 1)
    gateway.post("/track", {**row("b"), "token": TEST_TOKEN})
    gateway.post("/track", {**row("c"), "token": TOKEN})
    assert flags_of(gateway) == [RowFlag.TEST, RowFlag.TEST, RowFlag(0)]


def test_an_allowlist_decides_where_rows_go(tmp_path: Path) -> None:
    """A blocked event is accepted and kept as blocked; an entry's destinations stand in the frame, sorted."""
    source = SourceSettings(
        name="website",
        token_sha256=(token_sha256(TOKEN),),
        test_token_sha256=(token_sha256(TEST_TOKEN),),
        allowed_events=("Sign Up", AllowedEvent(event="Purchase", destinations=("lake", "crm")), "$identify"),
    )
    events = ["sign up ", "PURCHASE", "Other", "Purchase"]
    with RunningGateway(tmp_path, sources=[source]) as gateway:
        answer = gateway.post("/batch", batch(*({"event": event, "distinctId": event} for event in events)))
        assert answer.status_code == 200
        gateway.post("/track", {"token": TEST_TOKEN, "event": "Other"})
        gateway.post("/identify", {"token": TOKEN, "userProperties": {}})
        batched, tracked, identified = (frame.facts for frame in gateway.frames())
    assert [batched.destinations_of(int(index)) for index in batched.destination_set] == [
        None,
        ("crm", "lake"),
        None,
        ("crm", "lake"),
    ]
    assert list(batched.flags) == [0, 0, RowFlag.BLOCKED, 0]
    assert list(tracked.flags) == [RowFlag.BLOCKED | RowFlag.TEST]
    assert list(identified.flags) == [0]


def test_the_version_of_an_sdk_stands_in_where_the_sender_named_none(gateway: RunningGateway) -> None:
    """The frame holds what the headers say; the flag marks the rows it is for (contract.md section 4)."""
    rows = [row("a"), row("b", defaultProperties={"version": "mine"}), row("c", defaultProperties={"version": None})]
    headers = {"x_stainless_lang": "python", "x_stainless_package_version": "2.1.0"}
    gateway.post("/batch", batch(*rows), **headers)
    gateway.post("/track", {**row("d"), "token": TOKEN}, **headers)
    gateway.post("/track", {**row("e"), "token": TOKEN}, x_stainless_lang="python")
    versions = [frame.sender_version for frame in gateway.frames()]
    assert versions == ["ingest-sdk-python/2.1.0", "ingest-sdk-python/2.1.0", None]
    stands_in = RowFlag.VERSION_FROM_HEADERS
    assert flags_of(gateway) == [stands_in, RowFlag(0), stands_in, stands_in, RowFlag(0)]


def test_a_version_of_any_length_does_not_break_a_frame(gateway: RunningGateway) -> None:
    """What is too long for the property it would become is not taken from the headers."""
    answer = gateway.post("/batch", batch(row("a")), x_stainless_lang="p" * 2000, x_stainless_package_version="1")
    assert answer.status_code == 200
    assert gateway.frames()[0].sender_version is None


def test_track_takes_one_row(gateway: RunningGateway) -> None:
    """200 and {"success": true}; the token is not part of the row."""
    answer = gateway.post("/track", {**row("a", eventProperties={"x": 1}), "token": TOKEN})
    assert (answer.status_code, answer.json()) == (200, {"success": True})
    assert gateway.rows() == [row("a", eventProperties={"x": 1})]


def test_track_makes_a_distinct_id_where_there_is_none(gateway: RunningGateway) -> None:
    """It is a UUIDv7, the request's own id, so that the answer names the row."""
    answers = [gateway.post("/track", {"token": TOKEN, "event": "x", **extra}) for extra in ({}, {"distinctId": None})]
    assert [answer.status_code for answer in answers] == [200, 200]
    assert gateway.distinct_ids() == [answer.headers["x-request-id"] for answer in answers]
    assert {uuid.UUID(found).version for found in gateway.distinct_ids()} == {7}
    first, second = (frame.facts for frame in gateway.frames())
    assert first.content_hashes[0] == second.content_hashes[0]
    assert bytes(first.key_hashes[0]) != bytes(second.key_hashes[0])


def test_an_invalid_track_is_400_with_its_reason(gateway: RunningGateway) -> None:
    """The row's fault is the request's."""
    answer = gateway.post("/track", {"token": TOKEN, "event": ""})
    assert answer.status_code == 400
    assert answer.json()["error"].startswith("event: expected a string")
    assert gateway.frames() == []


def test_identify_makes_one_row(gateway: RunningGateway) -> None:
    """Its event is $identify, its distinctId the server's."""
    answer = gateway.post("/identify", {"token": TOKEN, "userId": "u", "userProperties": {"first_name": "x"}})
    assert (answer.status_code, answer.json()) == (200, {"success": True})
    assert gateway.rows() == [
        {
            "event": "$identify",
            "distinctId": answer.headers["x-request-id"],
            "userId": "u",
            "userProperties": {"first_name": "x"},
        }
    ]


@pytest.mark.parametrize("path", ["/batch", "/track", "/identify"])
@pytest.mark.parametrize("token", ["no-such-one", "LIVE-TOKEN", "live-token.", "x" * 250])
def test_a_token_that_is_not_known_is_401(gateway: RunningGateway, path: str, token: str) -> None:
    """Before any row is judged, so broken rows change nothing."""
    answer = gateway.post(path, {"token": token, "events": [{}], "event": 7})
    assert answer.status_code == 401
    assert token not in answer.text
    assert gateway.frames() == []


@pytest.mark.parametrize("path", ["/batch", "/track", "/identify"])
@pytest.mark.parametrize("token", [None, "", "  ", 7, [], "x" * 251])
def test_a_token_that_can_not_be_one_is_400(gateway: RunningGateway, path: str, token: object) -> None:
    """Missing, empty, too long or no string."""
    assert gateway.post(path, {"token": token, "events": [row("a")], **row("a")}).status_code == 400


def test_a_token_is_trimmed(gateway: RunningGateway) -> None:
    """White space around it is not part of it."""
    assert gateway.post("/batch", batch(row("a"), token=f" {TOKEN}\n")).status_code == 200


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"{",
        b"[]",
        b'"x"',
        b"null",
        b"\xff\xfe",
        b'{"token":"live-token"}',
        b'{"token":"live-token","events":[]}',
        b'{"token":"live-token","events":{}}',
        b'{"token":"live-token","events":[NaN]}',
        b'{"token":"live-token","events":[{}]}x',
        b"\xef\xbb\xbf{}",
    ],
)
def test_a_body_that_is_no_batch_is_400(gateway: RunningGateway, body: bytes) -> None:
    """Not JSON, not an object, no events: one reason, nothing kept."""
    answer = gateway.post("/batch", body)
    assert (answer.status_code, set(answer.json())) == (400, {"success", "error"})
    assert gateway.frames() == []


def test_requests_at_the_same_time_are_each_answered_for_their_own(gateway: RunningGateway) -> None:
    """Many connections, many flushes shared: every row lies in the queue once."""
    with httpx.Client(
        base_url=f"{gateway.url}/api/v1", headers={"content-type": "application/json"}, timeout=60
    ) as client:
        for start in range(0, 200, 10):
            rows = [row(f"{start}.{index}") for index in range(10)]
            assert client.post("/batch", content=batch(*rows)).json()["accepted"] == 10
    assert sorted(gateway.distinct_ids()) == sorted(
        f"{start}.{index}" for start in range(0, 200, 10) for index in range(10)
    )


def test_a_sources_own_window_is_what_its_rows_are_judged_by(tmp_path: Path) -> None:
    """A source without end takes history that others may not send."""
    history = SourceSettings(name="history", token_sha256=(token_sha256("old"),), max_age_days=0)
    with RunningGateway(tmp_path, sources=[SOURCE, history]) as gateway:
        old = row("a", time=int(time.time() * 1000) - 30 * 86_400_000)
        assert gateway.post("/batch", batch(old)).status_code == 207
        assert gateway.post("/batch", batch(old, token="old")).status_code == 200
        assert [frame.facts.source for frame in gateway.frames()] == ["history"]
