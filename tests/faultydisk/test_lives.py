from __future__ import annotations

import subprocess
import sys

import pytest


def lives(*arguments: str) -> tuple[int, str]:
    """Lives on a faulty disk, in a process that has no threads yet: exit status, and what it says."""
    done = subprocess.run(
        (sys.executable, "-m", "tests.faultydisk.lives", *arguments), capture_output=True, text=True, timeout=1200
    )
    if done.returncode == 3:
        pytest.skip(f"needs FUSE and the right to mount: {done.stdout}")
    return done.returncode, done.stdout + done.stderr


def test_queue_ledger_and_table_lose_nothing_in_a_power_cut() -> None:
    """Cut at any operation, also while the cut before is mended: what was acknowledged is in the table, once."""
    status, said = lives("--cuts", "6", "--seed", "11")
    assert status == 0, said


def test_a_queue_that_acknowledges_before_the_flush_is_found_out() -> None:
    """The same lives on a queue that flushes nothing end with rows that are missing."""
    status, said = lives("--cuts", "12", "--seed", "3", "--lie")
    assert status == 1, said
    assert "missing=['life" in said or "the life" in said
