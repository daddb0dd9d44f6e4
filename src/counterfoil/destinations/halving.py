"""Which rows of a batch a destination refuses, found by halving: about log2 n tries for one row in n."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence

from counterfoil.destinations.interface import DeliveredRow, RefusedRow

Take = Callable[[Sequence[DeliveredRow]], str | None]
"""Takes all rows and returns None, or takes none of them and returns the reason in our own words."""


def take_by_halves(
    rows: Sequence[DeliveredRow], take: Take
) -> Iterator[tuple[Sequence[DeliveredRow], RefusedRow | None]]:
    """Hand `rows` over in order, in halves where a row among them is refused.

    Gives each part as soon as it is through: rows that were taken, or one row alone and how it was refused. Raises what
    `take` raises; what was given before that is through all the same.
    """
    if not rows:
        return
    reason = take(rows)
    if reason is None:
        yield rows, None
    elif len(rows) == 1:
        yield rows, RefusedRow(rows[0].seq, reason)
    else:
        middle = len(rows) // 2
        yield from take_by_halves(rows[:middle], take)
        yield from take_by_halves(rows[middle:], take)


def refused_by_halves(rows: Sequence[DeliveredRow], take: Take) -> list[RefusedRow]:
    """The same, all of it; the rows that were refused."""
    return [refused for _, refused in take_by_halves(rows, take) if refused is not None]
