"""The process is ended at each point between two steps, and the next life finds every row exactly once."""

from __future__ import annotations

import os
import random
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from counterfoil import failpoints
from tests.destinations.lake import data_files, newest_entry, read, table
from tests.pipeline.delivering import new_ids, one_life

FRAMES = 9

POINTS = [
    "delta.created",
    "deliver.before",
    "delta.before_files",
    "delta.files_flushed",
    "delta.delivery_committed",
    "delta.delivery_flushed",
    "deliver.before_cursor",
    "deliver.after_cursor",
    "delta.merge_written",
    "delta.merge_committed",
    "delta.merge_flushed",
    "delta.checkpoint_made",
    "delta.checkpoint_flushed",
    "delta.log_cleaned",
    "delta.files_removed",
]


def die_at(root: Path, points: str) -> int:
    """A life that ends at these failpoints; its exit status."""
    command = [sys.executable, "-m", "tests.pipeline.delivering", str(root), str(FRAMES)]
    environment = os.environ | {failpoints.VARIABLE: points}
    return subprocess.run(command, env=environment, check=False).returncode


def assert_all_is_there_once(root: Path) -> None:
    """A life to the end, and then: each new row once in the table, nothing left over, the books balanced."""
    books = one_life(root, FRAMES)
    ids = [row["distinct_id"] for row in read(root)]
    assert ids == [each for frame in range(FRAMES) for each in new_ids(frame)]
    (destination,) = books.destinations
    assert (destination.routed, destination.delivered, destination.dead) == (len(ids), len(ids), 0)
    (source,) = books.sources
    assert source.accepted == FRAMES * 5
    assert source.new + source.duplicate == source.accepted
    named = {str(uri).rsplit("/lake/", 1)[1] for uri in table(root).file_uris()}
    assert named <= data_files(root)


@pytest.mark.parametrize("point", POINTS)
def test_the_next_life_delivers_each_row_once(tmp_path: Path, point: str) -> None:
    """Ended at a point, the pipeline leaves nothing that the next life can't make good."""
    when = 1 if point == "delta.created" else 2  # A table is made once; everything else is met in full swing.
    assert die_at(tmp_path, f"{point}={when}") == -signal.SIGKILL
    assert_all_is_there_once(tmp_path)


def test_a_life_with_nothing_to_do_changes_nothing(tmp_path: Path) -> None:
    """Once all is delivered, starting again adds no row and no count."""
    books = one_life(tmp_path, FRAMES)
    files = data_files(tmp_path)
    assert one_life(tmp_path, FRAMES) == books
    assert data_files(tmp_path) <= files


@pytest.mark.parametrize("torn", [b"", bytes(200)], ids=["empty", "zeros"])
@pytest.mark.parametrize("point", ["delta.delivery_committed=3", "delta.merge_committed=2", "delta.created"])
def test_a_power_cut_before_the_flush_of_the_log(tmp_path: Path, point: str, torn: bytes) -> None:
    """What was committed and not flushed may be gone with the power: its rows come again, once."""
    assert die_at(tmp_path, point) == -signal.SIGKILL
    newest_entry(tmp_path).write_bytes(torn)
    assert_all_is_there_once(tmp_path)
    assert len(list((tmp_path / "quarantine").glob("*.json"))) == 1


def test_a_power_cut_before_the_flush_of_a_checkpoint(tmp_path: Path) -> None:
    """A checkpoint that was made and not flushed replaces nothing yet."""
    assert die_at(tmp_path, "delta.checkpoint_made=2") == -signal.SIGKILL
    for path in (tmp_path / "lake" / "_delta_log").glob("*checkpoint*"):
        if path.name == "_last_checkpoint" or path == max(newest_entry(tmp_path).parent.glob("*.checkpoint.parquet")):
            path.write_bytes(b"")
    assert_all_is_there_once(tmp_path)


def test_many_lives_end_at_points_picked_at_random(tmp_path: Path) -> None:
    """However often it is ended, and wherever, the last life has everything once."""
    picks = random.Random(20261124)
    for _ in range(6):
        points = ",".join(f"{point}={picks.randint(1, 6)}" for point in picks.sample(POINTS, 3))
        die_at(tmp_path, points)
    assert_all_is_there_once(tmp_path)
