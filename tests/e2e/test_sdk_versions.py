"""Every version of the official SDK, sync and async: all calls, all parameters, all errors, lost answers."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from datetime import datetime, timedelta
from typing import Any
from uuid import UUID

import pytest

from counterfoil.contract.fields import DEFAULT_PROPERTIES, USER_PROPERTIES
from tests.e2e.losing_proxy import LosingProxy
from tests.e2e.sdk import NEWEST, Call, Sdk
from tests.e2e.server import TOKEN, Server, running, sha256, until
from tests.e2e.test_sdk import at, decoded, now_ms
from tests.ports import free_port

VERSIONS = ("1.14.0", "1.20.0", "1.33.0", NEWEST)
WITH_EXPERIMENTS = ("1.33.0", NEWEST)
LIMITED = "e2e-limited-token"
MORE = f"""
[[sources]]
name = "limited"
token_sha256 = ["{sha256(LIMITED)}"]
rows_per_second_max = 1
"""


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    with running(Server(tmp_path_factory.mktemp("server"), more=MORE)) as started:
        yield started


@pytest.fixture(scope="module", params=[(version, is_async) for version in VERSIONS for is_async in (False, True)])
def sdk(request: pytest.FixtureRequest) -> Iterator[Sdk]:
    version, is_async = request.param
    started = Sdk(version, is_async=is_async)
    yield started
    started.close()


@pytest.fixture
def unique(request: pytest.FixtureRequest) -> Callable[[str], str]:
    """Makes a text that no other test sends."""
    return lambda name: f"{request.node.name}-{name}"


def rows_with(server: Server, count: int, **columns: str) -> list[dict[str, Any]]:
    """So many rows of the table that have these values, once they are there."""

    def found() -> list[dict[str, Any]] | None:
        rows = [row for row in server.rows() if all(row[name] == value for name, value in columns.items())]
        return rows if len(rows) >= count else None

    rows = until(found, f"{count} rows in the table")
    assert len(rows) == count
    return rows


def check_row(row: dict[str, Any], sent: dict[str, Any]) -> None:
    """Every value that was sent lies in the row as it was sent; only `received_at` is the server's."""
    for column, name in (("user_id", "userId"), ("external_id", "externalId"), ("email", "email")):
        assert row[column] == sent[name]
    in_user, in_default, in_identity = decoded(row, "user_properties", "default_properties", "identity_context")
    assert in_user == sent["userProperties"]
    assert in_identity == sent["identityContext"]
    received_at = datetime.fromisoformat(in_default["received_at"])
    assert abs(received_at - row["received_at"]) < timedelta(milliseconds=1)
    assert in_default == sent["defaultProperties"] | {"received_at": in_default["received_at"]}
    if "eventProperties" in sent:
        assert json.loads(row["event_properties"]) == sent["eventProperties"]
        assert row["time"] == at(int(sent["time"]))
    assert row["extra"] is None


def test_every_parameter_of_every_call_is_delivered_as_it_was_sent(
    sdk: Sdk, server: Server, unique: Callable[[str], str]
) -> None:
    """Whatever the version's types know, in all three calls, is accepted and read back value for value."""
    event, time_ms = unique("event"), float(now_ms() - 60_000)
    track, sent_track = sdk.every_parameter["track"]
    batch, sent_batch = sdk.every_parameter["batch"]
    identify, sent_identify = sdk.every_parameter["identify"]
    for arguments, sent in ((track, sent_track), (batch["events"][0], sent_batch["events"][0])):
        for names in (arguments, sent):
            names |= {"event": event, "time": time_ms}
    track["distinct_id"], batch["events"][0]["distinct_id"] = unique("track"), unique("batch")
    identify["user_id"] = sent_identify["userId"] = unique("visitor")
    for arguments in (track, batch, identify):
        del arguments["token"]
    told = sdk.calls(server.url, ("track", track), ("batch", batch), ("identify", identify))
    accepted = {"success": True, "accepted": 1, "failed": 0, "results": [{"index": 0, "success": True}]}
    assert told == [{"answer": {"success": True}}, {"answer": accepted}, {"answer": {"success": True}}]
    (tracked,) = rows_with(server, 1, distinct_id=unique("track"))
    (batched,) = rows_with(server, 1, distinct_id=unique("batch"))
    (identified,) = rows_with(server, 1, user_id=unique("visitor"))
    check_row(tracked, sent_track)
    check_row(batched, sent_batch["events"][0])
    check_row(identified, sent_identify)
    assert (tracked["event"], batched["event"], identified["event"]) == (event, event, "$identify")
    assert UUID(identified["distinct_id"]).version == 7


def test_the_tables_know_every_property_of_the_sdk(sdk: Sdk) -> None:
    """What a version can send by name is checked by name; the newest can send all that the tables know."""
    _, sent = sdk.every_parameter["track"]
    for name, table in (("userProperties", USER_PROPERTIES), ("defaultProperties", DEFAULT_PROPERTIES)):
        assert sent[name].keys() <= table.keys()
        if sdk.version == NEWEST:
            assert sent[name].keys() == table.keys()


