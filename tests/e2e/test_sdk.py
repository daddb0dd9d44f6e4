from __future__ import annotations

import json
import resource
import time
from collections.abc import Callable, Iterator
from datetime import UTC, datetime, timedelta
from typing import Any
from uuid import UUID

import pytest

from tests.e2e.sdk import NEWEST, Call, Sdk
from tests.e2e.server import TEST_TOKEN, TOKEN, WAIT_SECONDS, Server, until

VERSIONS = (NEWEST, "1.33.0")
"""The newest official SDK, and the last one that any index can install as it is; both in strict mode."""


@pytest.fixture(scope="module", params=VERSIONS)
def sdk(request: pytest.FixtureRequest) -> Iterator[Sdk]:
    started = Sdk(request.param)
    yield started
    started.close()


@pytest.fixture
def unique(sdk: Sdk, request: pytest.FixtureRequest) -> Callable[[str], str]:
    """Makes a distinctId that no other test sends."""
    return lambda name: f"{request.node.originalname}-{sdk.version}-{name}"


def now_ms() -> int:
    return time.time_ns() // 1_000_000


def at(time_ms: int) -> datetime:
    return datetime.fromtimestamp(0, UTC) + timedelta(milliseconds=time_ms)


def decoded(row: dict[str, Any], *names: str) -> list[Any]:
    return [json.loads(row[name]) for name in names]


def test_track_is_accepted_and_lies_in_the_table(sdk: Sdk, server: Server, unique: Callable[[str], str]) -> None:
    """A call of track with every kind of field is accepted, and each value lies in the table as it was sent."""
    distinct_id, sent_ms = unique("full"), now_ms() - 60_000
    event_properties = {
        "plan": "größer 🎟",
        "amount": 11.77,
        "count": 3,
        "yes": True,
        "nothing": None,
        "list": [1, "two", {"three": 3}],
        "nested": {"a": {"b": {"c": "d"}}},
    }
    (told,) = sdk.calls(
        server.url,
        (
            "track",
            {
                "event": "Sign Up",
                "distinct_id": distinct_id,
                "user_id": "u-1",
                "external_id": "x-1",
                "email": "a@example.org",
                "time": sent_ms,
                "event_properties": event_properties,
                "user_properties": {"first_name": "Zoë", "custom_properties": {"tier": "gold"}},
                "default_properties": {"utm_campaign": "autumn", "screen_width": 1920},
                "identity_context": {"ip": "203.0.113.9", "user_agent": "tests"},
            },
        ),
    )
    assert told == {"answer": {"success": True}}
    (row,) = server.rows_of(distinct_id)
    assert (row["source"], row["event"]) == ("website", "Sign Up")
    assert (row["user_id"], row["external_id"], row["email"]) == ("u-1", "x-1", "a@example.org")
    assert row["time"] == at(sent_ms)
    assert abs(row["received_at"] - at(now_ms())) < timedelta(seconds=WAIT_SECONDS)
    in_event, in_user, in_default, in_identity = decoded(
        row, "event_properties", "user_properties", "default_properties", "identity_context"
    )
    assert in_event == event_properties
    assert in_user == {"first_name": "Zoë", "custom_properties": {"tier": "gold"}}
    assert in_identity == {"ip": "203.0.113.9", "userAgent": "tests"}
    received_at = in_default.pop("received_at")
    assert datetime.fromisoformat(received_at) == row["received_at"].replace(
        microsecond=row["received_at"].microsecond // 1000 * 1000
    )
    assert in_default == {
        "utm_campaign": "autumn",
        "screen_width": 1920,
        "version": f"ingest-sdk-python/{sdk.version}",
    }
    assert row["extra"] is None


def test_track_without_identity_gets_one(sdk: Sdk, server: Server, unique: Callable[[str], str]) -> None:
    """A call of track without distinctId is accepted; the server makes one, and the time is that of receipt."""
    event = unique("made")
    (told,) = sdk.calls(server.url, ("track", {"event": event}))
    assert told == {"answer": {"success": True}}
    (row,) = until(lambda: [row for row in server.rows() if row["event"] == event] or None, "the row in the table")
    made = UUID(row["distinct_id"])
    assert made.version == 7
    assert row["time"] == row["received_at"]


