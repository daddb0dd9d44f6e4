"""Whether a destination that is ahead of the ledger holds this ledger's rows, and not those of a later life of it.

An older copy of a ledger that is put back gives numbers once more to other groups. As soon as these are as many as the
destination holds, numbers alone look like those of a crash between commit and cursor; the rows tell.
"""

from __future__ import annotations

from collections.abc import Container

from counterfoil.destinations.interface import Destination
from counterfoil.ledger import ROWS_A_GROUP_MAX, LedgerReader, seq_of
from counterfoil.pipeline.handover import Handover

GROUPS_A_QUESTION = 64


def strange_group(
    destination: Destination,
    ledger: LedgerReader,
    handover: Handover,
    *,
    first_group: int,
    last_group: int,
    dead: Container[int],
) -> int | None:
    """The first kept group of this range whose rows are not those that the destination holds of it, if there is one.

    It is strange when a row there has the place of another one here, or when no row of the group is there though it
    has some that are not in `dead`, the seqs that were refused. Raises as `Destination.held` does.
    """
    number = first_group - 1
    while number < last_group:
        # What is between may be gone.
        groups = [each for each in ledger.groups(number, GROUPS_A_QUESTION) if each.number <= last_group]
        if not groups:
            break
        number = groups[-1].number
        held = _held(destination, groups[0].number, number)
        for group in groups:
            rows = handover.rows_of(group).rows if group.routed_to(destination.name) else []
            awaited = [row for row in rows if row.seq not in dead]
            found = [held[row.seq] == (row.source, row.distinct_id) for row in awaited if row.seq in held]
            if awaited and not (found and all(found)):
                return group.number
    return None


def _held(destination: Destination, first_group: int, last_group: int) -> dict[int, tuple[str, str]]:
    runs = destination.held(seq_of(first_group, 0), seq_of(last_group, ROWS_A_GROUP_MAX - 1))
    return {
        seq: (run.source, distinct_id)
        for run in runs or ()
        for seq, distinct_id in zip(run.seqs, run.distinct_ids, strict=True)
    }
