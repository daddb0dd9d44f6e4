"""What became of each row: seen index, verdicts, counters, cursors.

Promises, each with its test:

    L1. What one call of `record`, `record_delivery`, `register_destination`, `send_again`, `drop_dead` or
        `mark_erased` writes is there whole or not at all, and on disk when the call returns.
    L2. Groups are numbered from 1 without a gap, in the order they were settled; a number never names other rows.
    L3. For each source accepted = new + duplicate + conflict + blocked + test; for each destination
        routed = delivered + dead + skipped + erased + pending (promise P4); also after groups are gone, from their
        balances.
    L4. A key is known for the horizon from its first row; it may be known longer, never shorter.
    L5. The ledger's time never goes back.
    L6. Another queue's ledger, and one of a format this version does not know, is refused before anything is written.
    L7. A reader in another process sees one moment of the ledger, whole batches only.
    L8. A row that is sent again leaves what it was and is pending in one step; what is no longer what its cause says
        is left out. The copy of a dead row is there from its death until it is delivered or dropped.

    L9. A row that is erased leaves what it was in one step, and nothing that is asked later comes to it again.

`ledger.py` is the ledger as its one writer has it, `reader.py` as it is read, `format.py` the keys of its facts and how
an older format is read, `destinations.py` the destinations' side of it, `records.py` its facts and their bytes,
`resent.py` those of rows that are sent again, `erasures.py` whose rows were erased, `generations.py` how the seen index
forgets, `kept.py` which groups are kept, `carried.py` what stays of those that are gone, `store.py` RocksDB.
"""

from counterfoil.ledger.carried import Carried, CarriedDestination
from counterfoil.ledger.erasures import ErasedThere, Erasure, ErasureState, MarkedRows, SubjectRow
from counterfoil.ledger.kept import AgeMark
from counterfoil.ledger.ledger import Ledger
from counterfoil.ledger.reader import LedgerReader
from counterfoil.ledger.records import (
    CONTENT_UNKNOWN,
    ROWS_A_GROUP_MAX,
    Books,
    DamageRecord,
    DeadLetter,
    DeadRow,
    DeliveryRecord,
    DestinationCounts,
    FoundRow,
    Group,
    GroupFrame,
    GroupNumber,
    Places,
    RoutedCount,
    RowCopy,
    Seq,
    Settled,
    SourceCounts,
    count_sources,
    group_of,
    pack_seen,
    seq_of,
    unpack_seen,
)
from counterfoil.ledger.resent import AnyGroup, Cause, Resending, ResentGroup, ResentRow

__all__ = [
    "CONTENT_UNKNOWN",
    "ROWS_A_GROUP_MAX",
    "AgeMark",
    "AnyGroup",
    "Books",
    "Carried",
    "CarriedDestination",
    "Cause",
    "DamageRecord",
    "DeadLetter",
    "DeadRow",
    "DeliveryRecord",
    "DestinationCounts",
    "ErasedThere",
    "Erasure",
    "ErasureState",
    "FoundRow",
    "Group",
    "GroupFrame",
    "GroupNumber",
    "Ledger",
    "LedgerReader",
    "MarkedRows",
    "Places",
    "Resending",
    "ResentGroup",
    "ResentRow",
    "RoutedCount",
    "RowCopy",
    "Seq",
    "Settled",
    "SourceCounts",
    "SubjectRow",
    "count_sources",
    "group_of",
    "pack_seen",
    "seq_of",
    "unpack_seen",
]
