"""The Delta Lake destination: one table that anyone can read, and every row in it exactly once.

A delivery is one commit, in this order:

    1. The cursor in the table is compared with the delivery.
    2. The rows are written as Parquet, a file a day of receipt.
    3. One log entry names the files and moves the cursor: the table's transaction identifier of the application
       `counterfoil:<ledger>:<destination>`, whose version is the number of the last group.

Whatever dies where: without step 3 the files are nobody's; with it the cursor says that the rows are there. deltalake
refuses a commit of the same application that it has not seen, but compares no versions, which is why step 1 is ours.
How files and log become durable, and are kept, is another matter on a disk (`delta_disk`) than in an object store
(`delta_store`).

Upkeep comes in short steps between deliveries (`tend`). All of it is due after `merge_commits` commits, and a delivery
waits for it after COMMITS_BETWEEN_UPKEEP_MAX: a commit reads every log entry since the checkpoint, so that is what
keeps it fast.

A person's rows are erased by other files in the place of those that hold them; then the old files and everything of
the log that tells of them go at once.

Others may write to the table too (a DELETE, say), as long as its columns and protocol stay.
"""

from __future__ import annotations

from collections.abc import Callable, Generator, Iterator, Sequence
from pathlib import Path
from uuid import UUID

from counterfoil.contract.subject import Subject
from counterfoil.destinations.delta_address import TableAddress
from counterfoil.destinations.delta_disk import TableOnDisk
from counterfoil.destinations.delta_errors import told
from counterfoil.destinations.delta_store import TableInStore
from counterfoil.destinations.delta_table import (
    NO_HOOKS,
    CommitNote,
    TableStorage,
    commit_properties,
    create_table,
    table_faults,
)
from counterfoil.destinations.interface import Delivery, HeldRows, Receipt
from counterfoil.destinations.query import held_rows, rows_by_source, subject_seqs
from counterfoil.destinations.settings import DeltaSettings
from counterfoil.errors import DestinationDown, DestinationRefused
from counterfoil.failpoints import reach
from counterfoil.files import Files

COMMITS_BETWEEN_UPKEEP_MAX = 100


class DeltaDestination:
    """A `Destination` that delivers to a Delta Lake table."""

    keeps_cursor = True

    def __init__(
        self,
        settings: DeltaSettings,
        *,
        address: TableAddress,
        ledger_id: UUID,
        files: Files,
        quarantine: Path,
        clock_ms: Callable[[], int],
    ) -> None:
        self.name = settings.name
        self._settings = settings
        self._address = address
        self._ledger_id = ledger_id
        self._application = f"counterfoil:{ledger_id}:{settings.name}"
        self._storage: TableStorage
        if address.path is None:
            self._storage = TableInStore(address, settings, clock_ms)
        else:
            self._storage = TableOnDisk(
                address, address.path, settings, files=files, quarantine=quarantine, clock_ms=clock_ms
            )
        self._upkeep: Generator[None] | None = None

    def open(self) -> Receipt | None:
        """See `Destination.open`: mends what a crash left, makes the table when there is none, and reads the cursor."""
        self.close()
        self._refuse(self._address.faults())
        with told(self._address):
            if not self._storage.mend():
                create_table(self._address, self._ledger_id, self._storage.settings())
                reach("delta.created")
                self._storage.settle(0, 0)
            self._storage.load()
            self._refuse(table_faults(self._storage.table, self._address, self._ledger_id))
            self._keep_settings()
            self._storage.remove_left_over()
            return self._storage.last_receipt(self._application)

    def deliver(self, delivery: Delivery) -> Receipt:
        """See `Destination.deliver`: one commit for the rows and the cursor."""
        with told(self._address):
            if self._storage.commit_count >= COMMITS_BETWEEN_UPKEEP_MAX:
                while self.tend():
                    pass
            held = self._storage.table.transaction_version(self._application)
            if held is not None and held >= delivery.first_group:
                raise DestinationDown(f"{self._address}: somebody else delivers to this table")
            reach("delta.before_files")
            version = self._storage.append(delivery, self._application)
            return Receipt(delivery.first_group, delivery.last_group, len(delivery.rows), str(version))

    def tend(self) -> bool:
        """See `Destination.tend`: one step of merging, checkpoint, log cleaning or removal of replaced files."""
        with told(self._address):
            if self._upkeep is None:
                if self._storage.commit_count < self._settings.merge_commits:
                    return False
                self._upkeep = self._storage.upkeep()
            try:
                next(self._upkeep)
            except StopIteration:
                self._upkeep = None
                return False
            return True

    def close(self) -> None:
        """See `Destination.close`: an unfinished merge is given up."""
        self._end_upkeep()
        self._storage.close()

    def check(self) -> list[str]:
        """See `Destination.check`: looks for the table, whose it is and how its columns are; changes nothing."""
        try:
            faults = self._address.faults()
            with told(self._address):
                if faults or not self._storage.is_there():
                    return faults or self._storage.writable_faults()
                return table_faults(self._address.load(), self._address, self._ledger_id)
        except (DestinationDown, DestinationRefused) as error:
            return [str(error)]

    def counts(self) -> dict[str, int]:
        """See `Destination.counts`: counted in the table itself."""
        with told(self._address):
            return rows_by_source(self._address)

    def held(self, first_seq: int = 0, last_seq: int | None = None) -> Iterator[HeldRows]:
        """See `Destination.held`: in no particular order."""
        with told(self._address):
            yield from held_rows(self._address, first_seq, last_seq)

    def seqs_of(self, subject: Subject) -> Sequence[int]:
        """See `Destination.seqs_of`."""
        with told(self._address):
            return subject_seqs(self._address, subject)

    def erase(self, subject: Subject) -> int:
        """See `Destination.erase`: the table can't be read any more as it was before."""
        with told(self._address):
            self._end_upkeep()
            return self._storage.erase(subject)

    def _end_upkeep(self) -> None:
        if self._upkeep is not None:
            self._upkeep.close()
        self._upkeep = None

    def _keep_settings(self) -> None:
        table, wanted = self._storage.table, self._storage.settings()
        if not wanted.items() <= table.metadata().configuration.items():
            before = table.version()
            table.alter.set_table_properties(
                wanted,
                commit_properties=commit_properties(CommitNote("settings", 1)),
                post_commithook_properties=NO_HOOKS,
            )
            table.update_incremental()
            self._storage.settle(before + 1, table.version())

    def _refuse(self, faults: Sequence[str]) -> None:
        if faults:
            raise DestinationRefused("; ".join(faults))
