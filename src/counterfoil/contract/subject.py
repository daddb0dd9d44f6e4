"""Whose rows are meant, where a person's rows are looked for.

A canonical row is written by one encoder, its own fields without a space between them, so a field of a known value
stands in it as the same bytes always: where these bytes are nowhere in many rows, none of the rows needs decoding.
"""

from __future__ import annotations

from typing import Any

import msgspec

UNREADABLE_ERRORS = (msgspec.MsgspecError, UnicodeDecodeError, RecursionError)


class Subject(msgspec.Struct, frozen=True):
    """Whose rows are meant: those of a distinctId, or of a user id, of one source or of all.

    Exactly one of the two ids is set, as the contract keeps it: trimmed, and text. Raises ValueError otherwise.
    """

    distinct_id: str | None = None
    user_id: str | None = None
    """The row's `userId`."""
    source: str | None = None
    """None: of every source."""

    def __post_init__(self) -> None:
        if (self.distinct_id is None) == (self.user_id is None):
            raise ValueError("expected a distinctId or a user id, and not both")
        if not self._value:
            raise ValueError("expected an id of at least 1 character")
        try:
            self._value.encode()
        except UnicodeEncodeError:
            # The error's own words quote what can't be encoded.
            raise ValueError("expected an id in valid UTF-8") from None

    def __repr__(self) -> str:
        # Of a person's ids nothing may come into a log, also not with an error that shows what it was about.
        return f"Subject({self.__rich_repr__()[0][0]}=…)"

    def __rich_repr__(self) -> list[tuple[str, Any]]:
        return [("distinct_id" if self.user_id is None else "user_id", "…")]

    @property
    def given(self) -> list[tuple[str, str]]:
        """What is set, the source and the one id, by its name, which is that of the column of tables, too."""
        named = (("source", self.source), ("distinct_id", self.distinct_id), ("user_id", self.user_id))
        return [(name, value) for name, value in named if value is not None]

    def may_be_in(self, rows: bytes) -> bool:
        """Whether any of these canonical rows could be meant, in one look at all of them; never False wrongly."""
        return self._field_bytes in rows

    def is_row(self, source: str, row: bytes) -> bool:
        """Whether a canonical row of a source is meant."""
        if self.source not in (None, source) or self._field_bytes not in row:
            return False
        try:
            named = _decode(row)
        except UNREADABLE_ERRORS:
            # Nobody can be handed a row that can't be read, so nothing is lost with it; what it holds, might be his.
            return True
        return self._value == (named.distinctId if self.user_id is None else named.userId)

    @property
    def _value(self) -> str:
        return self.distinct_id or self.user_id or ""

    @property
    def _field_bytes(self) -> bytes:
        """The field as it stands in each row that is meant."""
        name = b'"distinctId":' if self.user_id is None else b'"userId":'
        return name + msgspec.json.encode(self._value)


class _Ids(msgspec.Struct, gc=False):
    """What of a canonical row is compared."""

    distinctId: str | None = None  # noqa: N815
    userId: str | None = None  # noqa: N815


_decode = msgspec.json.Decoder(_Ids).decode
