"""The gateway on one core, beside its floors: durable rows and requests a second, p99, memory (design.md section 7).

    python -m bench gateway

The worker is pinned to the first core, wrk to the last. The floors are measured in turns with it, on the worker's core:
Granian answering a constant after reading the body, and `write` + `fdatasync` of the same bytes in writes of the size
that the worker's flushes had. Of each figure the best of some rounds counts: what disturbs a run makes it slower only.

It needs wrk (Debian: apt-get install wrk).
"""

from __future__ import annotations

import os
import shutil
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Collection, Iterator
from contextlib import contextmanager
from pathlib import Path

import msgspec

from bench.queue import floor
from bench.server import TOKEN, Figures
from counterfoil.gateway.tuning import worker_environment

CORES = sorted(os.sched_getaffinity(0))
ROUNDS = 3
SECONDS = 4
CONNECTIONS = 64
MIB = 1024 * 1024

MEMORY_MIB_MAX = 150
P99_MS_MAX = 15.0


class Load(msgspec.Struct, frozen=True):
    """What wrk sends."""

    path: str
    row_count: int
    """Of a request; 0 where the row is the request."""
    body_count: int
    connections: int = CONNECTIONS
    delay_ms: float = 0.0
    row_bytes: int = 0
    first_id: int = 0


TRACK = Load("/api/v1/track", 0, 20_000, connections=256)
ROWS_100 = Load("/api/v1/batch", 100, 500)
ROWS_1000 = Load("/api/v1/batch", 1000, 64)
LARGE = Load("/api/v1/batch", 10_000, 2, connections=24, row_bytes=1400)


class Result(msgspec.Struct, frozen=True):
    """What wrk measured, and what the server did meanwhile."""

    requests_a_second: float
    p50_ms: float
    p99_ms: float
    refused: int
    """Answers of 400 and above."""
    cpu_us: float
    """Of the server's process, a request."""
    flush_bytes: int
    """Of a flush, on average."""
    row_bytes: float
    """In the queue, of a row."""


class Running:
    """A server in a process of its own, on the first core."""

    def __init__(self, port: int, process: subprocess.Popen[str]) -> None:
        self.port = port
        self._process = process

    def figures(self) -> Figures:
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._process.stdin.write("\n")
        self._process.stdin.flush()
        return msgspec.json.decode(self._process.stdout.readline(), type=Figures)

    def load(self, load: Load, seconds: int = SECONDS) -> Result:
        before = self.figures()
        requests, duration_us, _, errors, refused, p50_us, p99_us = wrk(self.port, load, seconds, {CORES[-1]})
        after = self.figures()
        assert not errors, f"{errors} connections failed"
        flushes = after.flush_count - before.flush_count
        flushed = after.flushed_bytes - before.flushed_bytes
        return Result(
            requests_a_second=requests / duration_us * 1e6,
            p50_ms=p50_us / 1000,
            p99_ms=p99_us / 1000,
            refused=refused,
            cpu_us=(after.cpu_seconds - before.cpu_seconds) / max(1, requests) * 1e6,
            flush_bytes=flushed // max(1, flushes),
            row_bytes=flushed / max(1, after.row_count - before.row_count),
        )


class Best(msgspec.Struct):
    """The best of each in some rounds."""

    constant: Result
    track: Result
    hundred: Result
    thousand: Result
    floor_bytes: float
    """A second, by `write` + `fdatasync` alone."""


def run() -> None:
    """Print every figure with its floor and what is expected of it."""
    if shutil.which("wrk") is None:
        print("gateway: left out; it needs wrk (Debian: apt-get install wrk)")
        return
    with tempfile.TemporaryDirectory(dir=os.environ.get("BENCH_DIR"), prefix="bench-gateway-") as name:
        directory = Path(name)
        with started("constant") as constant, started("gateway", directory) as gateway:
            for server in (constant, gateway):
                server.load(TRACK, 1)
            best = _rounds(constant, gateway, directory)
            _print_rates(best)
            _print_latency(gateway, best.hundred)
            memory = gateway.figures().memory_bytes_max
        with started("gateway", directory / "large") as gateway:
            large = gateway.load(LARGE, 2 * SECONDS)
            _print_memory(memory, gateway.figures().memory_bytes_max, large)


def _rounds(constant: Running, gateway: Running, directory: Path) -> Best:
    loads = ((constant, TRACK), (gateway, TRACK), (gateway, ROWS_100), (gateway, ROWS_1000))
    results: list[list[Result]] = []
    floors = []
    for _ in range(ROUNDS):
        results.append([server.load(load) for server, load in loads])
        floors.append(_floor(directory, results[-1][-1].flush_bytes))
    constant_best, track, hundred, thousand = (max(found, key=_rate) for found in zip(*results, strict=True))
    return Best(constant_best, track, hundred, thousand, max(floors))


def _rate(result: Result) -> float:
    return result.requests_a_second


