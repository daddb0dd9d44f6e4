from __future__ import annotations

import os
import signal
import subprocess
import sys

import pytest

from counterfoil import failpoints


def test_a_named_point_ends_the_process_at_once_and_uncaught() -> None:
    """A process that reaches a point named in the environment dies by SIGKILL, the time it was told to."""
    program = "from counterfoil.failpoints import reach\nfor n in range(5): reach('here'); reach('there'); print(n)"
    environment = os.environ | {failpoints.VARIABLE: "elsewhere,here=3"}
    done = subprocess.run([sys.executable, "-u", "-c", program], env=environment, capture_output=True, text=True)
    assert done.returncode == -signal.SIGKILL
    assert done.stdout.split() == ["0", "1"]


def test_without_the_variable_a_point_does_nothing() -> None:
    """Reaching a point that nobody named changes nothing."""
    failpoints.reach("anything")


@pytest.mark.parametrize(
    ("text", "points"), [("", {}), ("a", {"a": 1}), (" a , b.c=2,", {"a": 1, "b.c": 2})], ids=["none", "one", "two"]
)
def test_points_are_read_as_written(text: str, points: dict[str, int]) -> None:
    """Entries are separated by commas, and a number says which time counts."""
    assert failpoints.read_points(text) == points
