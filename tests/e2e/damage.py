"""Rounds of damage: a file of a server that stands still is damaged at random, and the server must live with it.

`make damage ARGS=--rounds=50` plays it for long. Each round begins with a copy of the same directory: rows that were
delivered, repeats of some of them, and rows that were acknowledged when the server was killed and are not delivered
yet. One file of it is damaged: a bit flipped, a block zeroed, the end cut off, all of it gone. Then:

    - the server starts, and takes rows;
    - where the pipeline is held, `counterfoil rebuild` mends it; where a destination refuses by name, its file is
      brought back, as from a backup;
    - every row lies in the table once, but for rows of bytes that were damaged: these are told (damage in the books, or
      a difference of the audit), and never lie there twice.
"""

from __future__ import annotations

import argparse
import random
import shutil
import subprocess
import tempfile
from collections import Counter
from collections.abc import Set
from pathlib import Path

import httpx
import msgspec
import pyarrow as pa
from deltalake.exceptions import DeltaError

from tests.e2e.server import TOKEN, Server, clean_environment, command, until

DELIVERED, WAITING, LATER = 200, 60, 10
SENT = frozenset(
    (*(f"old-{number}" for number in range(DELIVERED)), *(f"waiting-{number}" for number in range(WAITING)))
)
HOWS = ("flip", "zero", "cut", "missing")


class Outcome(msgspec.Struct, frozen=True):
    """What a round came to."""

    what: str
    """The damage: how, and which file."""
    was_held: bool
    was_refused: bool
    damages: int
    """Damages of the queue that the books tell."""
    missing: int
    """Rows that are not in the table, and told."""


def prepared(directory: Path) -> Path:
    """The data directory of a server as every round begins with it."""
    server = Server(directory, workers=2)
    server.start()
    for start in range(0, DELIVERED, 20):
        send(server, [f"old-{number}" for number in range(start, start + 20)])
    send(server, [f"old-{number}" for number in range(30)])
    server.settle_down()
    assert server.stop() == 0
    process = subprocess.Popen(
        command("gateway", "--config", str(server.config)), cwd=directory, env=clean_environment(),
        stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
    )  # fmt: skip
    until(lambda: server.gateway("/readyz") == 200, "the gateway is ready")
    for start in range(0, WAITING, 10):
        send(server, [f"waiting-{number}" for number in range(start, start + 10)])
    process.kill()
    process.wait()
    return directory / "data"


def send(server: Server, names: list[str]) -> None:
    """Send rows, which must all be acknowledged."""
    rows = [{"event": "Purchase", "distinctId": name} for name in names]
    answer = httpx.post(f"{server.url}/batch", json={"token": TOKEN, "events": rows}, timeout=60).json()
    assert all(result["success"] for result in answer["results"]), "a server that is ready takes rows"


def damage(path: Path, how: str, chance: random.Random) -> None:
    """Damage a file."""
    data = bytearray(path.read_bytes())
    at = chance.randrange(max(len(data), 1))
    if how == "missing" or not data:
        path.unlink()
    elif how == "cut":
        path.write_bytes(data[:at])
    else:
        if how == "flip":
            data[at] ^= 1 << chance.randrange(8)
        else:
            data[at : at + 4096] = bytes(len(data[at : at + 4096]))
        path.write_bytes(data)


def candidates(data: Path) -> list[Path]:
    """Every file that may be damaged: locks hold nothing."""
    return sorted(path for path in data.rglob("*") if path.is_file() and path.name not in ("lock", "LOCK", "LOG"))


