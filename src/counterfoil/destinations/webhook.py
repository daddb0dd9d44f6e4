"""An HTTP receiver, by Standard Webhooks (standardwebhooks.com): rows are posted as signed JSON, at least once.

A request's body, with one entry of `rows` a row (the fields that a row lacks are left out):

    {"type": "rows", "ledger": "<uuid>", "destination": "<name>",
     "rows": [{"id": "<ledger>:<seq>", "seq": 65536, "source": "website", "receivedAt": 1500000000000,
               "event": "Purchase", "distinctId": "…", "userId": "…", "externalId": "…", "email": "…",
               "time": 1500000000000, "eventProperties": {…}, "userProperties": {…}, "defaultProperties": {…},
               "identityContext": {…}, "extra": {…}}]}

A person whose rows are to be erased is told in a request of its own, with the one of `distinctId` and `userId` that is
meant, and `source` null where the rows of every source are:

    {"type": "erasure", "ledger": "<uuid>", "destination": "<name>", "source": "website", "distinctId": "…"}

Headers: `webhook-id`, `webhook-timestamp`, `webhook-signature` (`v1,` and the base64 HMAC-SHA256 of id, timestamp and
body with dots between). A row's `id` never changes, not when it is sent again under another `seq`, so a receiver that
remembers it makes "at least once" into once; `webhook-id` names the request by its rows, and is the same when the same
rows are sent again after a failure.

    answer                              what it means
    2xx                                 taken
    400, 409, 413, 422                  a row in it is refused: found by halving, a dead letter `http_<status>`
    408, 425, 429, 5xx, no answer       try again, after `Retry-After` where it says so; the first try has one row
    anything else                       somebody must act: a wrong address, a secret that is not accepted

An erasure is done when it is answered with 2xx; one that is refused is told again until it is.
"""

from __future__ import annotations

import base64
import contextlib
import hashlib
import hmac
import re
import ssl
import time
from bisect import bisect_right
from collections.abc import Callable, Iterator, Sequence
from datetime import UTC
from email.utils import parsedate_to_datetime
from operator import attrgetter
from uuid import UUID

import httpx
import msgspec

from counterfoil.contract.subject import Subject
from counterfoil.destinations.halving import take_by_halves
from counterfoil.destinations.interface import DeliveredRow, Delivery, HeldRows, Receipt, RefusedRow
from counterfoil.destinations.settings import WebhookSettings
from counterfoil.errors import DestinationDown, DestinationError, DestinationRefused
from counterfoil.failpoints import reach

_ROW_STATUSES = frozenset({400, 409, 413, 422})
_DOWN_STATUSES = frozenset({408, 425, 429})
_SECRET_PREFIX = "whsec_"  # noqa: S105
_RETRY_AFTER_S_MAX = 3600.0
_ANSWER_BYTES_MAX = 64 * 1024
"""Of an answer's body that is read; a longer one costs its connection."""


class PostedRow(msgspec.Struct, frozen=True, rename="camel", omit_defaults=True, gc=False):
    """A row as the receiver gets it."""

    id: str
    seq: int
    source: str
    received_at: int
    event: str
    distinct_id: str
    time: int
    default_properties: msgspec.Raw
    user_id: str | None = None
    external_id: str | None = None
    email: str | None = None
    event_properties: msgspec.Raw | None = None
    user_properties: msgspec.Raw | None = None
    identity_context: msgspec.Raw | None = None
    extra: msgspec.Raw | None = None


class Posting(msgspec.Struct, frozen=True):
    """A request's body."""

    type: str
    ledger: str
    destination: str
    rows: list[PostedRow]


class Erasure(msgspec.Struct, frozen=True, rename="camel"):
    """The body of a request that tells whose rows are to be erased."""

    type: str
    ledger: str
    destination: str
    source: str | None
    distinct_id: str | msgspec.UnsetType = msgspec.UNSET
    user_id: str | msgspec.UnsetType = msgspec.UNSET


