from __future__ import annotations

import errno
from uuid import uuid4

from counterfoil.faultydisk.disk import FaultyDisk
from counterfoil.faultydisk.faults import Fault, Operation
from counterfoil.files import RealFiles
from counterfoil.ledger import Ledger, LedgerReader
from counterfoil.ledger.settings import LedgerSettings


def test_what_is_recorded_counts_though_its_number_can_not_be_noted(disk: FaultyDisk) -> None:
    """A batch that is on disk counts in memory, too, when the note how far the ledger has come fails after it."""
    path, ledger_id = disk.mount_point / "ledger", uuid4()
    RealFiles().make_dir(path)
    ledger = Ledger.open(path, LedgerSettings(), ledger_id)
    ledger.register_destination("one")
    disk.set_faults([Fault(frozenset([Operation.WRITE]), errno=errno.EIO, path="ledger/committed$")])
    ledger.register_destination("two")
    assert disk.state().befallen == {"write errno 5": 1}
    assert ledger.destinations() == ("one", "two")
    disk.set_faults([])
    ledger.register_destination("three")
    ledger.close()
    reader = LedgerReader.open(path, LedgerSettings(), ledger_id)
    assert reader.destinations() == ("one", "three", "two")
    reader.close()
