"""The webhook destination, against a real HTTP receiver."""

from __future__ import annotations

import base64
import hashlib
import hmac
import json
import re
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from uuid import UUID

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError

from counterfoil.contract.subject import Subject
from counterfoil.destinations.halving import refused_by_halves
from counterfoil.destinations.interface import Delivery, Receipt, RefusedRow
from counterfoil.destinations.settings import WebhookSettings
from counterfoil.destinations.webhook import WebhookDestination
from counterfoil.errors import DestinationDown, DestinationRefused
from docs._tools.pages import ROOT
from tests.certificate import make_certificate
from tests.destinations.conformance import AnyDestination, Make
from tests.destinations.rows import delivery, row
from tests.http_receiver import Received, Receiver, Reply, http_receiver

LEDGER = UUID(int=7)
KEY = b"a key of 24 bytes at least"
SECRET = f"whsec_{base64.b64encode(KEY).decode()}"
NOW_MS = 1_767_225_600_123


@pytest.fixture
def receiver() -> Iterator[Receiver]:
    """A receiver that takes everything until told otherwise."""
    with http_receiver() as running:
        yield running


@pytest.fixture
def hook(receiver: Receiver) -> Iterator[WebhookDestination]:
    """A destination that posts ten rows a request to the receiver."""
    target = destination(f"{receiver.url}/rows", request_rows=10)
    target.open()
    yield target
    target.close()


class TestConformance(AnyDestination):
    """The suite of the interface."""

    @pytest.fixture
    def make(self, receiver: Receiver) -> Make:
        return lambda: destination(receiver.url)


def destination(url: str, **settings: Any) -> WebhookDestination:
    """A destination named crm, not yet open."""
    return WebhookDestination(
        WebhookSettings(name="crm", url=url, **{"secret": SECRET, **settings}), LEDGER, lambda: NOW_MS
    )


def sizes(receiver: Receiver) -> list[int]:
    """Rows of each request that came in."""
    return [len(request.rows) for request in receiver.received]


def test_a_row_arrives_with_every_value_and_its_own_key(receiver: Receiver, hook: WebhookDestination) -> None:
    """What is posted is what was sent, JSON as it was, with an id a receiver can remember."""
    receipt = hook.deliver(Delivery(1, 1, [row(65_536)]))
    assert (receipt.row_count, receipt.dead) == (1, ())
    assert json.loads(receiver.received[0].body) == {
        "type": "rows",
        "ledger": str(LEDGER),
        "destination": "crm",
        "rows": [
            {
                "id": f"{LEDGER}:65536",
                "seq": 65_536,
                "source": "website",
                "receivedAt": 1_767_225_600_536,
                "event": "Purchase",
                "distinctId": "order-65536",
                "userId": "u-1",
                "email": "ann@example.com",
                "time": 1_767_225_599_123,
                "defaultProperties": {"received_at": "2026-01-01T00:00:00.000Z"},
                "eventProperties": {"sum": 12.5, "nul": "a\0b", "big": 123456789012345678901234567890},
                "extra": {"colour": "red"},
            }
        ],
    }


