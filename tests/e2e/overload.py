"""More than a server can take, for minutes: it stays small, refuses early, and loses nothing that it accepted.

`make overload ARGS="--minutes 5"` plays it for long. Hundreds of senders send as fast as they are answered and never
wait when they are refused, beside thousands of connections that say nothing, send slowly, read nothing, break off, or
abuse HTTP/2 (`overload_clients.py`). What must hold:

    a gateway worker stays under WORKER_BYTES_MAX, and CONNECTION_BYTES for each idle connection, all the time
    99 of 100 accepted requests are answered within ACCEPTED_SECONDS_MAX (`--no-times` where the machine is busy)
    what is refused is 429 or 500 with Retry-After, or 413 where it is over a limit
    every acknowledged row is delivered once, nothing that was not sent is, and the books balance
    no process dies, and nothing is logged as an error
    when it is over, the server answers as before
"""

from __future__ import annotations

import argparse
import multiprocessing
import os
import shutil
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Callable
from concurrent.futures import Future, ProcessPoolExecutor
from pathlib import Path

import httpx
import msgspec
import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from deltalake import DeltaTable

from tests.e2e.overload_clients import KINDS, ClientPlan, ClientResult, run_clients
from tests.e2e.server import Server, running, until

MIB = 1024 * 1024
WORKER_BYTES_MAX = 150 * MIB
CONNECTION_BYTES = 12 * 1024
"""What the HTTP server keeps of a connection that says nothing."""
ACCEPTED_SECONDS_MAX = 1.0
SAMPLE_SECONDS = 0.2
SETTLE_SECONDS = 1800.0

SENDERS = {"one": 60, "hundred": 60, "long": 40, "large": 24, "squeezed": 8, "endless": 2}
NUISANCES = {
    "slow head": 200,
    "slow body": 200,
    "slow reader": 150,
    "cut": 40,
    "half closed": 40,
    "rapid reset": 4,
    "endless headers": 4,
    "pings": 4,
    "held streams": 40,
}
IDLE = 10_000


class OverloadResult(msgspec.Struct, frozen=True):
    """What a run came to."""

    seconds: float
    connections: dict[str, int]
    statuses: dict[int, int]
    rows_accepted: int
    rows_in_table: int
    accepted_p50: float
    accepted_p99: float
    accepted_p99_by_kind: dict[str, float]
    refused_p99: float
    without_retry_after: int
    unforeseen: dict[str, int]
    worker_bytes_max: dict[str, int]
    lost: int
    twice: int
    errors: list[str]
    load_average: float
    """Of the machine, over the minute before the end of the load."""

    def report(self) -> str:
        """The run in lines."""
        sent = sum(self.statuses.values())
        opened = ", ".join(f"{count:,} {name}" for name, count in sorted(self.connections.items()))
        answered = ", ".join(f"{count:,} x {status or 'none'}" for status, count in sorted(self.statuses.items()))
        memory = ", ".join(f"{name} {peak / MIB:.0f} MiB" for name, peak in self.worker_bytes_max.items())
        kinds = ", ".join(f"{kind} {1000 * p99:.0f} ms" for kind, p99 in self.accepted_p99_by_kind.items())
        return "\n".join(
            (
                f"{self.seconds:.0f} s, load average {self.load_average:.1f} on {os.cpu_count()} cores",
                f"connections opened: {opened}",
                f"requests {sent:,}: {answered}",
                f"accepted in {1000 * self.accepted_p50:.0f} ms (p50), {1000 * self.accepted_p99:.0f} ms (p99); refused"
                f" in {1000 * self.refused_p99:.0f} ms (p99), {self.without_retry_after} without Retry-After",
                f"p99 of what was accepted, by kind: {kinds}",
                f"memory at most: {memory}",
                f"rows acknowledged {self.rows_accepted:,}, in the table {self.rows_in_table:,};"
                f" lost {self.lost}, twice {self.twice}",
            )
        )

    def broken(self, *, with_times: bool) -> list[str]:
        """The promises that did not hold."""
        bytes_max = WORKER_BYTES_MAX + CONNECTION_BYTES * self.connections.get("idle", 0) // len(self.worker_bytes_max)
        large = [name for name, peak in self.worker_bytes_max.items() if peak > bytes_max]
        checks = {
            f"memory of {', '.join(large)}": not large,
            "p99 of what was accepted": not with_times or self.accepted_p99 < ACCEPTED_SECONDS_MAX,
            "Retry-After": not self.without_retry_after,
            f"answers that no overload explains: {self.unforeseen}": not self.unforeseen,
            "acknowledged rows are delivered": not self.lost,
            "rows are delivered once": not self.twice,
            f"logged errors: {self.errors}": not self.errors,
            "something was accepted": self.rows_accepted > 0,
        }
        return [name for name, holds in checks.items() if not holds]


