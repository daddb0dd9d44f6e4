"""From canonical rows to what destinations get: the one place where the server's own facts are put in.

A canonical row holds the sender's content alone (design, section 2). Here it gets its `seq`, its source, and what the
contract says the server sets: `received_at`, the `version` from the request's headers, and a `time` where the sender
named none (contract.md section 4). Only the fields that become columns are decoded; free-form objects stay the JSON
text they are, byte for byte.
"""

from __future__ import annotations

from collections.abc import Sequence
from datetime import UTC, datetime, timedelta

import msgspec

from counterfoil.contract.facts import RowFlag
from counterfoil.destinations.interface import DeliveredRow, RefusedRow
from counterfoil.queue.frame import Frame

UNREADABLE = "row_unreadable"
"""Why a row is dead that the contract made and nothing can read: our own fault."""

_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
_ABSENT = msgspec.Raw()


class CanonicalRow(msgspec.Struct, frozen=True, gc=False):
    """A row as it stands in a frame; what is absent in it is None here, or empty."""

    event: str
    distinctId: str  # noqa: N815
    userId: str | None = None  # noqa: N815
    externalId: str | None = None  # noqa: N815
    email: str | None = None
    time: int | None = None
    eventProperties: msgspec.Raw = _ABSENT  # noqa: N815
    userProperties: msgspec.Raw = _ABSENT  # noqa: N815
    defaultProperties: msgspec.Raw = _ABSENT  # noqa: N815
    identityContext: msgspec.Raw = _ABSENT  # noqa: N815
    extra: msgspec.Raw = _ABSENT


_decoder = msgspec.json.Decoder(CanonicalRow)
_UNREADABLE_ERRORS = (msgspec.MsgspecError, UnicodeDecodeError, RecursionError)


def delivered_rows(
    frame: Frame, row_indexes: Sequence[int], first_seq: int
) -> tuple[list[DeliveredRow], list[RefusedRow]]:
    """The rows of a frame at these indexes, ascending, and those of them that can't be read.

    `first_seq` is the `seq` of the frame's first row, whether that is among them or not.
    """
    try:
        return _build(frame, _decode(frame, row_indexes), row_indexes, first_seq), []
    except _UNREADABLE_ERRORS:
        return _one_by_one(frame, row_indexes, first_seq)


def _decode(frame: Frame, row_indexes: Sequence[int]) -> list[CanonicalRow]:
    if len(row_indexes) == frame.facts.row_count:
        return _decoder.decode_lines(frame.rows)
    row, decode = frame.row, _decoder.decode
    return [decode(row(index)) for index in row_indexes]


def _build(
    frame: Frame, rows: Sequence[CanonicalRow], row_indexes: Sequence[int], first_seq: int
) -> list[DeliveredRow]:
    source, request_id, received_at_ms = frame.facts.source, frame.request_id, frame.received_at_ms
    plain = f'"received_at":"{iso_utc(received_at_ms)}"}}'
    versioned = plain
    if frame.sender_version is not None:
        versioned = f'"version":{msgspec.json.encode(frame.sender_version).decode()},{plain}'
    # Python reads bytes many times faster than the items of a numpy array.
    flags = frame.facts.flags.tobytes()
    from_headers = int(RowFlag.VERSION_FROM_HEADERS)
    delivered: list[DeliveredRow] = []
    add = delivered.append
    for row, index in zip(rows, row_indexes, strict=True):
        closing = versioned if flags[index] & from_headers else plain
        defaults = row.defaultProperties
        # "{" + closing, or the object's text with its last brace replaced; `{}` has no comma before the first.
        default_properties = "{" + closing if len(defaults) <= 2 else str(defaults, "utf-8")[:-1] + "," + closing
        event_properties, user_properties = row.eventProperties, row.userProperties
        identity_context, extra = row.identityContext, row.extra
        add(
            DeliveredRow(
                first_seq + index,
                source,
                request_id,
                received_at_ms,
                row.event,
                row.distinctId,
                received_at_ms if row.time is None else row.time,
                default_properties,
                row.userId,
                row.externalId,
                row.email,
                str(event_properties, "utf-8") if event_properties else None,
                str(user_properties, "utf-8") if user_properties else None,
                str(identity_context, "utf-8") if identity_context else None,
                str(extra, "utf-8") if extra else None,
            )
        )
    return delivered


def _one_by_one(
    frame: Frame, row_indexes: Sequence[int], first_seq: int
) -> tuple[list[DeliveredRow], list[RefusedRow]]:
    delivered: list[DeliveredRow] = []
    refused: list[RefusedRow] = []
    for index in row_indexes:
        try:
            delivered += _build(frame, [_decoder.decode(frame.row(index))], [index], first_seq)
        except _UNREADABLE_ERRORS:
            refused.append(RefusedRow(first_seq + index, UNREADABLE))
    return delivered, refused


def iso_utc(ms: int) -> str:
    """A time in ms since the Unix epoch as ISO 8601 with milliseconds, in UTC; from the year 1 to 9999."""
    return (_EPOCH + timedelta(milliseconds=ms)).isoformat(timespec="milliseconds").replace("+00:00", "Z")
