"""Other processes read while one writes."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from pathlib import Path

import msgspec

from counterfoil.ledger import Ledger, LedgerReader, pack_seen, seq_of
from counterfoil.ledger.records import Settled
from counterfoil.ledger.settings import MIB, LedgerSettings
from counterfoil.ledger.store import READ_AT_OPENING_BYTES
from tests.ledger.test_ledger import DAY_MS, LEDGER_ID, SETTINGS, one_row, opened

GROUPS = 120
KEYS = 3000

SMALL = LedgerSettings(cache_bytes=8 * MIB, write_buffer_bytes=4 * MIB)
"""Buffers that are flushed every few groups."""

READER = """
import sys
from pathlib import Path
from counterfoil.ledger import LedgerReader
from tests.ledger.test_ledger import LEDGER_ID, SETTINGS

ledger = LedgerReader.open(Path(sys.argv[1]), SETTINGS, LEDGER_ID)
print("open", flush=True)
looks = last = 0
while last < int(sys.argv[2]):
    ledger.catch_up()
    looks += 1
    books = ledger.books()
    groups = ledger.groups(0, 1000)
    assert books.last_group >= last, "time went back"
    last = books.last_group
    assert [group.number for group in groups] == list(range(1, last + 1)), "a group is missing"
    assert sum(counts.accepted for counts in books.sources) == last, "counters of another moment"
    assert all(counts.is_balanced for counts in books.sources)
    (lake,) = books.destinations
    assert lake.cursor + lake.pending == last == lake.routed
    if last:
        assert len(ledger.lookup(last.to_bytes(16, "big"))) == 1, "a key is missing"
        assert len(ledger.lookup((1).to_bytes(16, "big"))) == 1, "a key of an older generation is missing"
print("looked", looks, flush=True)
"""


def test_another_process_sees_whole_batches_while_one_writes(tmp_path: Path) -> None:
    """L7: counters, groups and keys that a reader sees belong to one moment, over new generations and flushes."""
    ledger = Ledger.open(tmp_path / "ledger", SMALL, LEDGER_ID)
    ledger.register_destination("lake")
    reader = subprocess.Popen(
        [sys.executable, "-c", READER, str(tmp_path / "ledger"), str(GROUPS)], stdout=subprocess.PIPE, text=True
    )
    assert reader.stdout is not None
    assert reader.stdout.readline() == "open\n"
    for number in range(1, GROUPS + 1):
        settled = one_row(number, number.to_bytes(16, "big"), at_ms=DAY_MS)
        others = [os.urandom(16) for _ in range(KEYS)]
        ledger.record(
            msgspec.structs.replace(
                settled, new_keys=[*settled.new_keys, *others], seen=[*settled.seen, *(settled.seen * KEYS)]
            )
        )
        ledger.record_delivery("lake", first_group=number, last_group=number, delivered_rows=1, commit="c", at_ms=1)
        if number in (40, 80):
            ledger.tend(now_ms=number * DAY_MS, running_ms=15 * DAY_MS)
    out, _ = reader.communicate(timeout=120)
    assert reader.returncode == 0
    assert out.startswith("looked")
    ledger.close()


def test_a_reader_works_when_nothing_runs(tmp_path: Path) -> None:
    """What was written can be read after the writer is gone, closed or killed."""
    ledger = opened(tmp_path)
    ledger.record(one_row(1, b"a" * 16))
    reader = LedgerReader.open(tmp_path / "ledger", SETTINGS, LEDGER_ID)
    ledger.close()
    assert reader.last_group() == 1
    reader.close()
    reader.close()
    reader = LedgerReader.open(tmp_path / "ledger", SETTINGS, LEDGER_ID)
    assert reader.last_group() == 1
    reader.close()


def test_the_log_that_a_reader_has_to_read_is_kept_short(tmp_path: Path) -> None:
    """As time passes what was written is sorted into files: who opens it has little log to read, and all facts."""
    ledger = opened(tmp_path)
    keys = [number.to_bytes(16, "big") for number in range(40_000)]
    seen = [pack_seen(seq_of(1, number), 1, 2) for number in range(len(keys))]
    ledger.record(Settled(group=None, reading_positions=(), new_keys=keys, seen=seen))

    def log_bytes() -> int:
        return sum(path.stat().st_size for path in (tmp_path / "ledger").glob("*.log"))

    assert log_bytes() > READ_AT_OPENING_BYTES
    ledger.tend(1, 1)
    deadline = time.monotonic() + 120
    while log_bytes() >= READ_AT_OPENING_BYTES:
        assert time.monotonic() < deadline, "the log is as long as before"
        time.sleep(0.01)
    reader = LedgerReader.open(tmp_path / "ledger", SETTINGS, LEDGER_ID)
    assert reader.seen(keys) == seen
    reader.close()
    ledger.close()
