"""Which rows of a batch a destination refuses, found by halving: about log2 n tries for one row in n."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from counterfoil.destinations.interface import DeliveredRow, RefusedRow

Take = Callable[[Sequence[DeliveredRow]], str | None]
"""Takes all rows and returns None, or takes none of them and returns the reason in our own words."""


def take_by_halves(rows: Sequence[DeliveredRow], take: Take) -> list[RefusedRow]:
    """Hand `rows` over in order, in halves where a row among them is refused; the rows that were refused alone.

    Raises what `take` raises.
    """
    if not rows:
        return []
    reason = take(rows)
    if reason is None:
        return []
    if len(rows) == 1:
        return [RefusedRow(rows[0].seq, reason)]
    middle = len(rows) // 2
    return take_by_halves(rows[:middle], take) + take_by_halves(rows[middle:], take)
