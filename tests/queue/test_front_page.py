"""The front page of the package and its tests say the same."""

from __future__ import annotations

import re
from pathlib import Path

import counterfoil.queue
import counterfoil.queue.frame


def test_every_invariant_has_a_test() -> None:
    """Each invariant that a front page names is named by at least one test's docstring."""
    pages = f"{counterfoil.queue.__doc__}\n{counterfoil.queue.frame.__doc__}"
    promised = set(re.findall(r"^    ([IF]\d+)\.", pages, re.MULTILINE))
    assert {"I1", "I9", "F2"} <= promised
    tests = "\n".join(path.read_text() for path in Path(__file__).parent.glob("test_*.py"))
    tested = set(re.findall(r"\b([IF]\d+)\b", "\n".join(re.findall(r'"""(.*?)"""', tests, re.DOTALL))))
    assert promised <= tested
