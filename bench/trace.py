"""How long `counterfoil trace` takes with many rows in the ledger and the queue.

Three times, each the median over rows at random, by the clock and of the processor: the work (the ledger is opened, a
row is looked up and its frame read, as often as a fresh process would), the whole command, and a command that does
nothing (`--version`), which is what the interpreter and imports of the command line cost. Segments are read
through the page cache.

A tenth of the rows wait for the destination, so that some traces count what is before them.

    python -m bench.trace --rows 10000000
"""

from __future__ import annotations

import argparse
import asyncio
import os
import random
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import msgspec

from counterfoil.contract.facts import key_hashes, key_prefix
from counterfoil.datadir import DataDir
from counterfoil.files import RealFiles
from counterfoil.ledger import Ledger, LedgerReader
from counterfoil.ledger.settings import LedgerSettings
from counterfoil.pipeline.settings import PipelineSettings
from counterfoil.pipeline.settle import Settler
from counterfoil.pipeline.trace import trace
from counterfoil.queue.frame import Origin, draft_frame
from counterfoil.queue.reader import QueueReader
from counterfoil.queue.settings import QueueSettings
from counterfoil.queue.writer import SegmentWriter

SOURCE = "website"
FRAME_ROWS = 1000
FRAMES_AT_ONCE = 32
COUNT = 25
WORK_MS_MAX = 50
_NOW_MS = 1_700_000_000_000
_CONFIG = """
data_dir = "data"
[[sources]]
name = "website"
token_sha256 = ["0000000000000000000000000000000000000000000000000000000000000000"]
[[destinations]]
name = "lake"
type = "delta"
path = "data/lake"
"""


def distinct_id(number: int) -> str:
    """What the row of this number is called."""
    return f"order-{number}"


async def fill_queue(data: DataDir, rows: int) -> None:
    """Frames of FRAME_ROWS rows each."""
    origin, prefix = msgspec.json.encode(Origin(SOURCE)), key_prefix(SOURCE)
    writer = SegmentWriter.open(data.queue, RealFiles(), QueueSettings(), quarantine=data.quarantine)
    starts = range(0, rows, FRAME_ROWS)
    for first in range(0, len(starts), FRAMES_AT_ONCE):
        drafts = []
        for start in starts[first : first + FRAMES_AT_ONCE]:
            ids = [distinct_id(number) for number in range(start, min(start + FRAME_ROWS, rows))]
            drafts.append(
                draft_frame(
                    origin=origin,
                    rows=[f'{{"event":"Purchase","distinctId":"{each}"}}'.encode() for each in ids],
                    key_hashes=key_hashes(prefix, ids),
                    content_hashes=[bytes(8)] * len(ids),
                    received_at_ms=_NOW_MS,
                    request_id=bytes(16),
                )
            )
        await asyncio.gather(*writer.append(drafts))
    await writer.close()


def settle_all(data: DataDir) -> None:
    """Settle everything, and note nine tenths of it as delivered."""
    ledger = Ledger.open(data.ledger, LedgerSettings(), data.id)
    ledger.register_destination("lake")
    settler = Settler(QueueReader(data.queue, RealFiles(), None), ledger, PipelineSettings(), lambda: _NOW_MS)
    while settler.step():
        pass
    last = ledger.last_group() * 9 // 10
    for first in range(1, last + 1, 4):
        groups = ledger.groups(first - 1, min(4, last - first + 1))
        ledger.record_delivery(
            "lake", first_group=first, last_group=groups[-1].number, commit=str(first), at_ms=_NOW_MS,
            delivered_rows=sum(group.routed_to("lake") for group in groups),
        )  # fmt: skip
    ledger.close()


def one_trace(data: DataDir, number: int) -> None:
    """The work of one command: open, look up, read, close."""
    ledger = LedgerReader.open(data.ledger, LedgerSettings(), data.id)
    found = trace(ledger, QueueReader(data.queue, RealFiles(), None), [SOURCE], distinct_id(number))
    assert len(found.rows) == 1, "the row is not known"
    assert found.rows[0].received_at_ms == _NOW_MS
    ledger.close()


def median_ms(work: Callable[[int], None], numbers: list[int]) -> str:
    """The median of what `work` takes for each number, all threads and child processes counted."""
    took, core = [], []
    for number in numbers:
        begun, begun_core = time.perf_counter(), core_seconds()
        work(number)
        took.append(time.perf_counter() - begun)
        core.append(core_seconds() - begun_core)
    return f"{statistics.median(took) * 1000:.1f} ms (processor {statistics.median(core) * 1000:.1f})"


def core_seconds() -> float:
    """What this process and its children have used of the processor."""
    used = [resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)]
    return sum(each.ru_utime + each.ru_stime for each in used)


def command(directory: Path, *arguments: str) -> None:
    """Run `counterfoil` as a process."""
    subprocess.run(
        [sys.executable, "-c", "from counterfoil.cli import main; main()", *arguments],
        cwd=directory,
        stdout=subprocess.DEVNULL,
        check=True,
    )


def run(rows: int = 1_000_000) -> None:
    """Measure and print."""
    with tempfile.TemporaryDirectory(prefix="counterfoil-bench-", dir=os.environ.get("COUNTERFOIL_BENCH_DIR")) as path:
        directory = Path(path)
        (directory / "counterfoil.toml").write_text(_CONFIG)
        data = DataDir(directory / "data")
        data.make()
        asyncio.run(fill_queue(data, rows))
        settle_all(data)
        measure(directory, data, rows)


def measure(directory: Path, data: DataDir, rows: int) -> None:
    """The three times, over rows that are delivered and rows that wait."""
    chance = random.Random(7)
    for name, low, high in (("delivered", 0, rows * 8 // 10), ("waiting", rows * 19 // 20, rows)):
        numbers = [chance.randrange(low, high) for _ in range(COUNT)]
        work = median_ms(lambda number: one_trace(data, number), numbers)
        whole = median_ms(lambda number: command(directory, "trace", distinct_id(number)), numbers[:9])
        idle = median_ms(lambda _: command(directory, "--version"), numbers[:9])
        print(
            f"trace, {rows:,} rows, a {name} one: {work} of work, at most {WORK_MS_MAX} ms; "
            f"the command {whole}, one that does nothing {idle}"
        )


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rows", type=int, default=1_000_000)
    run(parser.parse_args().rows)
