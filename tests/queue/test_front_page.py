"""The front page of the package and its tests say the same."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

import counterfoil.queue
import counterfoil.queue.frame
from counterfoil.queue.directory import ID_MARK
from counterfoil.queue.frame import FRAME_MARK
from counterfoil.queue.published import PUBLISHED_MARK
from counterfoil.queue.segment import SEGMENT_MARK


def test_every_invariant_has_a_test() -> None:
    """Each invariant that a front page names is named by at least one test's docstring."""
    pages = f"{counterfoil.queue.__doc__}\n{counterfoil.queue.frame.__doc__}"
    promised = set(re.findall(r"^    ([IF]\d+)\.", pages, re.MULTILINE))
    assert {"I1", "I9", "F2"} <= promised
    tests = "\n".join(path.read_text() for path in Path(__file__).parent.glob("test_*.py"))
    tested = set(re.findall(r"\b([IF]\d+)\b", "\n".join(re.findall(r'"""(.*?)"""', tests, re.DOTALL))))
    assert promised <= tested


@pytest.mark.parametrize("mark", [FRAME_MARK, SEGMENT_MARK, PUBLISHED_MARK, ID_MARK])
def test_the_format_page_names_every_mark(mark: bytes) -> None:
    """Each mark that a file of the queue begins with stands on the format page, byte by byte."""
    page = (Path(__file__).parents[2] / "docs" / "format.md").read_text()
    assert mark.hex(" ").upper() in page
    assert mark.decode("latin-1").encode("unicode_escape").decode() in page
