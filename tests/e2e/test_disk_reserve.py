"""A whole server on a small disk: refused at the reserve, and on again when what was delivered has gone."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest

from tests.e2e.server import TOKEN, Server, running, until
from tests.http_receiver import Receiver, Reply, http_receiver

DISK_MIB = 64
RESERVE_MIB = 20
ROWS = 400
FILL = "x" * 1000
HOOK = """
[[destinations]]
name = "hook"
type = "webhook"
url = "{url}"
secret = "whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLjPV"
batch_seconds = 0.1
"""


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A directory whose `data` is a file system of DISK_MIB; only root can mount one."""
    if os.geteuid() != 0:
        pytest.skip("mounting needs root")
    data = tmp_path / "data"
    data.mkdir(mode=0o700)
    options = f"size={DISK_MIB}m,mode=700"
    if subprocess.run(["mount", "-t", "tmpfs", "-o", options, "tmpfs", data], capture_output=True).returncode:
        pytest.skip("mounting is not allowed here, not even to root")
    yield tmp_path
    subprocess.run(["umount", "--lazy", data], check=True)


def made(directory: Path, receiver: Receiver) -> Server:
    """A server that keeps nothing longer than it must."""
    server = Server(directory, queue="segment_bytes = 1048576\nretention_days = 0", more=HOOK.format(url=receiver.url))
    reserve = f"reserve_bytes = {RESERVE_MIB * 2**20}\nreserve_percent = 90"
    server.config.write_text(server.config.read_text().replace("reserve_bytes = 0", reserve))
    return server


def send(server: Server, number: int) -> httpx.Response:
    rows = [
        {"event": "e", "distinctId": f"{number}-{row}", "eventProperties": {"fill": FILL, "n": row}}
        for row in range(ROWS)
    ]
    return httpx.post(f"{server.url}/batch", json={"token": TOKEN, "events": rows}, timeout=60, trust_env=False)


def used(server: Server, part: str) -> int:
    disk: dict[str, int] = server.status()["disk"]["used_bytes"]
    return disk.get(part, 0)


def test_the_reserve_is_kept_and_comes_back(small_disk: Path) -> None:
    """A destination that is down fills the disk up to the reserve; nothing that was acknowledged is lost by it.

    Requests are refused then, to be sent again; ledger and table still have room; when the destination is back its
    segments go, and requests are taken again without a restart.
    """
    with http_receiver() as receiver:
        receiver.answer = lambda _: Reply(503)
        with running(made(small_disk, receiver)) as server:
            acknowledged: list[int] = []
            refused: httpx.Response | None = None
            for number in range(DISK_MIB * 4):
                answer = send(server, number)
                if answer.status_code != 200:
                    refused = answer
                    break
                acknowledged.append(number)
            assert refused is not None, "the disk was never full"
            assert refused.status_code == 500
            assert refused.json()["retryable"] is True
            assert int(refused.headers["retry-after"]) > 0
            assert len(acknowledged) > 20
            # The ledger knows all of it, and the lake holds it, on the same disk.
            expected = len(acknowledged) * ROWS

            def is_in_the_lake() -> bool:
                lake = next(each for each in server.status()["destinations"] if each["name"] == "lake")
                return bool(lake["delivered"] == expected)

            until(is_in_the_lake, "the lake holds every row that was acknowledged")
            assert not any(line["event"].endswith("_failed") for line in server.log())
            full = server.status()
            assert full["not_ready"] is not None
            receiver.answer = lambda _: Reply()
            until(lambda: send(server, 10_000).status_code == 200, "requests are taken again")
            acknowledged.append(10_000)
            server.settle_down()
            until(lambda: used(server, "queue") < 4 * 2**20, "the segments have gone")
            report = server.facts("audit")
            assert report["is_balanced"], report
            assert report["oldest_group"] > 1
            wanted = {f"{number}-{row}" for number in acknowledged for row in range(ROWS)}
            assert {row["distinct_id"] for row in server.rows()} == wanted
            assert {row["distinctId"] for row in receiver.taken_rows} == wanted
            [row] = server.facts("trace", "0-0")["rows"]
            assert row["position"] is None
            assert [each["state"] for each in row["deliveries"]] == ["delivered", "delivered"]
