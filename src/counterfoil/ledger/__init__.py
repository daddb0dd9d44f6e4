"""What became of each row: seen index, verdicts, counters, cursors.

Promises, each with its test:

    L1. What one call of `record`, `record_delivery` or `register_destination` writes is there whole or not at all, and
        on disk when the call returns.
    L2. Groups are numbered from 1 without a gap, in the order they were settled; a number never names other rows.
    L3. For each source accepted = new + duplicate + conflict + blocked + test; for each destination
        routed = delivered + dead + skipped + pending (promise P4); also after groups are gone, from their balances.
    L4. A key is known for the horizon from its first row; it may be known longer, never shorter.
    L5. The ledger's time never goes back.
    L6. Another queue's ledger, and one of a format this version does not know, is refused before anything is written.
    L7. A reader in another process sees one moment of the ledger, whole batches only.

`ledger.py` is the ledger, `records.py` its facts and their bytes, `generations.py` how the seen index forgets,
`kept.py` which groups are kept, `carried.py` what stays of those that are gone, `store.py` RocksDB.
"""

from counterfoil.ledger.carried import Carried, CarriedDestination
from counterfoil.ledger.kept import AgeMark
from counterfoil.ledger.ledger import Ledger, Mode
from counterfoil.ledger.records import (
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
    RoutedCount,
    Seq,
    Settled,
    SourceCounts,
    group_of,
    pack_seen,
    seq_of,
    unpack_seen,
)

__all__ = [
    "ROWS_A_GROUP_MAX",
    "AgeMark",
    "Books",
    "Carried",
    "CarriedDestination",
    "DamageRecord",
    "DeadLetter",
    "DeadRow",
    "DeliveryRecord",
    "DestinationCounts",
    "FoundRow",
    "Group",
    "GroupFrame",
    "GroupNumber",
    "Ledger",
    "Mode",
    "RoutedCount",
    "Seq",
    "Settled",
    "SourceCounts",
    "group_of",
    "pack_seen",
    "seq_of",
    "unpack_seen",
]
