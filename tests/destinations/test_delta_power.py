from __future__ import annotations

import shutil
from pathlib import Path
from random import Random
from typing import Any

import pytest

from counterfoil.errors import DestinationDown
from tests.destinations.lake import data_files, lake, seqs
from tests.destinations.making import ROWS_A_GROUP, delivery
from tests.destinations.power import PowerCut, PowerFiles
from tests.faults.files import ANY, FaultyFiles

GROUPS = 5
SETTINGS: dict[str, Any] = {"merge_commits": 2, "keep_hours": 0}


def deliver_rest(root: Path, files: PowerFiles | FaultyFiles | None, acknowledged: list[int]) -> None:
    """One life that delivers what is missing up to GROUPS, with all upkeep; notes what was acknowledged."""
    destination = lake(root, files=files, **SETTINGS)
    held = destination.open()
    for group in range((held.last_group if held else 0) + 1, GROUPS + 1):
        destination.deliver(delivery(group, row_count=2))
        acknowledged.append(group)
        while destination.tend():
            pass
    destination.close()


def expected(groups: int) -> list[int]:
    return [group * ROWS_A_GROUP + place for group in range(1, groups + 1) for place in range(2)]


def operations(root: Path) -> int:
    """How many operations a whole life takes."""
    files = PowerFiles(root)
    deliver_rest(root, files, [])
    return files.operation_count


@pytest.mark.parametrize("part", range(4))
def test_a_power_cut_at_any_operation_loses_and_doubles_nothing(tmp_path: Path, part: int) -> None:
    """Whatever the disk kept of what was not flushed: what was acknowledged is there, and each row is there once."""
    count = operations(tmp_path / "whole")
    assert count > 40
    picks = Random(part)
    for cut_at in range(part, count, 4):
        for keep in (None, Random(picks.random())):
            before, after = tmp_path / "before", tmp_path / "after"
            acknowledged: list[int] = []
            files = PowerFiles(before, cut_at)
            with pytest.raises(PowerCut):
                deliver_rest(before, files, acknowledged)
            after.mkdir()
            files.after_cut(after, keep)

            destination = lake(after, **SETTINGS)
            held = destination.open()
            last = held.last_group if held else 0
            assert last >= max(acknowledged, default=0)
            assert seqs(after) == expected(last)
            destination.close()
            deliver_rest(after, None, [])
            assert seqs(after) == expected(GROUPS)
            shutil.rmtree(before, ignore_errors=True)
            shutil.rmtree(after)


def test_a_disk_that_fails_at_any_operation_is_down_and_then_goes_on(tmp_path: Path) -> None:
    """Each operation that fails makes the destination down, nothing else; opened anew it has each row once."""
    at = 0
    while True:
        at += 2
        root = tmp_path / str(at)
        files = FaultyFiles()
        files.break_down(ANY, at)
        try:
            deliver_rest(root, files, [])
        except DestinationDown:
            files.heal()
            deliver_rest(root, files, [])
            assert seqs(root) == expected(GROUPS)
            # What the broken life wrote and nobody names is gone.
            assert len(data_files(root)) < 12
            shutil.rmtree(root)
        else:
            break
    assert at > 40