ROWS = [{"event": "x", "distinct_id": str(number)} for number in range(50)]
WRONG: list[tuple[Call, str, str, int]] = [
    (("batch", {"events": []}), "BadRequestError", "", 400),
    (("track", {"event": ""}), "BadRequestError", "", 400),
    (("identify", {"user_properties": None}), "BadRequestError", "", 400),
    (("batch", {"events": ROWS}), "AuthenticationError", "unknown", 401),
    (("track", {"event": "x"}), "AuthenticationError", "unknown", 401),
    (("identify", {"user_properties": {}}), "AuthenticationError", "unknown", 401),
    (("batch", {"events": [{}] * 10_001}), "APIStatusError", "", 413),
    (("track", {"event": "x", "extra_headers": {"Content-Type": "text/plain"}}), "APIStatusError", "", 415),
]


def test_every_refusal_raises_its_class(sdk: Sdk, server: Server) -> None:
    """Each status raises the SDK's class for it, with the parsed body attached."""
    for call, raised, token, status in WRONG:
        (told,) = sdk.calls(server.url, call, token=token or TOKEN)
        assert (told["raised"], told["status"]) == (raised, status)
        assert told["body"]["success"] is False
        assert set(told["body"]) == {"success", "error"} | ({"limit"} if status == 413 else set())
    (told,) = sdk.calls(server.url.removesuffix("/api/v1"), ("track", {"event": "x"}))
    assert (told["raised"], told["status"]) == ("NotFoundError", 404)
    limited = sdk.calls(server.url, *[("batch", {"events": ROWS})] * 2, token=LIMITED)
    assert (limited[1]["raised"], limited[1]["status"]) == ("RateLimitError", 429)


@pytest.mark.parametrize(
    "sdk", [(version, is_async) for version in WITH_EXPERIMENTS for is_async in (False, True)], indirect=True
)
def test_experiments_are_not_offered(sdk: Sdk, server: Server) -> None:
    """Where a version has them, its calls raise NotFoundError at once, though it would try again."""
    told = sdk.calls(
        server.url,
        ("assignment", {"experiment_key": "k", "visitor_id": "v"}),
        ("personalization", {"visitor_id": "v"}),
        max_retries=2,
    )
    assert [(call["raised"], call["status"]) for call in told] == [("NotFoundError", 404)] * 2


def test_without_an_answer_the_sdk_says_so(sdk: Sdk, server: Server, unique: Callable[[str], str]) -> None:
    """Nobody there, a connection that is cut, an answer that does not come: each raises its class."""
    call: Call = ("track", {"event": "x", "distinct_id": unique("cut")})
    (told,) = sdk.calls(f"http://127.0.0.1:{free_port()}/api/v1", call)
    assert told == {"raised": "APIConnectionError"}
    with LosingProxy(server.port) as proxy:
        proxy.lose(1)
        (told,) = sdk.calls(f"http://127.0.0.1:{proxy.port}/api/v1", call)
        assert told == {"raised": "APIConnectionError"}
        proxy.lose(1, "held")
        (told,) = sdk.calls(f"http://127.0.0.1:{proxy.port}/api/v1", call, timeout=0.5)
        assert told == {"raised": "APITimeoutError"}
        # Where the client left before the answer came, there was none to lose.
        proxy.lose(0)
        (told,) = sdk.calls(f"http://127.0.0.1:{proxy.port}/api/v1", call)
        assert told == {"answer": {"success": True}}
    rows_with(server, 1, distinct_id=unique("cut"))


def test_a_lost_answer_is_repeated_and_delivered_once(sdk: Sdk, server: Server, unique: Callable[[str], str]) -> None:
    """The rows are flushed, the answer is lost, the SDK sends the same again: with a distinctId one delivery."""
    names = [unique(str(number)) for number in range(3)]
    # What tests before this have repeated is booked a little after it is delivered.
    server.settle_down()
    before = booked(server)
    with LosingProxy(server.port) as proxy:
        for call in (
            ("batch", {"events": [{"event": "x", "distinct_id": name} for name in names[:2]]}),
            ("track", {"event": "x", "distinct_id": names[2]}),
        ):
            proxy.lose(1)
            (told,) = sdk.calls(f"http://127.0.0.1:{proxy.port}/api/v1", call, max_retries=2)
            assert told["answer"]["success"] is True
        assert proxy.lost_count == 2
    assert [row["distinct_id"] for row in server.rows_of(*names)] == names
    until(lambda: booked(server)["accepted"] == before["accepted"] + 6, "all that was sent is settled")
    after = booked(server)
    assert {name: after[name] - before[name] for name in ("new", "duplicate")} == {"new": 3, "duplicate": 3}


def booked(server: Server) -> dict[str, int]:
    """What the books say of the source."""
    found: dict[str, int] = next(source for source in server.status()["sources"] if source["name"] == "website")
    return found


def test_without_a_distinct_id_a_lost_answer_is_two_events(
    sdk: Sdk, server: Server, unique: Callable[[str], str]
) -> None:
    """Such a row has no identity (contract.md section 7): its repeat is a second one; /identify sets the same again."""
    event, visitor = unique("event"), unique("visitor")
    with LosingProxy(server.port) as proxy:
        for call in (
            ("track", {"event": event}),
            ("identify", {"user_id": visitor, "user_properties": {"city": "Bonn"}}),
        ):
            proxy.lose(1)
            (told,) = sdk.calls(f"http://127.0.0.1:{proxy.port}/api/v1", call, max_retries=2)
            assert told == {"answer": {"success": True}}
    rows = rows_with(server, 2, event=event)
    assert len({row["distinct_id"] for row in rows}) == 2
    assert [json.loads(row["user_properties"]) for row in rows_with(server, 2, user_id=visitor)] == [
        {"city": "Bonn"}
    ] * 2
