"""Ledgers of older formats, which the server brings up to the present one."""

from __future__ import annotations

from pathlib import Path
from uuid import UUID

import pytest

from counterfoil.errors import LedgerUnusable
from counterfoil.ledger import Ledger, LedgerReader
from counterfoil.ledger.records import FORMAT_VERSION
from counterfoil.ledger.store import FAMILIES, Family, Store
from tests.ledger.test_ledger import SETTINGS, opened

WRITTEN = Path(__file__).with_name("format_3.txt")
LEDGER_ID = UUID("33fab64b-8a4d-4e2a-bf05-5c48b3ae5802")


def lay_down(path: Path) -> None:
    """Make the ledger that an earlier version left: five groups of it are gone by retention, a row of it is dead."""
    opened(path, LEDGER_ID).close()
    store = Store(path / "ledger", SETTINGS, is_writer=True)
    batch = store.batch()
    for family in FAMILIES:
        for key, _ in list(store.items(family, b"")):
            batch.delete(family, key)
    store.write(batch)
    batch = store.batch()
    for line in WRITTEN.read_text().splitlines()[1:]:
        name, written_key, written_value = line.split(" ")
        batch.put(Family(name), bytes.fromhex(written_key), bytes.fromhex(written_value))
    store.write(batch)
    store.close()


def test_a_ledger_of_format_3_is_brought_up_by_the_server(tmp_path: Path) -> None:
    """A reader says what to do and changes nothing; a writer has every count, every dead letter and copy after it."""
    lay_down(tmp_path)
    with pytest.raises(LedgerUnusable, match=f"format version 3; start the server once, .* to {FORMAT_VERSION}"):
        LedgerReader.open(tmp_path / "ledger", SETTINGS, LEDGER_ID)
    kinds: tuple[type[LedgerReader], ...] = (Ledger, LedgerReader, Ledger)
    for kind in kinds:
        ledger = kind.open(tmp_path / "ledger", SETTINGS, LEDGER_ID)
        books = ledger.books()
        (source,) = books.sources
        assert (source.new, source.duplicate, source.conflict, source.test, source.erased) == (5, 2, 1, 1, 0)
        assert [
            (each.destination, each.routed, each.delivered, each.dead, each.erased, each.pending)
            for each in books.destinations
        ] == [("crm", 5, 4, 1, 0, 0), ("lake", 5, 5, 0, 0, 0)]
        assert books.last_group == 6
        assert [(letter.seq, letter.reason) for letter in ledger.dead_letters("crm")] == [(65_538, "http_422")]
        assert [group.number for group in ledger.groups(0, 10)] == [6]
        assert ledger.delivery_of("lake", 6) is not None
        ledger.close()
