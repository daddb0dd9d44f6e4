"""`counterfoil backfill` against a whole server, beside wrk sending the same rows in the same batches.

    python -m bench backfill

Both send to one `counterfoil serve` with its defaults, in turns, on every core that there is: the sender, the gateway,
settle and the delivery share them. Expected: backfill reaches 0.7 of what wrk does. wrk makes its bodies beforehand
and reads no answer; backfill reads its file, checks each line, and writes down what was answered.

It needs wrk (Debian: apt-get install wrk).
"""

from __future__ import annotations

import json
import os
import resource
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import httpx
import msgspec

from bench.gateway import CORES, Load, free_port, wrk
from bench.server import TOKEN
from counterfoil.backfill.job import BATCH_ROWS, IN_FLIGHT_MAX
from counterfoil.sources import token_sha256

ROUNDS = 5
WRK_SECONDS = 4
RECORDS = 300_000
RATIO_MIN = 0.7
READY_SECONDS = 60.0

# More bodies than wrk gets to send: a row that is repeated is not delivered, and costs the server half.
BODIES = 1_200
LOAD = Load("/api/v1/batch", BATCH_ROWS, BODIES, connections=IN_FLIGHT_MAX)


def run() -> None:
    """Print both rates of each round, and the median of their ratios."""
    if shutil.which("wrk") is None:
        print("backfill: left out; it needs wrk (Debian: apt-get install wrk)")
        return
    with tempfile.TemporaryDirectory(dir=os.environ.get("BENCH_DIR"), prefix="bench-backfill-") as name:
        directory = Path(name)
        (directory / "token").write_text(TOKEN)
        with _served(directory) as (port, console_port):
            ratios = []
            for number in range(ROUNDS):
                load = msgspec.structs.replace(LOAD, first_id=number * BODIES * BATCH_ROWS)
                requests, duration_us, *_ = wrk(port, load, WRK_SECONDS, CORES)
                assert requests <= BODIES, "wrk repeated itself"
                wrk_rate = requests * BATCH_ROWS / duration_us * 1e6
                _await_delivery(console_port)
                rate, cpu_us = _backfill(directory, port, number)
                _await_delivery(console_port)
                ratios.append(rate / wrk_rate)
                print(
                    f"backfill {rate:,.0f} rows/s with {cpu_us:.1f} us of processor a row, "
                    f"wrk {wrk_rate:,.0f} rows/s = {ratios[-1]:.2f}",
                    flush=True,
                )
    print(f"backfill: {statistics.median(ratios):.2f} x wrk with the same batches (expected {RATIO_MIN:.2f})")


def _backfill(directory: Path, port: int, number: int) -> tuple[float, float]:
    """Rows a second from the first record to the report, as the command says it, and its processor time a row."""
    history = directory / f"history-{number}.ndjson"
    now_ms = int(time.time() * 1000)
    with history.open("w") as file:
        for row in range(RECORDS):
            customer = row % 1_000_000
            file.write(
                f'{{"event":"Purchase","distinctId":"record-{number}-{row:010d}","userId":"customer-{customer:06d}",'
                f'"email":"c{customer:06d}@example.com","time":{now_ms},"eventProperties":'
                f'{{"sku":"A-{row % 10_000:04d}","price":{row % 9999 / 100:.2f},"quantity":{row % 9 + 1},'
                '"currency":"EUR","note":""}}\n'
            )
        # Else the kernel would write it out while the server flushes.
        file.flush()
        os.fsync(file.fileno())
    report = directory / f"report-{number}.json"
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    subprocess.run(
        [
            *(sys.executable, "-m", "counterfoil", "backfill", str(history), "--report", str(report)),
            *("--to", f"http://127.0.0.1:{port}/api/v1", "--token-file", str(directory / "token")),
        ],
        check=True,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    cpu_seconds = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
    history.unlink()
    read = json.loads(report.read_text())
    assert read["accepted"] == RECORDS, read
    return RECORDS / read["seconds"], cpu_seconds / RECORDS * 1e6


@contextmanager
def _served(directory: Path) -> Iterator[tuple[int, int]]:
    """A whole server: the gateway's port and the console's."""
    ports = [free_port(), free_port()]
    config = directory / "counterfoil.toml"
    config.write_text(
        f"[gateway]\nport = {ports[0]}\n[console]\nport = {ports[1]}\n"
        f'[[sources]]\nname = "website"\ntoken_sha256 = ["{token_sha256(TOKEN)}"]\n'
        '[[destinations]]\nname = "lake"\ntype = "delta"\n'
    )
    process = subprocess.Popen(
        [sys.executable, "-m", "counterfoil", "serve", "--config", str(config)],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    try:
        _await(lambda: httpx.get(f"http://127.0.0.1:{ports[1]}/readyz").status_code == 200)
        yield ports[0], ports[1]
    finally:
        process.terminate()
        process.wait(20)


def _await_delivery(console_port: int) -> None:
    """Return when nothing waits, so that no round pays for the one before."""

    def is_done() -> bool:
        status = httpx.get(f"http://127.0.0.1:{console_port}/api/status").json()
        is_settled = all(writer["written"] == writer["settled"] for writer in status["writers"])
        return is_settled and not any(destination["pending"] for destination in status["destinations"])

    _await(is_done)


def _await(is_so: Callable[[], bool]) -> None:
    deadline = time.monotonic() + READY_SECONDS
    while time.monotonic() < deadline:
        try:
            if is_so():
                return
        except httpx.TransportError:
            pass
        time.sleep(0.1)
    raise TimeoutError("the server did not get there")


if __name__ == "__main__":
    run()