class WebhookDestination:
    """A `Destination` that posts rows to an HTTP receiver; see the module's docstring for what it sends."""

    keeps_cursor = False

    def __init__(self, settings: WebhookSettings, ledger_id: UUID, clock_ms: Callable[[], int]) -> None:
        self.name = settings.name
        self._settings = settings
        self._ledger_id = ledger_id
        self._clock_ms = clock_ms
        self._key = base64.b64decode(settings.secret.removeprefix(_SECRET_PREFIX))
        self._client: httpx.Client | None = None
        self._encoder = msgspec.json.Encoder()
        self._is_probing = False
        self._progress = _Progress(0)
        self._telling: tuple[Subject, str] | None = None

    def open(self) -> Receipt | None:
        """See `Destination.open`: nothing is sent, and nothing is known of what the receiver holds."""
        self.close()
        self._client = httpx.Client(
            timeout=self._settings.timeout_seconds, follow_redirects=False, headers={"user-agent": "counterfoil"}
        )
        return None

    def deliver(self, delivery: Delivery) -> Receipt:
        """See `Destination.deliver`: in requests of `request_rows`; after a failure the first one has one row.

        What the receiver has taken of a delivery that failed later on is not sent again by this process.
        """
        if self._progress.first_group != delivery.first_group:
            self._progress = _Progress(delivery.first_group)
        progress = self._progress
        done = bisect_right(delivery.rows, progress.last_seq, key=attrgetter("seq"))
        has_progressed = False
        while done < len(delivery.rows):
            is_probe = self._is_probing
            rows = delivery.rows[done : done + (1 if is_probe else self._settings.request_rows)]
            done += len(rows)
            try:
                for part, refused in take_by_halves(rows, self._take):
                    progress.add(part, refused)
                    has_progressed |= not is_probe
            except DestinationDown as down:
                down.has_progressed = has_progressed
                raise
            reach("webhook.after_request")
        dead, self._progress = progress.split(delivery)
        return Receipt(delivery.first_group, delivery.last_group, len(delivery.rows) - len(dead), "", dead)

    def tend(self) -> bool:
        """Nothing to do."""
        return False

    def close(self) -> None:
        """Close the connections."""
        client, self._client = self._client, None
        if client is not None:
            client.close()

    def check(self) -> list[str]:
        """Whether the receiver answers at all: it is posted no rows, and any answer but a refusal is good."""
        self.open()
        try:
            self._take([])
        except (DestinationDown, DestinationRefused) as error:
            return [str(error)]
        finally:
            self.close()
        return []

    def counts(self) -> dict[str, int] | None:
        """Nothing: a receiver can't be asked."""
        return None

    def held(self, first_seq: int = 0, last_seq: int | None = None) -> Iterator[HeldRows] | None:
        """Nothing: a receiver can't be asked."""
        return None

    def seqs_of(self, subject: Subject) -> Sequence[int] | None:
        """Nothing: a receiver can't be asked."""
        return None

    def erase(self, subject: Subject) -> int | None:
        """See `Destination.erase`: the receiver is told, and has taken it when it answers 2xx."""
        if self._telling is None or self._telling[0] != subject:
            self._telling = (subject, self._erasure_id(subject))
        reason = self._post(self._encoder.encode(self._erasure(subject)), self._telling[1])
        if reason is not None:
            raise DestinationRefused(
                f"{reason}: the receiver does not take the message of an erasure: see it, and the page on destinations"
            )
        self._telling = None
        reach("webhook.erasure_told")
        return None

    def _take(self, rows: Sequence[DeliveredRow]) -> str | None:
        body = self._encoder.encode(
            Posting("rows", str(self._ledger_id), self.name, [posted_row(row, self._ledger_id) for row in rows])
        )
        return self._post(body, _message_id(self._ledger_id, rows))

    def _post(self, body: bytes, message_id: str) -> str | None:
        """Have a message taken; the reason when it is refused for what it holds."""
        client = self._client
        assert client is not None, "open comes first"
        headers = self._headers(message_id, body)
        try:
            with client.stream("POST", self._settings.url, content=body, headers=headers) as answer:
                self._pass_over_body(answer)
        except (httpx.InvalidURL, httpx.UnsupportedProtocol, UnicodeError):
            raise DestinationRefused(
                "the url of this destination is none: expected one like https://example.org/events"
            ) from None
        except httpx.TransportError as error:
            self._is_probing = True
            raise _told(error) from None
        return self._judge(answer)

    def _pass_over_body(self, answer: httpx.Response) -> None:
        """Read the body of an answer away, so that the connection can be used again.

        Its status has said all: a body that is long, slow, cut off or not what its encoding says changes nothing.
        """
        left, deadline = _ANSWER_BYTES_MAX, time.monotonic() + self._settings.timeout_seconds
        with contextlib.suppress(httpx.TransportError):
            for piece in answer.iter_raw():
                left -= len(piece)
                if left < 0 or time.monotonic() > deadline:
                    return

    def _erasure(self, subject: Subject) -> Erasure:
        return Erasure(
            "erasure",
            str(self._ledger_id),
            self.name,
            subject.source,
            msgspec.UNSET if subject.distinct_id is None else subject.distinct_id,
            msgspec.UNSET if subject.user_id is None else subject.user_id,
        )

    def _erasure_id(self, subject: Subject) -> str:
        """Another one each time a subject is erased, because rows may have come since; says nothing of whose."""
        told = self._encoder.encode((self._clock_ms(), self._erasure(subject)))
        return f"msg_{hmac.digest(self._key, told, 'sha256').hex()[:32]}"

    def _judge(self, answer: httpx.Response) -> str | None:
        status = answer.status_code
        self._is_probing = not (answer.is_success or status in _ROW_STATUSES)
        if answer.is_success:
            return None
        if status in _ROW_STATUSES:
            return f"http_{status}"
        if status in _DOWN_STATUSES or answer.is_server_error:
            raise DestinationDown(f"http_{status}", self._retry_after_s(answer))
        raise DestinationRefused(f"http_{status}: see the url and the secret of this destination, and the receiver")

    def _headers(self, message_id: str, body: bytes) -> dict[str, str]:
        timestamp = str(self._clock_ms() // 1000)
        signed = b".".join((message_id.encode(), timestamp.encode(), body))
        signature = base64.b64encode(hmac.digest(self._key, signed, "sha256")).decode()
        return {
            "content-type": "application/json",
            "webhook-id": message_id,
            "webhook-timestamp": timestamp,
            "webhook-signature": f"v1,{signature}",
        }

    def _retry_after_s(self, answer: httpx.Response) -> float | None:
        """Seconds, from a header that holds seconds or a date (RFC 9110 section 10.2.3)."""
        text = answer.headers.get("retry-after", "").strip()
        try:
            if re.fullmatch(r"[0-9]+(\.[0-9]+)?", text):
                seconds = float(text)
            else:
                at = parsedate_to_datetime(text)
                # The form without a zone (asctime's) is of UTC, too.
                seconds = (at if at.tzinfo else at.replace(tzinfo=UTC)).timestamp() - self._clock_ms() / 1000
        except (ValueError, OverflowError):
            return None
        return min(max(seconds, 0.0), _RETRY_AFTER_S_MAX)


class _Progress:
    """How far rows were handed over, from the first of `first_group` on, and which were refused.

    The same groups may come again in smaller deliveries, where what is beyond one of them counts for the next; and
    without rows that were erased meanwhile, which is why no row is counted here.
    """

    def __init__(self, first_group: int, last_seq: int = -1, refused: tuple[RefusedRow, ...] = ()) -> None:
        self.first_group = first_group
        self.last_seq = last_seq
        """Every row up to this seq was taken or refused."""
        self._refused = refused

    def add(self, rows: Sequence[DeliveredRow], refused: RefusedRow | None) -> None:
        """The next rows were handed over: taken, or one that was refused."""
        self.last_seq = rows[-1].seq
        if refused is not None:
            self._refused += (refused,)

    def split(self, delivery: Delivery) -> tuple[tuple[RefusedRow, ...], _Progress]:
        """What was refused of a delivery that is handed over whole, and the progress of what comes after it."""
        seqs = {row.seq for row in delivery.rows}
        end = max(seqs, default=-1)
        later = tuple(row for row in self._refused if row.seq > end)
        dead = tuple(row for row in self._refused if row.seq in seqs)
        return dead, _Progress(delivery.last_group + 1, self.last_seq, later)


def posted_row(row: DeliveredRow, ledger_id: UUID) -> PostedRow:
    """A row as it is posted."""
    return PostedRow(
        id=f"{ledger_id}:{row.seq if row.first_seq is None else row.first_seq}",
        seq=row.seq,
        source=row.source,
        received_at=row.received_at_ms,
        event=row.event,
        distinct_id=row.distinct_id,
        time=row.time_ms,
        default_properties=msgspec.Raw(row.default_properties.encode()),
        user_id=row.user_id,
        external_id=row.external_id,
        email=row.email,
        event_properties=_raw(row.event_properties),
        user_properties=_raw(row.user_properties),
        identity_context=_raw(row.identity_context),
        extra=_raw(row.extra),
    )


def _raw(text: str | None) -> msgspec.Raw | None:
    return None if text is None else msgspec.Raw(text.encode())


def _message_id(ledger_id: UUID, rows: Sequence[DeliveredRow]) -> str:
    """The same for the same rows; says nothing of what is in them."""
    digest = hashlib.sha256(ledger_id.bytes)
    for row in rows:
        digest.update(row.seq.to_bytes(8, "big"))
    return f"msg_{digest.hexdigest()[:32]}"


def _told(error: httpx.TransportError) -> DestinationError:
    """Why there was no answer, in our own words."""
    problem = _tls_problem(error)
    if isinstance(problem, ssl.SSLCertVerificationError):
        return DestinationRefused(
            "http_certificate: the receiver's certificate is not trusted here: renew it, or let SSL_CERT_FILE name the "
            "certificate of its authority"
        )
    if problem is not None and problem.reason == "WRONG_VERSION_NUMBER":
        return DestinationRefused("http_tls: the receiver does not speak HTTPS there: see the url of this destination")
    if isinstance(error, httpx.TimeoutException):
        return DestinationDown("http_timeout: no answer in `timeout_seconds`: see the receiver")
    if isinstance(error, httpx.ConnectError):
        return DestinationDown("http_unreachable: nobody answers there: see the url of this destination")
    return DestinationDown("http_connection_lost: the connection ended before the answer: see the receiver")


def _tls_problem(error: BaseException | None) -> ssl.SSLError | None:
    while error is not None and not isinstance(error, ssl.SSLError):
        error = error.__cause__ or error.__context__
    return error
