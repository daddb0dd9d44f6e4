"""Rows that follow from a run's name and a number, so that nobody needs to remember what was sent.

Each string that a sender chooses holds the run's name: it is the canary that must never turn up in a log. Rows are sent
in the form that normalising leaves as it is (contract.md sections 4 and 5), so what is delivered must equal what was
sent. Every `BROKEN_EVERY`th row has an event that is no string: it must be refused, alone.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable
from typing import Any

import msgspec

BROKEN_EVERY = 89
"""One row in as many is invalid on purpose."""

_EVENTS = ("Purchase", "Sign Up", "Page View", "Refund")
_ODD_TEXTS = ("ü", "日本", "🙂", '"\\', "a\u0000b", "\u2028", "", "'; --")


class Content(msgspec.Struct, frozen=True):
    """The rows of one run."""

    run: str
    """The canary: in each string value of each row. Letters and digits, and no two runs the same."""
    time_base_ms: int
    """Times of rows lie in the hour before this, in ms since the epoch."""

    def distinct_id(self, number: int) -> str:
        return f"{self.run}-{number}"

    def number_of(self, distinct_id: str) -> int | None:
        """The number of the row with this distinctId; None for a row that no run like this one sends."""
        run, _, text = distinct_id.rpartition("-")
        # `isdigit` alone would let "007" and digits of other scripts pass for a number of ours.
        if run != self.run or not text.isdigit() or str(int(text)) != text:
            return None
        return int(text)

    def is_valid(self, number: int) -> bool:
        """Whether the contract lets the row pass."""
        return number % BROKEN_EVERY != BROKEN_EVERY - 1

    def rows(self, numbers: Iterable[int]) -> list[dict[str, Any]]:
        """The rows of these numbers."""
        return [self.row(number) for number in numbers]

    def row(self, number: int) -> dict[str, Any]:
        """The row of a number, with the names of the API."""
        distinct_id = self.distinct_id(number)
        digest = hashlib.blake2b(distinct_id.encode(), digest_size=16).digest()
        choice, amount = digest[0], int.from_bytes(digest[4:8], "big")
        text = f"{self.run} {digest.hex()} {_ODD_TEXTS[choice % 8]}."
        row: dict[str, Any] = {
            "event": f"{_EVENTS[choice % 4]} {self.run}" if self.is_valid(number) else number,
            "distinctId": distinct_id,
            "eventProperties": {
                "text": text,
                "amount": amount / 100 + 0.001,
                "count": amount,
                "nested": {"long": int.from_bytes(digest[8:16], "big") >> 1, "list": [text, None, choice % 2 == 0, {}]},
            },
        }
        if choice & 1:
            row["userId"] = f"{self.run}-user-{amount % 1000}"
        if choice & 2:
            row["externalId"] = f"{self.run}-external-{amount % 1000}"
        if choice & 4:
            row["email"] = f"{self.run}.{amount % 1000}@example.org"
        if choice & 8:
            row["time"] = self.time_base_ms - amount % 3_600_000
        if choice & 16:
            row["userProperties"] = {"first_name": text, "custom_properties": {"plan": text, "seats": choice}}
        if choice & 32:
            row["defaultProperties"] = {"current_url": f"https://example.org/{self.run}?{amount}", "browser_name": text}
        if choice & 64:
            row["identityContext"] = {"ip": f"{self.run}.{choice}", "userAgent": text}
        if choice & 128:
            row["unknownField"] = {"text": text}
        return row
