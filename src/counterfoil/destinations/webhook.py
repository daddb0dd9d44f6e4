"""An HTTP receiver, by Standard Webhooks (standardwebhooks.com): rows are posted as signed JSON, at least once.

A request's body, with one entry of `rows` a row (the fields that a row lacks are left out):

    {"type": "rows", "ledger": "<uuid>", "destination": "<name>",
     "rows": [{"id": "<ledger>:<seq>", "seq": 65536, "source": "website", "receivedAt": 1500000000000,
               "event": "Purchase", "distinctId": "…", "userId": "…", "externalId": "…", "email": "…",
               "time": 1500000000000, "eventProperties": {…}, "userProperties": {…}, "defaultProperties": {…},
               "identityContext": {…}, "extra": {…}}]}

Headers: `webhook-id`, `webhook-timestamp`, `webhook-signature` (`v1,` and the base64 HMAC-SHA256 of id, timestamp and
body with dots between). A row's `id` never changes, so a receiver that remembers it makes "at least once" into once;
`webhook-id` names the request by its rows, and is the same when the same rows are sent again.

    answer                              what it means
    2xx                                 taken
    400, 409, 413, 422                  a row in it is refused: found by halving, a dead letter `http_<status>`
    408, 425, 429, 5xx, no answer       try again, after `Retry-After` where it says so; the first try has one row
    anything else                       somebody must act: a wrong address, a secret that is not accepted
"""

from __future__ import annotations

import base64
import binascii
import hashlib
import hmac
from collections.abc import Callable, Iterator, Sequence
from email.utils import parsedate_to_datetime
from uuid import UUID

import httpx
import msgspec

from counterfoil.destinations.halving import take_by_halves
from counterfoil.destinations.interface import DeliveredRow, Delivery, HeldRows, Receipt, RefusedRow
from counterfoil.destinations.settings import WebhookSettings
from counterfoil.errors import DestinationDown, DestinationRefused, SettingsInvalid
from counterfoil.failpoints import reach

_ROW_STATUSES = frozenset({400, 409, 413, 422})
_DOWN_STATUSES = frozenset({408, 425, 429})
_SECRET_PREFIX = "whsec_"  # noqa: S105
_RETRY_AFTER_S_MAX = 3600.0


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


class WebhookDestination:
    """A `Destination` that posts rows to an HTTP receiver; see the module's docstring for what it sends."""

    keeps_cursor = False

    def __init__(self, settings: WebhookSettings, ledger_id: UUID, clock_ms: Callable[[], int]) -> None:
        """Raises SettingsInvalid when the secret is not one."""
        self.name = settings.name
        self._settings = settings
        self._ledger_id = ledger_id
        self._clock_ms = clock_ms
        self._key = _key_of(settings)
        self._client: httpx.Client | None = None
        self._encoder = msgspec.json.Encoder()
        self._is_probing = False
        self._progress = _Progress(0)

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
        while progress.row_count < len(delivery.rows):
            row_count = 1 if self._is_probing else self._settings.request_rows
            rows = delivery.rows[progress.row_count : progress.row_count + row_count]
            progress.dead += take_by_halves(rows, self._take)
            progress.row_count += len(rows)
            reach("webhook.after_request")
        dead = tuple(progress.dead)
        self._progress = _Progress(0)
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
            return [f"{self._settings.name}: {error}"]
        finally:
            self.close()
        return []

    def counts(self) -> dict[str, int] | None:
        """Nothing: a receiver can't be asked."""
        return None

    def held(self, first_seq: int = 0, last_seq: int | None = None) -> Iterator[HeldRows] | None:
        """Nothing: a receiver can't be asked."""
        return None

    def _take(self, rows: Sequence[DeliveredRow]) -> str | None:
        client = self._client
        assert client is not None, "deliver before open"
        body = self._encoder.encode(
            Posting("rows", str(self._ledger_id), self.name, [_posted(row, self._ledger_id) for row in rows])
        )
        try:
            answer = client.post(self._settings.url, content=body, headers=self._headers(rows, body))
        except httpx.TransportError as error:
            self._is_probing = True
            raise DestinationDown(f"http_{_kind_of(error)}") from None
        return self._judge(answer)

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

    def _headers(self, rows: Sequence[DeliveredRow], body: bytes) -> dict[str, str]:
        message_id = _message_id(self._ledger_id, rows)
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
        if not text:
            return None
        try:
            seconds = float(text)
        except ValueError:
            try:
                seconds = parsedate_to_datetime(text).timestamp() - self._clock_ms() / 1000
            except ValueError:
                return None
        return min(max(seconds, 0.0), _RETRY_AFTER_S_MAX)


class _Progress:
    """How far a delivery that begins with `first_group` has come."""

    def __init__(self, first_group: int) -> None:
        self.first_group = first_group
        self.row_count = 0
        self.dead: list[RefusedRow] = []


def _posted(row: DeliveredRow, ledger_id: UUID) -> PostedRow:
    return PostedRow(
        id=f"{ledger_id}:{row.seq}",
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


def _key_of(settings: WebhookSettings) -> bytes:
    text = settings.secret.removeprefix(_SECRET_PREFIX)
    try:
        key = base64.b64decode(text, validate=True)
    except binascii.Error:
        key = b""
    if not key:
        raise SettingsInvalid(f"destinations.{settings.name}.secret: expected whsec_ and the key in base64")
    return key


def _kind_of(error: httpx.TransportError) -> str:
    if isinstance(error, httpx.TimeoutException):
        return "timeout"
    return "unreachable" if isinstance(error, httpx.ConnectError) else "connection_lost"
