"""A long file of history through everything that can go wrong on its way, and every record accounted for.

`make backfill-campaign ARGS="--rows 10000000"` plays it for long: one NDJSON file with broken rows and repeats, sent
through a proxy that drops connections, while the sender and the whole server are killed again and again. At the end
every good row lies in the table exactly once, and every broken one in the rejected file with its line number.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import json
import random
import signal
import subprocess
import tempfile
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
from deltalake import DeltaTable

from tests.e2e.server import POLL_SECONDS, TOKEN, Server, clean_environment, command, running, until
from tests.ports import free_port

BROKEN_EVERY = 100
REPEATED_EVERY = 100
MEMORY_BYTES_MAX = 200 * 1024 * 1024


class CampaignResult(msgspec.Struct, frozen=True):
    """What a campaign came to."""

    records: int
    in_table: int
    rejected: int
    sender_kills: int
    server_kills: int
    dropped_connections: int
    seconds: float
    peak_sender_bytes: int


class DroppingProxy:
    """A TCP proxy in a thread of its own that cuts a share of the connections somewhere on the way."""

    def __init__(self, target_port: int, dropped_share: float, seed: int) -> None:
        self.port = free_port()
        self.dropped = 0
        self._target_port = target_port
        self._share = dropped_share
        self._chance = random.Random(seed)
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._run, daemon=True)
        self._ready = threading.Event()

    def start(self) -> None:
        self._thread.start()
        self._ready.wait()

    def stop(self) -> None:
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()

    def _run(self) -> None:
        asyncio.set_event_loop(self._loop)
        server = self._loop.run_until_complete(asyncio.start_server(self._serve, "127.0.0.1", self.port))
        self._ready.set()
        self._loop.run_forever()
        server.close()
        for task in asyncio.all_tasks(self._loop):
            task.cancel()
        self._loop.run_until_complete(asyncio.sleep(0))
        self._loop.close()

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with contextlib.suppress(OSError, asyncio.IncompleteReadError, asyncio.CancelledError):
            to_server, from_server = await self._answering()
            with contextlib.closing(from_server):
                await asyncio.gather(self._pass(reader, from_server, 0.5), self._pass(to_server, writer, 0.5))
        writer.close()

    async def _answering(self) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
        return await asyncio.open_connection("127.0.0.1", self._target_port, limit=1024 * 1024)

    async def _pass(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, part: float) -> None:
        """Hand bytes on. A request is some chunks: each is the last of its connection by a small chance."""
        try:
            while chunk := await reader.read(256 * 1024):
                if self._chance.random() < self._share * part:
                    self.dropped += 1
                    return
                writer.write(chunk)
                await writer.drain()
        finally:
            writer.close()


def write_history(path: Path, count: int) -> None:
    """`count` lines: one in a hundred lacks its event, one in a hundred repeats an earlier row to the letter."""
    with path.open("w") as file:
        for number in range(1, count + 1):
            file.write(json.dumps(record(number)) + "\n")


def record(number: int) -> dict[str, Any]:
    """The record of a line; what it holds follows from its number."""
    if number % BROKEN_EVERY == 0:
        return {"distinctId": f"d{number}", "userId": f"u{number % 9973}"}
    source = number - 50 if is_repeat(number) else number
    return {
        "event": "Purchase",
        "distinctId": f"d{source}",
        "userId": f"u{source % 9973}",
        "eventProperties": {"amount": source % 1000 / 4, "sku": f"sku-{source % 5000}", "first": source % 2 == 0},
    }


def is_repeat(number: int) -> bool:
    """Whether a line repeats the one 50 lines before."""
    return number % REPEATED_EVERY == 77


def play(directory: Path, rows: int, sender_kills: int, server_kills: int, seed: int, share: float) -> CampaignResult:
    """One campaign; fails when a promise is broken."""
    chance = random.Random(seed)
    history = directory / "history.ndjson"
    write_history(history, rows)
    (directory / "token").write_text(TOKEN)
    server = Server(directory / "server", workers=2)
    proxy = DroppingProxy(server.port, share, seed)
    proxy.start()
    began = time.monotonic()
    kills = ["sender"] * sender_kills + ["server"] * server_kills
    chance.shuffle(kills)
    # Kills are spread over the file by what is confirmed, not by time, so that a fast machine dies as often.
    marks = sorted(chance.randrange(rows * 95 // 100) for _ in kills)
    # So many requests that there is a moment for each kill.
    batch_rows = max(10, min(1000, rows // 1000))
    peak = 0
    with running(server):
        sender = _sender(history, directory, proxy.port, batch_rows)
        for mark, kill in zip(marks, kills, strict=True):
            _until_confirmed(history, mark, sender)
            if kill == "sender":
                peak = max(peak, _memory_peak(sender))
                sender.kill()
                sender.wait()
                sender = _sender(history, directory, proxy.port, batch_rows)
            else:
                server.kill()
                server.start()
        while sender.poll() is None:
            peak = max(peak, _memory_peak(sender))
            time.sleep(POLL_SECONDS)
        assert sender.returncode == 1, (directory / "sender.log").read_text()[-2000:]
        assert peak < MEMORY_BYTES_MAX, f"the sender took {peak} bytes"
        seconds = time.monotonic() - began
        status = json.loads(_said(directory, "backfill", "--status", str(history), "--json"))
        assert status["is_complete"], status
        assert status["accepted"] + status["rejected"] == rows, status
        until(lambda: server.settle_down() or None, "everything delivered", 600)
        in_table = _check_table(server, rows)
        rejected = _check_rejected(history, rows)
        server.run("audit")
        assert server.stop() == 0
    proxy.stop()
    return CampaignResult(rows, in_table, rejected, sender_kills, server_kills, proxy.dropped, seconds, peak)


def _sender(history: Path, directory: Path, port: int, batch_rows: int) -> subprocess.Popen[bytes]:
    arguments = ["backfill", str(history), "--to", f"http://127.0.0.1:{port}", "--token-file", str(directory / "token")]
    arguments += ["--batch-rows", str(batch_rows)]
    with (directory / "sender.log").open("ab") as log:
        return subprocess.Popen(command(*arguments), env=clean_environment(), stdout=log, stderr=log)


def _memory_peak(sender: subprocess.Popen[bytes]) -> int:
    """The most memory that it has had, in bytes; 0 when it has just ended.

    Not what `wait4` tells: that begins with what the process had that started it.
    """
    try:
        told = Path(f"/proc/{sender.pid}/status").read_text()
    except FileNotFoundError:
        return 0
    _, _, peak = told.partition("VmHWM:")
    return int(peak.split(None, 1)[0]) * 1024 if peak else 0


def _until_confirmed(history: Path, records: int, sender: subprocess.Popen[bytes]) -> None:
    journal = Path(f"{history}.backfill")

    def reached() -> bool:
        assert sender.poll() is None, "the sender ended by itself"
        return journal.exists() and _last_confirmed(journal) >= records

    until(reached, f"{records} records confirmed", 600)


def _last_confirmed(journal: Path) -> int:
    """The last record of the journal's last whole line; cheap enough to ask again and again."""
    with journal.open("rb") as file:
        file.seek(max(0, journal.stat().st_size - 4096))
        lines = file.read().split(b"\n")[:-1]
    found = json.loads(lines[-1]) if lines else {}
    return int(found.get("last", 0))


