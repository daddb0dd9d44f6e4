"""Copies of a data directory: one that goes on elsewhere, and one that is older than a table."""

from __future__ import annotations

import shutil
from collections import Counter
from pathlib import Path

import pytest

from tests.e2e.server import Server, running, until
from tests.e2e.test_rebuild import names_in, send

SLOW = "batch_seconds = 600"
BESIDE = """
[[destinations]]
name = "beside"
type = "delta"
path = "beside"
batch_seconds = 0.1
"""


def refused(server: Server, reason: str) -> None:
    """Wait until a destination is refused for this reason."""

    def told() -> bool:
        return any(reason in line["reason"] for line in server.log() if line["event"] == "deliver.refused")

    until(told, reason)


def test_a_copy_made_at_rest_goes_on_elsewhere(tmp_path: Path) -> None:
    """Stopped, copied and started in another place: what waited is delivered, repeats are known, the books balance."""
    here = Server(tmp_path / "here", destination=SLOW)
    first = [f"first-{number}" for number in range(20)]
    with running(here):
        send(here, *first)
        assert here.stop() == 0
    waiting = names_in(here.lake)
    assert waiting == Counter()

    there = Server(tmp_path / "there")
    shutil.copytree(here.directory / "data", there.directory / "data")
    with running(there):
        send(there, *first[:5], "later")
        there.settle_down()
        assert names_in(there.lake) == Counter([*first, "later"])
        (source,) = there.status()["sources"]
        assert (source["new"], source["duplicate"]) == (21, 5)
        there.run("audit")
        assert "lake       delivered" in there.run("trace", first[7])
        assert there.stop() == 0
    assert names_in(here.lake) == waiting


@pytest.mark.parametrize("is_started_first", [False, True])
def test_an_older_copy_beside_a_newer_table_is_rebuilt(tmp_path: Path, *, is_started_first: bool) -> None:
    """Put back and rebuilt, at once or after it took rows: each row is in the newer table once."""
    server = Server(tmp_path / "server", more=BESIDE)
    data, beside = server.directory / "data", server.directory / "beside"
    with running(server):
        send(server, "before-1", "before-2")
        server.settle_down()
        assert server.stop() == 0
    shutil.copytree(data, tmp_path / "copy")
    lost = [f"lost-{number}" for number in range(4)]
    with running(server):
        for name in lost:
            send(server, name)
        server.settle_down()
        assert server.stop() == 0
    shutil.rmtree(data)
    shutil.copytree(tmp_path / "copy", data)
    new = [f"new-{number}" for number in range(8)]
    if is_started_first:
        with running(server):
            for name in new[:6]:
                send(server, name)
            refused(server, "is the last that was settled")
            until(
                lambda: server.status()["writers"][0]["settled"] == server.status()["writers"][0]["written"], "settled"
            )
            assert server.stop() == 0
        # As many groups are settled now as the table holds.
        with running(server):
            refused(server, "other rows of group 2 than were settled")
            assert names_in(beside) == Counter(["before-1", "before-2", *lost])
            assert server.stop() == 0
    server.run("rebuild", "--anyway")
    with running(server):
        send(server, *new, lost[0])
        server.settle_down()
        server.run("audit")
        assert names_in(beside) == Counter(["before-1", "before-2", *lost, *new])
        # What only another table holds is known, and nobody has the row any more.
        assert names_in(server.lake) == Counter(["before-1", "before-2", *new])
        assert server.stop() == 0