def test_a_request_is_signed_by_standard_webhooks(receiver: Receiver, hook: WebhookDestination) -> None:
    """The signature is the HMAC-SHA256 of id, timestamp and body, as the receiver computes it from the secret."""
    hook.deliver(delivery(1))
    (request,) = receiver.received
    signed = b".".join(
        (request.headers["webhook-id"].encode(), request.headers["webhook-timestamp"].encode(), request.body)
    )
    expected = base64.b64encode(hmac.new(KEY, signed, hashlib.sha256).digest()).decode()
    assert request.headers["webhook-signature"] == f"v1,{expected}"
    assert request.headers["webhook-timestamp"] == str(NOW_MS // 1000)


def test_the_check_in_the_docs_works_as_it_stands(receiver: Receiver) -> None:
    """The lines that a receiver is given to paste take a request that is signed, and none that was changed."""
    (code,) = re.findall(r"^```python\n(.*?)^```", (ROOT / "docs" / "destinations.md").read_text(), re.M | re.S)
    pasted: dict[str, Any] = {}
    exec(code, pasted)
    target = WebhookDestination(WebhookSettings(name="crm", url=receiver.url, secret=SECRET), LEDGER, _now_ms)
    target.open()
    target.deliver(delivery(1))
    target.close()
    (request,) = receiver.received
    assert pasted["is_genuine"](SECRET, request.headers, request.body)
    assert not pasted["is_genuine"](SECRET, request.headers, request.body + b" ")
    assert not pasted["is_genuine"](f"whsec_{base64.b64encode(b'another').decode()}", request.headers, request.body)
    late = {**request.headers, "webhook-timestamp": str(int(request.headers["webhook-timestamp"]) - 301)}
    assert not pasted["is_genuine"](SECRET, late, request.body)


def _now_ms() -> int:
    return time.time_ns() // 1_000_000


def test_rows_go_in_requests_of_the_set_size(receiver: Receiver, hook: WebhookDestination) -> None:
    """25 rows at ten a request are three requests, in order."""
    hook.deliver(delivery(1, 25))
    assert sizes(receiver) == [10, 10, 5]
    assert receiver.taken == list(range(65_536, 65_561))


def test_a_refused_row_is_found_by_halving(receiver: Receiver, hook: WebhookDestination) -> None:
    """One row in ten is refused: it alone is dead, found in about log2 of the requests, and nothing is sent twice."""
    receiver.answer = lambda request: Reply(422 if any(r["seq"] == 65_539 for r in request.rows) else 204)
    receipt = hook.deliver(delivery(1, 10))
    assert receipt.dead == (RefusedRow(65_539, "http_422"),)
    assert receipt.row_count == 9
    assert sorted(receiver.taken) == [seq for seq in range(65_536, 65_546) if seq != 65_539]
    assert len(receiver.received) <= 9


@pytest.mark.parametrize("reply", [Reply(503), Reply(429), Reply(408), Reply(cut=True)])
def test_a_failure_in_the_middle_goes_on_with_one_row(
    receiver: Receiver, hook: WebhookDestination, reply: Reply
) -> None:
    """After a failure the first request has one row, and what was taken before is not sent again."""
    receiver.answer = lambda _: reply if len(receiver.received) == 2 else Reply()
    with pytest.raises(DestinationDown):
        hook.deliver(delivery(1, 25))
    hook.close()
    hook.open()
    hook.deliver(delivery(1, 25))
    assert sizes(receiver) == [10, 10, 1, 10, 4]


def test_what_was_taken_counts_for_smaller_deliveries_too(receiver: Receiver, hook: WebhookDestination) -> None:
    """After a failure the same groups come in smaller deliveries: no row is sent twice, and the dead stay dead."""
    refused = 65_536 + 12

    def answer(request: Received) -> Reply:
        if any(each["seq"] == refused for each in request.rows):
            return Reply(422)
        return Reply(503) if any(each["seq"] == 2 * 65_536 + 9 for each in request.rows) and not healed else Reply()

    healed: list[bool] = []
    receiver.answer = answer
    one, two = delivery(1, 15).rows, delivery(2, 10).rows
    with pytest.raises(DestinationDown):
        hook.deliver(Delivery(1, 2, [*one, *two]))
    healed.append(True)
    before = len(receiver.received)
    assert hook.deliver(Delivery(1, 1, one)) == Receipt(1, 1, 14, "", (RefusedRow(refused, "http_422"),))
    assert len(receiver.received) == before
    assert hook.deliver(Delivery(2, 2, two)) == Receipt(2, 2, 10, "")
    assert sorted(receiver.taken) == [each.seq for each in [*one, *two] if each.seq != refused]


def test_the_same_rows_have_the_same_message_id(receiver: Receiver, hook: WebhookDestination) -> None:
    """A request that is sent again is recognised by its id; another one has another."""
    receiver.answer = lambda _: Reply(500 if len(receiver.received) == 1 else 204)
    with pytest.raises(DestinationDown):
        hook.deliver(delivery(1, 1))
    hook.deliver(delivery(1, 1))
    hook.deliver(delivery(2, 1))
    first, again, other = (request.headers["webhook-id"] for request in receiver.received)
    assert first == again != other


def test_a_receiver_that_fails_now_and_then_says_that_it_took_something(
    receiver: Receiver, hook: WebhookDestination
) -> None:
    """Whoever waits before the next try knows whether whole requests were taken since the last one."""
    receiver.answer = lambda request: Reply(503 if len(receiver.received) in (1, 3, 6) else 204)
    has_progressed = []
    for _ in range(3):
        with pytest.raises(DestinationDown) as caught:
            hook.deliver(delivery(1, 50))
        has_progressed.append(caught.value.has_progressed)
    hook.deliver(delivery(1, 50))
    # The single row of a probe is not enough: a receiver may take that and never a full request.
    assert sizes(receiver) == [10, 1, 10, 1, 10, 10, 1, 10, 10, 10, 7]
    assert has_progressed == [False, False, True]


def test_a_refused_row_is_found_by_a_receiver_that_fails_now_and_then(
    receiver: Receiver, hook: WebhookDestination
) -> None:
    """What was taken while a row was looked for is not sent again after a failure in the middle of it."""

    def answer(request: Received) -> Reply:
        if len(receiver.received) == 4:
            return Reply(503)
        return Reply(422 if any(each["seq"] == 65_536 + 8 for each in request.rows) else 204)

    receiver.answer = answer
    with pytest.raises(DestinationDown):
        hook.deliver(delivery(1, 10))
    assert hook.deliver(delivery(1, 10)).dead == (RefusedRow(65_536 + 8, "http_422"),)
    assert receiver.taken == [seq for seq in range(65_536, 65_546) if seq != 65_536 + 8]


@pytest.mark.parametrize(
    "reply",
    [
        Reply(200, {"content-encoding": "gzip"}, b"not gzip"),
        Reply(200, {"content-length": "1000", "connection": "close"}, b"cut off"),
        Reply(200, {}, bytes(8 * 1024 * 1024)),
    ],
    ids=["not what its encoding says", "cut off", "8 MiB"],
)
def test_the_body_of_an_answer_changes_nothing(receiver: Receiver, hook: WebhookDestination, reply: Reply) -> None:
    """The status alone says whether rows were taken, whatever comes after it."""
    receiver.answer = lambda _: reply
    assert hook.deliver(delivery(1, 25)).row_count == 25
    assert sizes(receiver) == [10, 10, 5]


@pytest.mark.parametrize("url", ["http://host:port/", "http://[::1", "http://a..b/", "http://?events"])
def test_a_url_that_is_none_is_told(url: str) -> None:
    """What can't be read as an address is told with what was expected, by `check` and when it delivers."""
    target = destination(url)
    assert "the url of this destination is none: expected one like https://" in target.check()[0]
    target.open()
    with pytest.raises(DestinationRefused, match="the url of this destination is none"):
        target.deliver(delivery(1))
    target.close()


SUBJECT = Subject(distinct_id="order-65537", source="website")


@pytest.mark.parametrize(
    ("subject", "named"),
    [
        (SUBJECT, {"source": "website", "distinctId": "order-65537"}),
        (Subject(user_id="ü\0"), {"source": None, "userId": "ü\0"}),
    ],
)
def test_a_receiver_is_told_whose_rows_are_to_be_erased(
    receiver: Receiver, hook: WebhookDestination, subject: Subject, named: dict[str, str | None]
) -> None:
    """One message, signed like the others, with the id that is meant and the source, null for every one."""
    assert hook.seqs_of(subject) is None
    assert hook.erase(subject) is None
    (request,) = receiver.received
    assert json.loads(request.body) == {"type": "erasure", "ledger": str(LEDGER), "destination": "crm", **named}
    signed = b".".join(
        (request.headers["webhook-id"].encode(), request.headers["webhook-timestamp"].encode(), request.body)
    )
    expected = base64.b64encode(hmac.new(KEY, signed, hashlib.sha256).digest()).decode()
    assert request.headers["webhook-signature"] == f"v1,{expected}"


def test_an_erasure_is_told_again_until_it_is_taken(receiver: Receiver, hook: WebhookDestination) -> None:
    """Down by no answer or 5xx, refused by any other, it comes again under the same id; a later one has another."""
    replies = iter([Reply(503, {"retry-after": "7"}), Reply(cut=True), Reply(422), Reply(404)])
    receiver.answer = lambda _: next(replies, Reply())
    with pytest.raises(DestinationDown) as caught:
        hook.erase(SUBJECT)
    assert caught.value.retry_after_s == 7
    with pytest.raises(DestinationDown):
        hook.erase(SUBJECT)
    for status in (422, 404):
        hook.close()
        hook.open()
        with pytest.raises(DestinationRefused, match=f"^http_{status}: "):
            hook.erase(SUBJECT)
    hook.erase(SUBJECT)
    hook.erase(Subject(distinct_id="another"))
    ids = [request.headers["webhook-id"] for request in receiver.received]
    assert len(set(ids[:5])) == 1
    assert ids[5] != ids[4]


def test_rows_erased_after_a_failure_are_missed_by_nobody(receiver: Receiver, hook: WebhookDestination) -> None:
    """What was taken before a failure is not sent again, and no row is left out, when some of them come no more."""
    refused = 65_536 + 3

    def answer(request: Received) -> Reply:
        if any(each["seq"] == refused for each in request.rows):
            return Reply(422)
        return Reply(503) if any(each["seq"] == 65_536 + 12 for each in request.rows) and not healed else Reply()

    healed: list[bool] = []
    receiver.answer = answer
    rows = delivery(1, 20).rows
    with pytest.raises(DestinationDown):
        hook.deliver(Delivery(1, 1, rows))
    healed.append(True)
    # Of those that were taken, that was refused, and that were still to come.
    erased = {65_536 + 1, refused, 65_536 + 15}
    rest = [each for each in rows if each.seq not in erased]
    assert hook.deliver(Delivery(1, 1, rest)) == Receipt(1, 1, 17, "")
    assert sorted(receiver.taken) == [each.seq for each in rows if each.seq not in {refused, 65_536 + 15}]


@pytest.mark.parametrize(
    ("text", "seconds"),
    [
        ("7", 7.0),
        ("Thu, 01 Jan 2026 00:00:30 GMT", 29.877),
        ("Thu Jan  1 00:00:30 2026", 29.877),
        ("Thu, 01 Jan 2026 00:00:00 GMT", 0.0),
        ("99999", 3600.0),
        ("9" * 400, 3600.0),
        ("soon", None),
        ("nan", None),
        ("-1", None),
        ("Thu, 01 Jan 99999999999999999999 00:00:30 GMT", None),
    ],
)
def test_retry_after_is_handed_on(
    receiver: Receiver, hook: WebhookDestination, text: str, seconds: float | None
) -> None:
    """Seconds or a date, at most an hour; what can't be read is as if it were not there."""
    receiver.answer = lambda _: Reply(429, {"retry-after": text})
    with pytest.raises(DestinationDown) as caught:
        hook.deliver(delivery(1))
    assert caught.value.retry_after_s == (None if seconds is None else pytest.approx(seconds))


@pytest.mark.parametrize("status", [301, 401, 403, 404])
def test_what_somebody_must_mend_is_told(receiver: Receiver, hook: WebhookDestination, status: int) -> None:
    """A wrong address or secret stops this destination with the status and what to look at."""
    receiver.answer = lambda _: Reply(status)
    with pytest.raises(DestinationRefused, match=f"http_{status}.*secret"):
        hook.deliver(delivery(1))
    assert hook.check()[0].startswith("http_")


def test_check_is_content_with_a_receiver_that_answers(receiver: Receiver) -> None:
    """A check posts no rows; a receiver that refuses an empty post answers all the same."""
    receiver.answer = lambda _: Reply(400)
    assert destination(receiver.url).check() == []
    assert sizes(receiver) == [0]


def test_nobody_there_is_down() -> None:
    """A port nobody listens at is a reason to try again, and `check` says where to look."""
    target = destination("http://127.0.0.1:1/")
    target.open()
    with pytest.raises(DestinationDown, match=r"^http_unreachable: .*url of this destination"):
        target.deliver(delivery(1))
    target.close()
    assert target.check()[0].startswith("http_unreachable")


def test_a_receiver_that_is_too_slow_is_down(receiver: Receiver) -> None:
    """No answer in time is a reason to try again; whether the rows were taken is not known."""
    released = threading.Event()

    def hang(_: Received) -> Reply:
        released.wait(30)
        return Reply()

    receiver.answer = hang
    target = destination(receiver.url, timeout_seconds=0.2)
    target.open()
    try:
        with pytest.raises(DestinationDown, match="http_timeout"):
            target.deliver(delivery(1))
    finally:
        released.set()
        target.close()


def test_a_certificate_that_is_not_trusted_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """HTTPS by a certificate of nobody's needs somebody to act; SSL_CERT_FILE with its authority's makes it good."""
    certificate, key = make_certificate(tmp_path)
    with http_receiver(certificate, key) as secured:
        with pytest.raises(DestinationRefused, match=r"http_certificate: .*SSL_CERT_FILE"):
            _post_one(secured.url)
        monkeypatch.setenv("SSL_CERT_FILE", str(certificate))
        _post_one(secured.url)
        assert sizes(secured) == [1]


def test_https_where_none_is_spoken_is_told(receiver: Receiver) -> None:
    """An https url of a plain receiver is a wrong url, not an outage."""
    with pytest.raises(DestinationRefused, match=r"http_tls: .*url"):
        _post_one(receiver.url.replace("http:", "https:"))


def _post_one(url: str) -> None:
    target = destination(url)
    target.open()
    try:
        target.deliver(delivery(1, 1))
    finally:
        target.close()


@pytest.mark.parametrize("secret", ["whsec_not base64!", "whsec_", "", "whsec_YQ", "whsec_YWJj="])
def test_a_secret_that_is_none_is_refused(secret: str) -> None:
    """A typing error in the secret is found when the configuration is read."""
    with pytest.raises(ValidationError, match="secret"):
        WebhookSettings(name="crm", url="http://127.0.0.1:1/", secret=secret)


@given(st.integers(0, 200), st.sets(st.integers(0, 199)))
def test_halving_finds_exactly_the_refused_rows(row_count: int, refused: set[int]) -> None:
    """Every other row is taken once, in order, and one refused row in n costs about 2 log2 n more tries."""
    rows = [row(seq) for seq in range(row_count)]
    taken: list[int] = []
    tries = 0

    def take(part: Any) -> str | None:
        nonlocal tries
        tries += 1
        if any(r.seq in refused for r in part):
            return "no"
        taken.extend(r.seq for r in part)
        return None

    dead = refused_by_halves(rows, take)
    here = sorted(refused & set(range(row_count)))
    assert dead == [RefusedRow(seq, "no") for seq in here]
    assert taken == [seq for seq in range(row_count) if seq not in refused]
    assert tries <= 1 + 2 * len(here) * max(row_count, 1).bit_length()
