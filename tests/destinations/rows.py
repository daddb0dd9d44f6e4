"""Rows and deliveries as the pipeline hands them over, for the tests of every destination."""

from __future__ import annotations

from counterfoil.destinations.interface import DeliveredRow, Delivery

ROWS_A_GROUP_MAX = 65_536


def row(seq: int, distinct_id: str | None = None, **changes: object) -> DeliveredRow:
    """A row with something in every field; `changes` set others."""
    fields: dict[str, object] = {
        "seq": seq,
        "source": "website",
        "request_id": bytes(16),
        "received_at_ms": 1_767_225_600_000 + seq % 1000,
        "event": "Purchase",
        "distinct_id": f"order-{seq}" if distinct_id is None else distinct_id,
        "time_ms": 1_767_225_599_123,
        "default_properties": '{"received_at":"2026-01-01T00:00:00.000Z"}',
        "user_id": "u-1",
        "external_id": None,
        "email": "ann@example.com",
        "event_properties": '{"sum":12.5,"nul":"a\\u0000b","big":123456789012345678901234567890}',
        "user_properties": None,
        "identity_context": None,
        "extra": '{"colour":"red"}',
    }
    return DeliveredRow(**{**fields, **changes})  # type: ignore[arg-type]


def delivery(group: int, row_count: int = 3, last_group: int | None = None) -> Delivery:
    """A delivery of `row_count` rows that stand in its first group."""
    first_seq = group * ROWS_A_GROUP_MAX
    return Delivery(group, last_group or group, [row(first_seq + place) for place in range(row_count)])
