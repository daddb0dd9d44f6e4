"""What a destination is, on one page: all that the pipeline knows of one.

A destination takes deliveries. A delivery is the rows of some consecutive settled groups that are meant for it, in the
order of the one sequence; it may hold no rows. The promises a destination makes:

    D1. `deliver` returns only when the rows and the cursor are as durable as the destination can make them.
    D2. Rows and cursor become durable together, where `keeps_cursor`: after a crash at any point, `open` names the last
        delivery that is there whole, and nothing of a later one is there. Where not, a delivery may arrive twice.
    D3. `deliver` raises DestinationDown (trying the same again can help) or DestinationRefused (somebody must act), and
        nothing else that the outside can cause. After either the same delivery, or one that begins with the same
        group, is handed over again, after `close` and `open` anew. What it took meanwhile, where it can't take all or
        nothing, it says by `DestinationDown.has_progressed`: then it is tried again as soon as after a first failure.
    D4. A row that it can't take is in `Receipt.dead` with a reason of our own words; the others are delivered.
    D5. `erase` returns only when no row of the subject, and no older copy of one, is left that the destination could
        still show, and that is as durable as D1. The cursor and every other row stay. Called again it does what a
        crash left undone, and nothing else.

One thread uses a destination, from `open` to `close`. `check`, `counts`, `held` and `seqs_of` also work on one that was
never opened, from another process, while the pipeline delivers; `erase` comes between two deliveries.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Protocol

import msgspec

from counterfoil.contract.subject import Subject


class DeliveredRow(msgspec.Struct, frozen=True, gc=False):
    """A row as destinations get it: the sender's content, and what the server itself knows put in.

    Texts named `*_properties`, `identity_context` and `extra` are JSON objects; None where the row had none.
    """

    seq: int
    """group x 65,536 + place in the group: the row's number in the one sequence."""
    source: str
    request_id: bytes
    received_at_ms: int
    event: str
    distinct_id: str
    time_ms: int
    """As sent, or the time of receipt when the sender named none."""
    default_properties: str
    """With `received_at`, and `version` where the request's headers gave one."""
    user_id: str | None = None
    external_id: str | None = None
    email: str | None = None
    event_properties: str | None = None
    user_properties: str | None = None
    identity_context: str | None = None
    extra: str | None = None
    """The fields that the contract does not know, by their names."""
    first_seq: int | None = None
    """The `seq` it had when it was settled, where this one is of a time it is sent again."""


class Delivery(msgspec.Struct, frozen=True):
    """The rows of the groups `first_group` to `last_group` that are meant for a destination."""

    first_group: int
    last_group: int
    rows: Sequence[DeliveredRow]


class RefusedRow(msgspec.Struct, frozen=True):
    """A row that a destination will never take as it is."""

    seq: int
    reason: str
    """Our code, an SQLSTATE or an HTTP status, and a column's name; never the other side's words."""


class Receipt(msgspec.Struct, frozen=True):
    """What a destination made of a delivery."""

    first_group: int
    last_group: int
    row_count: int
    """Rows that are there now."""
    commit: str
    """What the destination calls its commit, for `trace`; empty when it has no name or the name is forgotten."""
    dead: tuple[RefusedRow, ...] = ()


class HeldRows(msgspec.Struct, frozen=True):
    """Some of the rows that a destination holds, of one source; columns of the same length."""

    source: str
    seqs: Sequence[int]
    distinct_ids: Sequence[str]


class Destination(Protocol):
    """Where rows go."""

    @property
    def name(self) -> str:
        """Its name in the configuration, which is its identity."""
        ...

    @property
    def keeps_cursor(self) -> bool:
        """Whether it holds its own cursor, and so every row exactly once."""
        ...

    def open(self) -> Receipt | None:
        """Be ready to deliver; the receipt of the last delivery it holds, None when it holds none of this ledger.

        What an earlier life left half done is cleared away first. Raises DestinationDown or DestinationRefused.
        """
        ...

    def deliver(self, delivery: Delivery) -> Receipt:
        """Take a delivery (D1 to D4)."""
        ...

    def tend(self) -> bool:
        """One short step of upkeep between deliveries, some 100 ms at most; False when there is nothing left to do.

        Raises as `deliver` does.
        """
        ...

    def close(self) -> None:
        """Let go of everything; harmless when it is closed or was never opened."""
        ...

    def check(self) -> list[str]:
        """What would keep it from delivering, one line each that says what to do; empty when nothing does."""
        ...

    def counts(self) -> dict[str, int] | None:
        """How many rows it holds of each source; None where it can't be asked. Raises as `deliver` does."""
        ...

    def held(self, first_seq: int = 0, last_seq: int | None = None) -> Iterator[HeldRows] | None:
        """The rows it holds whose seq lies in this range, ends included; None where it can't be asked."""
        ...

    def seqs_of(self, subject: Subject) -> Sequence[int] | None:
        """The seqs of the rows it holds of a subject; None where it can't be asked. Raises as `deliver` does."""
        ...

    def erase(self, subject: Subject) -> int | None:
        """Remove every row of a subject for good (D5); how many there were.

        None where the receiver was told and can't be counted. Raises as `deliver` does: then it is to be called again,
        after `close` and `open` anew. To be called though `seqs_of` names none: older copies may be left.
        """
        ...
