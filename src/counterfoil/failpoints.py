"""Named points in the code where a test can end the process as a power cut would: at once, with nothing tidied up.

`reach("deliver.before_cursor")` does nothing, unless the environment variable COUNTERFOIL_FAILPOINTS names that
point when the process starts. Entries are separated by commas; `name` ends the process when the point is reached for
the first time, `name=3` when it is reached for the third time. For tests only: nothing in the house sets the variable.
"""

from __future__ import annotations

import os
import signal
from collections.abc import Callable, Mapping

VARIABLE = "COUNTERFOIL_FAILPOINTS"


def reach(name: str) -> None:
    """Say that this point is reached; the process ends here when a test asked for it."""
    if _armed:
        _count_down(name)


def arm(text: str, end: Callable[[], None] | None = None) -> None:
    """Set the points that end the process, written as in the environment; raises ValueError when they are not."""
    global _end
    _armed.clear()
    _armed.update(read_points(text))
    _end = end or _kill


def read_points(text: str) -> Mapping[str, int]:
    """The points that a text names, and which time of reaching each ends the process."""
    points = {}
    for entry in filter(None, (part.strip() for part in text.split(","))):
        name, _, count = entry.partition("=")
        points[name] = int(count or 1)
    return points


def _count_down(name: str) -> None:
    left = _armed.get(name)
    if left is None:
        return
    _armed[name] = left - 1
    if left == 1:
        _end()


def _kill() -> None:
    os.kill(os.getpid(), signal.SIGKILL)


_armed: dict[str, int] = dict(read_points(os.environ.get(VARIABLE, "")))
_end: Callable[[], None] = _kill