def test_batch_is_accepted_row_by_row(sdk: Sdk, server: Server, unique: Callable[[str], str]) -> None:
    """Every row of a batch is accepted and lies in the table, in the order in which they were sent."""
    names = [unique(str(number)) for number in range(250)]
    events = [
        {"event": "Purchase", "distinct_id": name, "event_properties": {"number": number}, "external_id": "c-7"}
        for number, name in enumerate(names)
    ]
    (told,) = sdk.calls(server.url, ("batch", {"events": events}))
    assert told == {
        "answer": {
            "success": True,
            "accepted": 250,
            "failed": 0,
            "results": [{"index": number, "success": True} for number in range(250)],
        }
    }
    rows = server.rows_of(*names)
    assert [row["distinct_id"] for row in rows] == names
    assert [json.loads(row["event_properties"]) for row in rows] == [{"number": n} for n in range(250)]
    assert {row["external_id"] for row in rows} == {"c-7"}


def test_identify_makes_one_row(sdk: Sdk, server: Server, unique: Callable[[str], str]) -> None:
    """A call of identify is accepted and makes one `$identify` row with the properties."""
    user_id = unique("visitor")
    (told,) = sdk.calls(
        server.url,
        ("identify", {"user_id": user_id, "email": "b@example.org", "user_properties": {"phone_number": "+49 30 1"}}),
    )
    assert told == {"answer": {"success": True}}
    (row,) = until(lambda: [row for row in server.rows() if row["user_id"] == user_id] or None, "the row in the table")
    assert (row["event"], row["email"]) == ("$identify", "b@example.org")
    assert json.loads(row["user_properties"]) == {"phone_number": "+49 30 1"}
    assert UUID(row["distinct_id"]).version == 7


def test_a_broken_row_fails_alone(sdk: Sdk, server: Server, unique: Callable[[str], str]) -> None:
    """A batch with broken rows answers 207: each says why, the others are accepted, and only they are delivered."""
    good, other = unique("good"), unique("other")
    events = [
        {"event": "Purchase", "distinct_id": good},
        {"event": "", "distinct_id": unique("no event")},
        {"event": "Purchase"},
        {"event": "Purchase", "distinct_id": "x" * 401},
        {"event": "Purchase", "distinct_id": other, "time": now_ms()},
    ]
    (told,) = sdk.calls(server.url, ("batch", {"events": events}))
    answer = told["answer"]
    assert (answer["success"], answer["accepted"], answer["failed"]) == (False, 2, 3)
    assert [result["success"] for result in answer["results"]] == [True, False, False, False, True]
    failed = answer["results"][1:4]
    assert {result["code"] for result in failed} == {"invalid_event"}
    assert [result["message"].partition(":")[0] for result in failed] == [
        "events[1].event",
        "events[2].distinctId",
        "events[3].distinctId",
    ]
    assert [row["distinct_id"] for row in server.rows_of(good, other)] == [good, other]
    assert not [row for row in server.rows() if row["distinct_id"] in ("x" * 401, unique("no event"))]


def test_a_repeat_is_a_success_and_delivered_once(sdk: Sdk, server: Server, unique: Callable[[str], str]) -> None:
    """A repeated batch is answered as a success and delivered once; other content of the same key stays out."""
    name, later = unique("repeated"), unique("later")
    event = {"event": "Purchase", "distinct_id": name, "event_properties": {"dollars": 12}}
    changed = {**event, "event_properties": {"dollars": 13}}
    told = sdk.calls(
        server.url,
        ("batch", {"events": [event, event]}),
        ("batch", {"events": [event]}),
        ("batch", {"events": [changed]}),
        ("batch", {"events": [{"event": "Purchase", "distinct_id": later}]}),
    )
    assert [call["answer"]["failed"] for call in told] == [0, 0, 0, 0]
    rows = server.rows_of(name, later)
    assert [row["distinct_id"] for row in rows] == [name, later]
    assert json.loads(rows[0]["event_properties"]) == {"dollars": 12}


