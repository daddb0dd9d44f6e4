"""What is damaged on disk while the server stands still, and what the whole server makes of it when it starts again."""

from __future__ import annotations

import contextlib
import random
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest
import xxhash

from counterfoil.files import RealFiles
from counterfoil.queue.rolling import roll_idle
from counterfoil.queue.segment import SEGMENT_HEADER_BYTES
from tests.e2e import damage
from tests.e2e.server import TOKEN, WAIT_SECONDS, Server, command, running, until

FIRST, LATER = 40, 5


@pytest.fixture(scope="module")
def stopped(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The data directory of a server that delivered FIRST rows and was killed."""
    server = Server(tmp_path_factory.mktemp("stopped"))
    with running(server):
        for number in range(FIRST):
            send(server, f"first-{number}")
        server.rows_of(*(f"first-{number}" for number in range(FIRST)))
        server.settle_down()
        server.kill()
    return server.directory / "data"


@pytest.fixture
def server(stopped: Path, tmp_path: Path) -> Server:
    """A server that is not started yet, on a copy of that directory."""
    copy = Server(tmp_path / "server")
    shutil.copytree(stopped, copy.directory / "data", ignore=shutil.ignore_patterns("*.sock"))
    return copy


def send(server: Server, distinct_id: str) -> None:
    """Send one row, which must be acknowledged."""
    row = {"token": TOKEN, "event": "Purchase", "distinctId": distinct_id}
    assert httpx.post(f"{server.url}/track", json=row, timeout=60).json()["success"]


def send_later(server: Server) -> list[str]:
    """Send LATER more rows; their distinctIds."""
    names = [f"later-{number}" for number in range(LATER)]
    for name in names:
        send(server, name)
    return names


def first_names() -> list[str]:
    """The rows that `stopped` has."""
    return [f"first-{number}" for number in range(FIRST)]


def one(server: Server, pattern: str) -> Path:
    """The largest file of the data directory that fits."""
    return max((server.directory / "data").glob(pattern), key=lambda path: path.stat().st_size)


def flip(path: Path) -> bytes:
    """Change a bit in the middle; what the file holds then."""
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 0x10
    path.write_bytes(data)
    return bytes(data)


def held_reason(server: Server) -> str:
    """What the state says must be done for the pipeline."""

    def found() -> str | None:
        for process in server.status()["processes"]:
            if process["state"] == "held":
                return str(process["conditions"]["held"])
        return None

    return until(found, "the pipeline is held")


def quarantined(server: Server) -> list[bytes]:
    return [path.read_bytes() for path in (server.directory / "data" / "quarantine").glob("*.bytes")]


def test_with_a_damaged_ledger_rows_are_taken(server: Server) -> None:
    """The gateway goes on; the pipeline forms no group and says once what to do; so do state and audit."""
    flip(one(server, "ledger/*.log"))
    with running(server):
        send_later(server)
        reason = held_reason(server)
        assert "changes that were flushed are gone" in reason
        assert "counterfoil rebuild" in reason
        assert [line["reason"] for line in server.log() if line["event"] == "pipeline.held"] == [reason]
        assert len(server.rows()) == FIRST
        server.run("audit", status=1)


def test_an_id_that_nothing_tells_any_more(server: Server) -> None:
    """Without an id rows are taken and nothing is delivered; a rebuild finds the id in the table."""
    data = server.directory / "data"
    (data / "id").unlink()
    (data / "ledger.made").unlink()
    shutil.rmtree(data / "ledger")
    with running(server):
        later = send_later(server)
        assert "`id` is lost" in held_reason(server)
        assert len(server.rows()) == FIRST
        assert server.stop() == 0
    assert not (data / "id").exists()
    server.run("rebuild")
    with running(server):
        server.settle_down()
        assert sorted(row["distinct_id"] for row in server.rows()) == sorted([*first_names(), *later])
        server.run("audit")


@pytest.mark.parametrize("name", ["queue/1/lock", "queue/1/flushed"])
def test_what_no_process_can_open_is_named_at_the_start(server: Server, name: str) -> None:
    """Something else in the place of a file that a process of the server needs is one line, not a loop of restarts."""
    path = server.directory / "data" / name
    path.unlink()
    path.symlink_to(path.name)
    server.start(wait=False)
    assert server.process is not None
    assert server.process.wait(WAIT_SECONDS) == 1
    server.stop()
    told = [line for line in server.log_path.read_text().splitlines() if not line.startswith("{")]
    assert len(told) == 1
    assert told[0].startswith(
        f"counterfoil: {path}: Too many levels of symbolic links; everything in the data directory"
    )


@contextlib.contextmanager
def pipeline_alone(server: Server) -> Iterator[None]:
    """`counterfoil pipeline`, until the end of the block; its console answers."""
    half = subprocess.Popen(
        command("pipeline", "--config", str(server.config)), stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
    )
    try:
        until(lambda: server.console("/livez") == 200, "the console answers")
        yield
    finally:
        half.terminate()
        assert half.wait(WAIT_SECONDS) == 0


def complaint_of_audit(server: Server) -> str:
    """What `audit` says of a queue that it can't read."""
    done = subprocess.run(
        command("audit", "--config", str(server.config)),
        capture_output=True,
        text=True,
        timeout=WAIT_SECONDS,
        check=False,
    )
    assert done.returncode == 1
    return done.stderr


def test_what_the_pipeline_can_not_open_holds_it(server: Server) -> None:
    """It does nothing until somebody acts: the page tells the file, and a command does in one line."""
    segment = one(server, "queue/1/*.seg")
    segment.unlink()
    segment.symlink_to("nowhere")
    with pipeline_alone(server):
        assert held_reason(server).startswith(f"{segment}: No such file or directory; everything in the data directory")
        assert complaint_of_audit(server) == f"counterfoil: {segment}: No such file or directory\n"


def test_a_newer_segment_that_is_closed_holds_the_pipeline(server: Server) -> None:
    """What a newer version wrote is refused in one line, also where no writer looks at it."""
    segment = one(server, "queue/1/*.seg")
    assert roll_idle(segment.parent, RealFiles(), server.directory / "quarantine", lambda: 0)
    data = bytearray(segment.read_bytes())
    data[16] += 1
    data[8:16] = xxhash.xxh3_64_intdigest(data[:8] + data[16:SEGMENT_HEADER_BYTES]).to_bytes(8, "little")
    segment.write_bytes(data)
    with pipeline_alone(server):
        assert held_reason(server).startswith(f"{segment} has format version 2, this Counterfoil reads versions up to")
        assert complaint_of_audit(server) == f"counterfoil: {held_reason(server)}\n"


def test_what_stands_elsewhere_too_is_put_back(server: Server) -> None:
    """Small files and all of run/ may be damaged at once: what has a meaning is put back, the damage set aside."""
    data = server.directory / "data"
    damaged = [flip(data / name) for name in ("id", "queue/1/id", "ledger.made")]
    (data / "queue" / "1" / "flushed").write_bytes(b"\x17" * 128)
    for name in ("committed", "IDENTITY", "rocksdict-config.json"):
        (data / "ledger" / name).write_bytes(b"\xff" * 16)
    for file in (data / "run").rglob("*"):
        if file.is_file():
            file.write_bytes(b"\xff" * 1000)
    with running(server):
        server.rows_of(*send_later(server))
        server.settle_down()
        assert len(server.rows()) == FIRST + LATER
        server.run("audit")
    assert {damaged[0], damaged[1], b"\x17" * 128} <= set(quarantined(server))


def test_a_damaged_segment_of_what_was_delivered(server: Server) -> None:
    """Delivered rows stay, later ones follow, the server starts as if nothing were."""
    flip(one(server, "queue/1/*.seg"))
    with running(server):
        server.rows_of(*send_later(server))
        server.settle_down()
        assert len(server.rows()) == FIRST + LATER


def test_a_round_of_the_damage_campaign(stopped: Path, tmp_path: Path) -> None:
    """What `make damage` plays for long holds for one random damage as well."""
    outcome = damage.play(stopped, tmp_path / "round", random.Random(7), {f"first-{number}" for number in range(FIRST)})
    assert outcome.what