def play(whole: Path, directory: Path, chance: random.Random, sent: Set[str]) -> Outcome:
    """One round on a copy of `whole`, which took these rows; fails when a promise is broken."""
    server = Server(directory, workers=2)
    data = directory / "data"
    shutil.copytree(whole, data, ignore=shutil.ignore_patterns("*.sock"))
    # Kinds of files first, then one of the kind: there are many of some.
    kinds: dict[tuple[str, str], list[Path]] = {}
    for path in candidates(data):
        kinds.setdefault((path.relative_to(data).parts[0], path.suffix or path.name.split("-")[0]), []).append(path)
    file = chance.choice(kinds[chance.choice(sorted(kinds))])
    how = chance.choice(HOWS)
    damage(file, how, chance)
    name = file.relative_to(data)
    was_held = was_refused = False
    try:
        server.start()
        send(server, [f"later-{number}" for number in range(LATER)])
        trouble = until(lambda: _trouble_or_quiet(server), f"quiet or trouble after {how} of {name}")
        if trouble == "held":
            was_held = True
            assert server.stop() == 0
            server.run("rebuild")
            server.start()
            trouble = until(lambda: _trouble_or_quiet(server), f"quiet after a rebuild for {how} of {name}")
        if trouble == "refused":
            was_refused = True
            assert server.stop() == 0
            shutil.copy(whole / name, file)
            server.start()
            trouble = until(lambda: _trouble_or_quiet(server), f"quiet after {name} came back")
        assert trouble == "quiet", trouble
        status = server.status()
        is_balanced = _is_balanced(server)
    finally:
        if server.process is not None:
            server.kill()
    expected = {*sent, *(f"later-{number}" for number in range(LATER))}
    missing = _check_rows(server, name, expected, status["damaged_frames"], is_balanced=is_balanced)
    return Outcome(f"{how} {name}", was_held, was_refused, status["damaged_frames"], missing)


def _trouble_or_quiet(server: Server) -> str | None:
    status = server.status()
    if any(process["state"] == "held" for process in status["processes"]):
        return "held"
    states = [destination["state"] for destination in status["destinations"]]
    if any(state.startswith("refused") for state in states):
        return "refused"
    is_settled = all(writer["settled"] == writer["written"] for writer in status["writers"])
    is_delivered = all(each["pending"] == 0 for each in status["destinations"])
    return "quiet" if is_settled and is_delivered and status["ledger"] is None else None


def _is_balanced(server: Server) -> bool:
    done = subprocess.run(
        command("audit"), cwd=server.directory, capture_output=True, text=True, timeout=120,
        env=clean_environment() | {"COUNTERFOIL_CONFIG": str(server.config)},
    )  # fmt: skip
    assert done.returncode in (0, 1), done.stderr
    return done.returncode == 0


def _check_rows(server: Server, damaged: Path, expected: Set[str], damages: int, *, is_balanced: bool) -> int:
    names = _names_in_table(server)
    if names is None:
        # The rest of the table is for whoever reads around it, and the audit says so.
        assert damaged.suffix == ".parquet", f"{damaged}: the table can't be read"
        assert not is_balanced, f"{damaged}: the table can't be read, and nothing tells it"
        return 0
    twice = [name for name, count in names.items() if count > 1]
    assert not twice, f"{damaged}: {len(twice)} rows lie in the table twice, {twice[0]} for one"
    missing = expected - names.keys()
    assert not names.keys() - expected, f"{damaged}: rows in the table that nobody sent"
    if missing:
        told = f"{damaged}: {len(missing)} rows are missing, {min(missing)} for one"
        assert damaged.suffix in (".seg", ".parquet"), told
        assert damages or not is_balanced, f"{told}, and nothing tells it"
    return len(missing)


def _names_in_table(server: Server) -> Counter[str] | None:
    """How often each row lies in the table; None when a data file of it can't be read."""
    try:
        return Counter(row["distinct_id"] for row in server.rows())
    except (OSError, pa.ArrowException, DeltaError):
        return None


def main() -> None:
    """Play rounds and tell how each went."""
    parser = argparse.ArgumentParser(description="Damage files of a server that stands still; it must live with it.")
    parser.add_argument("--rounds", type=int, default=20)
    parser.add_argument("--seed", type=int, default=random.randrange(1_000_000))
    asked = parser.parse_args()
    print(f"seed {asked.seed}")
    directory = Path(tempfile.mkdtemp(prefix="counterfoil-damage-"))
    print(f"in {directory}, which stays when a promise is broken")
    whole = prepared(directory / "whole")
    chance = random.Random(asked.seed)
    for number in range(1, asked.rounds + 1):
        outcome = play(whole, directory / str(number), chance, SENT)
        words = (("held, rebuilt", outcome.was_held), ("refused", outcome.was_refused))
        told = [word for word, is_so in words if is_so]
        told.append(f"{outcome.damages} damages told, {outcome.missing} rows missing")
        print(f"round {number}: {outcome.what}: {', '.join(told)}", flush=True)
        shutil.rmtree(directory / str(number))
    shutil.rmtree(directory)


if __name__ == "__main__":
    main()