def test_rows_of_a_test_token_are_never_delivered(sdk: Sdk, server: Server, unique: Callable[[str], str]) -> None:
    """A row sent with the test token is answered like any other and claims nothing; the live one is delivered."""
    name = unique("tested")
    event = {"event": "Purchase", "distinct_id": name, "event_properties": {"live": False}}
    (told,) = sdk.calls(server.url, ("batch", {"events": [event]}), token=TEST_TOKEN)
    assert told["answer"]["accepted"] == 1
    sdk.calls(server.url, ("batch", {"events": [{**event, "event_properties": {"live": True}}]}))
    assert [json.loads(row["event_properties"]) for row in server.rows_of(name)] == [{"live": True}]


@pytest.mark.parametrize(
    ("call", "token", "raised", "status"),
    [
        (("batch", {"events": []}), TOKEN, "BadRequestError", 400),
        (("track", {"event": ""}), TOKEN, "BadRequestError", 400),
        (("track", {"event": "x"}), "", "BadRequestError", 400),
        (("identify", {"user_properties": None}), TOKEN, "BadRequestError", 400),
        (("track", {"event": "x"}), "unknown", "AuthenticationError", 401),
        (("batch", {"events": [{"event": "x", "distinct_id": "y"}]}), "unknown", "AuthenticationError", 401),
        (("track", {"event": "x", "extra_headers": {"Content-Type": "text/plain"}}), TOKEN, "APIStatusError", 415),
        (("track", {"event": "x", "extra_headers": {"Content-Encoding": "lzma"}}), TOKEN, "APIStatusError", 415),
        (("batch", {"events": [{}] * 10_001}), TOKEN, "APIStatusError", 413),
    ],
)
def test_errors_raise_what_the_sdk_documents(
    sdk: Sdk, server: Server, call: Call, token: str, raised: str, status: int
) -> None:
    """Each kind of refused request raises the SDK's class for it, with the parsed body attached."""
    (told,) = sdk.calls(server.url, call, token=token)
    assert (told["raised"], told["status"]) == (raised, status)
    assert told["body"]["success"] is False
    assert told["body"]["error"]
    assert set(told["body"]) == {"success", "error"} | ({"limit"} if status == 413 else set())


def test_a_base_url_without_its_path_is_told(sdk: Sdk, server: Server) -> None:
    """A base URL that lacks /api/v1 answers 404, and says so."""
    (told,) = sdk.calls(server.url.removesuffix("/api/v1"), ("track", {"event": "x"}))
    assert (told["raised"], told["status"]) == ("NotFoundError", 404)
    assert "/api/v1" in told["body"]["error"]


def test_base_url_may_end_with_a_slash(sdk: Sdk, server: Server, unique: Callable[[str], str]) -> None:
    """A base URL with a slash at its end works as well."""
    (told,) = sdk.calls(server.url + "/", ("track", {"event": "x", "distinct_id": unique("slash")}))
    assert told == {"answer": {"success": True}}


def test_a_failing_disk_raises_a_server_error(sdk: Sdk, make_server: Callable[..., Server]) -> None:
    """While the disk takes nothing, nothing is accepted and the SDK raises its class for 500; then all goes on."""
    server = make_server().start()
    worker = server.pid_of("gateway-1")
    assert worker is not None
    event = {"event": "x", "distinct_id": "y"}
    resource.prlimit(worker, resource.RLIMIT_FSIZE, (0, resource.RLIM_INFINITY))
    for told in sdk.calls(server.url, ("batch", {"events": [event, {}]}), ("track", event)):
        assert (told["raised"], told["status"]) == ("InternalServerError", 500)
        assert told["body"]["success"] is False
        assert told["body"]["retryable"] is True
        if "results" in told["body"]:
            assert [result.get("code") for result in told["body"]["results"]] == ["queue_failed", "invalid_event"]
    resource.prlimit(worker, resource.RLIMIT_FSIZE, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))

    def is_accepted() -> bool:
        (told,) = sdk.calls(server.url, ("batch", {"events": [event]}))
        return bool(told.get("answer", {}).get("accepted") == 1)

    until(is_accepted, "the queue takes rows again")
    until(lambda: server.console("/readyz") == 200 or None, "the server is ready again")
    assert len(server.rows_of("y")) == 1
    assert server.pid_of("gateway-1") == worker
    assert server.stop() == 0
