"""Which destinations the rows of some frames are for, as columns.

A frame names its own distinct sets of destinations, and each of its rows an index (see `contract.facts`). Over many
frames every (source, set) that occurs gets one number, so that counting and choosing is arithmetic.
"""

from __future__ import annotations

from collections.abc import Sequence

import msgspec
import numpy as np
from numpy.typing import NDArray

from counterfoil.contract.facts import EVERY_DESTINATION, FrameFacts
from counterfoil.ledger import RoutedCount


class SetColumns(msgspec.Struct, frozen=True):
    """The sets of the rows of some frames, one after the other."""

    sets: tuple[RoutedCount, ...]
    """Each (source, set) that the frames name, counting nothing yet."""
    set_of: NDArray[np.int64]
    """For each row an index into `sets`."""

    def count(self, rows: NDArray[np.bool_]) -> tuple[RoutedCount, ...]:
        """How many of the rows that are true there are of each (source, set); those without one are left out."""
        counted = np.bincount(self.set_of[rows], minlength=len(self.sets))
        return tuple(
            msgspec.structs.replace(each, row_count=int(count))
            for each, count in zip(self.sets, counted, strict=True)
            if count
        )

    def are_for(self, destination: str) -> NDArray[np.bool_]:
        """For each row whether it is meant for a destination."""
        return np.array([each.is_for(destination) for each in self.sets], np.bool_)[self.set_of]


def set_columns(facts: Sequence[FrameFacts]) -> SetColumns:
    """The sets of the rows of these frames."""
    numbers: dict[tuple[str, tuple[str, ...] | None], int] = {}
    # Frames of one source that name the same sets share a stretch of `table`, which maps their indexes to numbers.
    starts: dict[tuple[str, tuple[tuple[str, ...], ...]], int] = {}
    table: list[int] = []
    frame_starts: list[int] = []
    for each in facts:
        origin = (each.source, each.destination_sets)
        if origin not in starts:
            starts[origin] = len(table)
            names = [each.destinations_of(EVERY_DESTINATION), *each.destination_sets]
            table += [numbers.setdefault((each.source, one), len(numbers)) for one in names]
        frame_starts.append(starts[origin])
    start_of = np.repeat(np.array(frame_starts, np.int64), [each.row_count for each in facts])
    set_of = np.array(table, np.int64)[start_of + np.concatenate([each.destination_set for each in facts])]
    return SetColumns(tuple(RoutedCount(source, names, 0) for source, names in numbers), set_of)