def _print_rates(best: Best) -> None:
    constant, track = best.constant.requests_a_second, best.track.requests_a_second
    rows_1000, rows_100 = 1000 * best.thousand.requests_a_second, 100 * best.hundred.requests_a_second
    floor_rows = best.floor_bytes / best.thousand.row_bytes
    print(
        f"floor: {floor_rows:,.0f} rows/s by write + fdatasync, {best.thousand.flush_bytes:,} bytes each "
        f"({best.floor_bytes / 1e6:,.0f} MB/s)"
    )
    print(f"floor: {constant:,.0f} requests/s by Granian's constant answer, {best.constant.cpu_us:.1f} µs of CPU each")
    _print("1000 rows a request", f"{rows_1000:,.0f} rows/s", rows_1000 / floor_rows, 0.40, "the flush floor")
    _print("100 rows a request", f"{rows_100:,.0f} rows/s", rows_100 / rows_1000, 0.80, "the figure at 1000")
    _print("/track", f"{track:,.0f} requests/s", track / constant, 0.60, "the constant answer")
    print(
        f"CPU: a row {best.thousand.cpu_us / 1000:.2f} µs at 1000, {best.hundred.cpu_us / 100:.2f} µs at 100; "
        f"a /track {best.track.cpu_us:.1f} µs"
    )


def _print_latency(gateway: Running, saturated: Result) -> None:
    mean_ms = CONNECTIONS / (saturated.requests_a_second / 2) * 1000
    results: list[Result] = []
    for _ in range(ROUNDS):
        # A connection pauses for what its requests leave of its share of half the load.
        delay_ms = max(1.0, mean_ms - (results[-1].p50_ms if results else saturated.p50_ms / 4))
        results.append(gateway.load(msgspec.structs.replace(ROWS_100, delay_ms=delay_ms)))
    best = min(results, key=lambda one: one.p99_ms)
    share = best.requests_a_second / saturated.requests_a_second
    print(
        f"p99 at {share:.0%} of the load, 100 rows a request: {best.p99_ms:.1f} ms, p50 {best.p50_ms:.1f} ms "
        f"(expected under {P99_MS_MAX:.0f} ms)"
    )


def _print_memory(memory: int, large_memory: int, large: Result) -> None:
    print(
        f"worker's memory: {memory / MIB:.0f} MiB after all of this; {large_memory / MIB:.0f} MiB with "
        f"{LARGE.connections} connections sending {LARGE.row_count:,} rows of {LARGE.row_bytes} bytes each, "
        f"{large.refused} of them over its budget (expected under {MEMORY_MIB_MAX} MiB)"
    )


def _print(what: str, figure: str, ratio: float, expected: float, of: str) -> None:
    print(f"{what}: {figure} = {ratio:.2f} x {of} (expected {expected:.2f})")


def _floor(directory: Path, flush_bytes: int) -> float:
    """Bytes a second of write and flush on the worker's core."""
    mine = os.sched_getaffinity(0)
    os.sched_setaffinity(0, {CORES[0]})
    try:
        return floor(directory, flush_bytes, SECONDS / 2)
    finally:
        os.sched_setaffinity(0, mine)


def free_port() -> int:
    """A port of loopback that nobody listens on."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


@contextmanager
def started(kind: str, directory: Path | None = None) -> Iterator[Running]:
    port = free_port()
    process = subprocess.Popen(
        [sys.executable, "-m", "bench.server", kind, str(port), *([str(directory)] if directory else [])],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        env=worker_environment(os.environ) if kind == "gateway" else None,
        preexec_fn=lambda: os.sched_setaffinity(0, {CORES[0]}),  # noqa: PLW1509 (no thread runs here)
    )
    assert process.stdin is not None
    assert process.stdout is not None
    try:
        assert process.stdout.readline() == "listening\n"
        yield Running(port, process)
    finally:
        process.stdin.close()
        status = process.wait(20)
        process.stdout.close()
        assert status == 0, f"the {kind} server ended with {status}"


def wrk(port: int, load: Load, seconds: int, cores: Collection[int]) -> list[int]:
    """What `done` in send.lua prints of a load, by a wrk on these cores."""
    environment = {
        "BENCH_PATH": load.path,
        "BENCH_TOKEN": TOKEN,
        "BENCH_NOW_MS": str(int(time.time() * 1000)),
        "BENCH_ROWS": str(load.row_count),
        "BENCH_BODIES": str(load.body_count),
        "BENCH_FIRST_ID": str(load.first_id),
        "BENCH_ROW_BYTES": str(load.row_bytes),
        "BENCH_DELAY_MS": str(round(load.delay_ms)),
    }
    done = subprocess.run(
        [
            "wrk",
            "-t1",
            f"-c{load.connections}",
            f"-d{seconds}",
            "--timeout",
            "30s",
            "-s",
            Path(__file__).with_name("send.lua"),
            f"http://127.0.0.1:{port}",
        ],
        env=os.environ | environment,
        check=True,
        capture_output=True,
        text=True,
        preexec_fn=lambda: os.sched_setaffinity(0, cores),
    )
    (result,) = [line for line in done.stdout.splitlines() if line.startswith("RESULT ")]
    return [int(number) for number in result.split()[1:]]


if __name__ == "__main__":
    run()