class Memory:
    """The most memory that each gateway worker had at any time that was looked at."""

    def __init__(self, pids: dict[str, int]) -> None:
        self.peaks = dict.fromkeys(pids, 0)
        self._pids = pids
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._look_on)

    def start(self) -> None:
        self._thread.start()

    def stop(self) -> None:
        self._stop.set()
        self._thread.join()

    def _look_on(self) -> None:
        while not self._stop.wait(SAMPLE_SECONDS):
            for name, pid in self._pids.items():
                self.peaks[name] = max(self.peaks[name], resident_bytes(pid))


def resident_bytes(pid: int) -> int:
    """What a process has in memory now; fails when it is gone."""
    for line in Path(f"/proc/{pid}/status").read_text().splitlines():
        if line.startswith("VmRSS:"):
            return int(line.split()[1]) * 1024
    raise AssertionError(f"process {pid} has ended")


def play(
    server: Server,
    seconds: float,
    senders: dict[str, int],
    nuisances: dict[str, int],
    *,
    processes: int = 2,
    progress: bool = False,
    is_enough: Callable[[], bool] = lambda: False,
) -> OverloadResult:
    """Send to a running server for so long, or until it is enough; then compare what was acknowledged with what lies in
    the table."""
    limits = httpx.get(f"{server.url}/limits", trust_env=False, timeout=60).json()
    workers = {each["name"]: int(each["pid"]) for each in server.status()["processes"] if "gateway" in each["name"]}
    plans = [
        ClientPlan(
            name=f"senders {number}",
            port=server.port,
            first_sender=1 + 10_000 * number,
            senders={kind: share for kind, count in senders.items() if (share := -(-count // processes))},
            body_bytes_max=limits["body_bytes_max"],
            rows_max=limits["rows_max"],
        )
        for number in range(processes)
    ]
    plans.append(ClientPlan(name="nuisances", port=server.port, first_sender=0, nuisances=nuisances))
    context = multiprocessing.get_context("spawn")
    memory = Memory(workers)
    with context.Manager() as manager, ProcessPoolExecutor(len(plans), mp_context=context) as pool:
        stop = manager.Event()
        began = time.monotonic()
        memory.start()
        try:
            futures: list[Future[ClientResult]] = [pool.submit(run_clients, plan, stop) for plan in plans]
            while time.monotonic() - began < seconds and not any(future.done() for future in futures):
                if is_enough():
                    break
                time.sleep(1)
                if progress:
                    print(f"\r{time.monotonic() - began:.0f} s, {memory.peaks}", end="", flush=True)
        finally:
            stop.set()
            results = [future.result() for future in futures]
            memory.stop()
        took = time.monotonic() - began
        load_average = os.getloadavg()[0]
    until(lambda: server.gateway("/readyz") == 200, "the gateway answers as before")
    assert {name: server.pid_of(name) for name in workers} == workers, "no worker died"
    return _result(server, took, load_average, results, memory.peaks)


def _result(
    server: Server, seconds: float, load_average: float, results: list[ClientResult], peaks: dict[str, int]
) -> OverloadResult:
    server.patience_seconds = SETTLE_SECONDS
    accepted = _numbers([run for result in results for run in result.accepted])
    server.settle_down(SETTLE_SECONDS)
    delivered = _delivered(server.lake)
    server.run("audit")
    by_kind = {kind: sorted(value for result in results for value in result.accepted_seconds[kind]) for kind in KINDS}
    good = sorted(value for values in by_kind.values() for value in values)
    bad = sorted(value for result in results for value in result.refused_seconds)
    statuses: Counter[int] = sum((result.statuses for result in results), Counter())
    connections: Counter[str] = sum((result.connections for result in results), Counter())
    unforeseen: Counter[str] = sum((result.unforeseen for result in results), Counter())
    return OverloadResult(
        seconds=seconds,
        connections=dict(connections),
        statuses=dict(statuses),
        rows_accepted=len(accepted),
        rows_in_table=len(delivered),
        accepted_p50=_quantile(good, 0.5),
        accepted_p99=_quantile(good, 0.99),
        accepted_p99_by_kind={kind: _quantile(values, 0.99) for kind, values in by_kind.items()},
        refused_p99=_quantile(bad, 0.99),
        without_retry_after=sum(result.without_retry_after for result in results),
        unforeseen=dict(unforeseen),
        worker_bytes_max=peaks,
        lost=len(np.setdiff1d(accepted, delivered)),
        twice=len(delivered) - len(np.unique(delivered)),
        errors=sorted({line["event"] for line in server.log() if line["level"] in ("error", "critical")}),
        load_average=load_average,
    )


def _numbers(runs: list[tuple[int, int]]) -> np.ndarray[tuple[int], np.dtype[np.int64]]:
    """The numbers of all rows of runs."""
    return np.concatenate(
        [np.arange(first, first + count, dtype=np.int64) for first, count in runs] or [np.empty(0, np.int64)]
    )


def _delivered(lake: Path) -> np.ndarray[tuple[int], np.dtype[np.int64]]:
    """The number of each row of the table."""
    column = DeltaTable(lake).to_pyarrow_table(columns=["distinct_id"])["distinct_id"]
    numbers = pc.cast(pc.utf8_slice_codeunits(column, 2), pa.int64())
    return np.asarray(numbers.to_numpy())


def _quantile(values: list[float], share: float) -> float:
    return values[int(share * (len(values) - 1))] if values else 0.0


def main() -> None:
    """Play and tell how it went; exit status 1 when a promise did not hold."""
    parser = argparse.ArgumentParser(description="Send more than a server can take, beside those who mean no good.")
    parser.add_argument("--minutes", type=float, default=3)
    parser.add_argument("--workers", type=int, default=1)
    parser.add_argument("--idle", type=int, default=IDLE, help="connections that say nothing")
    parser.add_argument("--only", help="one nuisance alone")
    parser.add_argument("--no-times", action="store_true", help="do not judge how long answers took")
    parser.add_argument("--directory", type=Path, help="where the server works; by default a temporary directory")
    asked = parser.parse_args()
    directory = Path(tempfile.mkdtemp(prefix="counterfoil-overload-", dir=asked.directory))
    nuisances = NUISANCES | {"idle": asked.idle}
    if asked.only is not None:
        nuisances = {asked.only: nuisances.get(asked.only, 0)}
    with running(Server(directory, workers=asked.workers)) as server:
        result = play(server, 60 * asked.minutes, SENDERS, nuisances, progress=True)
    print("\n" + result.report())
    broken = result.broken(with_times=not asked.no_times)
    if broken:
        raise SystemExit("\n".join(f"BROKEN: {name}" for name in broken))
    shutil.rmtree(directory)


if __name__ == "__main__":
    main()