def _said(directory: Path, *arguments: str) -> str:
    done = subprocess.run(command(*arguments), cwd=directory, env=clean_environment(), capture_output=True, check=True)
    return done.stdout.decode()


def _check_table(server: Server, rows: int) -> int:
    """Every good row once, with its content; nothing else."""
    expected = {number for number in range(1, rows + 1) if number % BROKEN_EVERY and not is_repeat(number)}
    table = DeltaTable(server.lake).to_pyarrow_dataset()
    seen = np.zeros(rows + 1, np.uint8)
    for batch in table.to_batches(columns=["distinct_id", "user_id", "event_properties"]):
        for distinct_id, user_id, properties in zip(*(column.to_pylist() for column in batch.columns), strict=True):
            number = int(distinct_id[1:])
            seen[number] += 1
            sent = record(number)
            assert user_id == sent["userId"]
            assert json.loads(properties) == sent["eventProperties"]
    found = set(np.flatnonzero(seen).tolist())
    assert not expected - found, f"{len(expected - found)} rows are missing"
    assert not found - expected, f"{len(found - expected)} rows were never sent"
    assert seen.max() == 1, "a row lies in the table more than once"
    return len(found)


def _check_rejected(history: Path, rows: int) -> int:
    """Every broken row once, with its line number and its original."""
    expected = {number: record(number) for number in range(BROKEN_EVERY, rows + 1, BROKEN_EVERY)}
    found: dict[int, Any] = {}
    for entry in _lines(Path(f"{history}.rejected.ndjson")):
        assert entry["line"] not in found, f"line {entry['line']} stands there twice"
        found[entry["line"]] = entry["original"]
    assert found == expected
    return len(found)


def _lines(path: Path) -> Iterator[Any]:
    with path.open("rb") as file:
        for line in file:
            yield json.loads(line)


def main() -> None:
    """Play one campaign and tell what it came to."""
    parser = argparse.ArgumentParser(description="A backfill through a dropping proxy, with sender and server killed.")
    parser.add_argument("--rows", type=int, default=1_000_000)
    parser.add_argument("--sender-kills", type=int, default=20)
    parser.add_argument("--server-kills", type=int, default=5)
    parser.add_argument("--dropped", type=float, default=0.01)
    parser.add_argument("--seed", type=int, default=random.randrange(1_000_000))
    asked = parser.parse_args()
    print(f"seed {asked.seed}", flush=True)
    signal.signal(signal.SIGTERM, lambda *_: exit(1))
    with tempfile.TemporaryDirectory(prefix="counterfoil-backfill-") as directory:
        result = play(Path(directory), asked.rows, asked.sender_kills, asked.server_kills, asked.seed, asked.dropped)
    print(
        f"{result.records:,} records: {result.in_table:,} rows in the table, each once; {result.rejected:,} rejected, "
        f"each with its line; sender killed {result.sender_kills} times, server {result.server_kills} times, "
        f"{result.dropped_connections:,} connections dropped; {result.seconds:.0f} s, "
        f"{result.records / result.seconds:,.0f} records/s; the sender's memory at most "
        f"{result.peak_sender_bytes / 1024 / 1024:.0f} MiB"
    )


if __name__ == "__main__":
    main()
