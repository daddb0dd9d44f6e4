"""What a job's journal says is confirmed."""

from __future__ import annotations

import random
from itertools import pairwise

from hypothesis import given
from hypothesis import strategies as st

from counterfoil.backfill.journal import Confirmed, Progress

_CUTS = st.sets(st.integers(1, 60), max_size=12)


@given(cuts=_CUTS, missing=st.sets(st.integers(0, 12)), shuffled=st.randoms())
def test_next_confirmed_finds_every_confirmed_record_and_no_other(
    cuts: set[int], missing: set[int], shuffled: random.Random
) -> None:
    """Whatever batches are confirmed, in whatever order: a walk by `next_confirmed` tells exactly their records."""
    ends = [0, *sorted(cuts)]
    batches = [(before + 1, end) for at, (before, end) in enumerate(pairwise(ends)) if at not in missing]
    written = list(batches)
    shuffled.shuffle(written)
    progress = Progress(1)
    for first, last in written:
        progress.add(Confirmed(0, first, last, accepted=last - first + 1))

    found = set()
    first = last = 0
    for number in range(1, 65):
        if number > last:
            first, last = progress.next_confirmed(0, number)
        if first <= number:
            found.add(number)

    assert found == {number for first, last in batches for number in range(first, last + 1)}
