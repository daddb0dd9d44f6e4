"""Backfill the CDNOW purchases from their file, mend what was rejected, and compare the sums with those of the file.

Starts a server of its own in a temporary directory and leaves nothing behind. Exit status 0 only when every purchase
lies in the table once, its true repeats among them.
"""

from __future__ import annotations

import csv
import json
import subprocess
import sys
import tempfile
from decimal import Decimal
from pathlib import Path

from demo import BY_MONTH, COUNTERFOIL, Server, compare, months_of, read_purchases

MAPPING = Path(__file__).with_name("mapping.toml")
DAMAGED_EVERY = 5000
"""Every so many purchases one has a date that is none."""


def main() -> int:
    """Run the demo; the exit status."""
    with tempfile.TemporaryDirectory(prefix="counterfoil-demo-") as directory:
        server = Server(Path(directory))
        history = Path(directory) / "cdnow.csv"
        dates = write_history(history)
        (Path(directory) / "token").write_text(server.token)
        with server.running():
            print(f"$ counterfoil backfill {history.name} --mapping mapping.toml --dry-run --sample all")
            print(backfill(server, history, "--dry-run", "--sample", "all", status=1))
            print(f"$ counterfoil backfill {history.name} --mapping mapping.toml --to {server.url}")
            print(backfill(server, history, *target(server), status=1))
            rejected = Path(f"{history}.rejected.ndjson")
            mend(rejected, dates)
            print(f"{len(dates)} originals are mended in their place.\n\n$ counterfoil backfill {rejected.name} …")
            print(backfill(server, rejected, *target(server)))
            server.wait_until_delivered(sum(1 for _ in read_purchases()))
            print("$ counterfoil audit")
            print(server.run("audit"))
            in_table = [
                (month, purchases, Decimal(str(dollars)))
                for month, purchases, dollars in json.loads(server.run("query", BY_MONTH, "--json"))["rows"]
            ]
    return compare(in_table, months_of(read_purchases()), {"failed": 0, "broken": 0})


def write_history(path: Path) -> dict[int, str]:
    """The purchases as CSV, some with a damaged date; by line number the dates that were damaged."""
    dates: dict[int, str] = {}
    with path.open("w", newline="") as file:
        writer = csv.writer(file)
        for number, purchase in enumerate(read_purchases(), 1):
            if number == 1:
                writer.writerow(purchase)
            if number % DAMAGED_EVERY == 0:
                # The first line is the header's.
                dates[number + 1] = purchase["date"]
                purchase["date"] = purchase["date"].replace("-", "/")
            writer.writerow(purchase.values())
    return dates


def mend(rejected: Path, dates: dict[int, str]) -> None:
    """Put the right dates into the originals, as a person would with an editor."""
    entries = [json.loads(line) for line in rejected.read_text().splitlines()]
    for entry in entries:
        entry["original"]["date"] = dates[entry["line"]]
    rejected.write_text("".join(json.dumps(entry, separators=(",", ":")) + "\n" for entry in entries))


def target(server: Server) -> tuple[str, ...]:
    """Where to, and with which token."""
    return "--to", server.url, "--token-file", "token"


def backfill(server: Server, file: Path, *arguments: str, status: int = 0) -> str:
    """What the command prints."""
    done = subprocess.run(
        [COUNTERFOIL, "backfill", file.name, "--mapping", MAPPING, *arguments],
        cwd=server.directory, capture_output=True, text=True, check=False,
    )  # fmt: skip
    if done.returncode != status:
        raise SystemExit(f"counterfoil backfill: exit status {done.returncode}\n{done.stdout}{done.stderr}")
    return done.stdout


if __name__ == "__main__":
    sys.exit(main())
