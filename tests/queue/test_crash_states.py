"""Power cuts: whatever the disk kept of what was not flushed, every acknowledged frame is found, and whole."""

from __future__ import annotations

import tempfile
from collections.abc import Callable
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from counterfoil.positions import FramePosition
from counterfoil.queue.published import PUBLISHED_NAME
from tests.faults.disk import Operation, RecordingFiles, by_chance, everything, nothing
from tests.queue.drafts import name_of
from tests.queue.lives import Life, life, read_all, reader

MEMORY = "/dev/shm" if Path("/dev/shm").is_dir() else None
"""Where flushes cost nothing: what a power cut leaves is computed here, no disk takes part."""

UNTIMED = [HealthCheck.function_scoped_fixture, HealthCheck.too_slow]

counts = st.integers(0, 10_000)
seeds = st.integers(0, 2**32)

NAMES = [f"frame-{i}" for i in range(40)]


def write(one: Life, files: RecordingFiles, *names: str) -> None:
    """One flush of frames, which are acknowledged when it succeeds; a fresh segment where it fails."""
    try:
        one.write(*names)
    except OSError:
        one.roll()
    else:
        for name in names:
            files.mark(name)


def record_lives(root: Path) -> RecordingFiles:
    """Two lives with rolls, flushes that fail and a write that is cut short; the first ends in a failure."""
    files = RecordingFiles(root, PUBLISHED_NAME)
    names = iter(NAMES)
    with life(root, files) as first:
        write(first, files, next(names), next(names))
        write(first, files, next(names))
        first.roll()
        write(first, files, next(names), next(names), next(names))
        files.break_down("fdatasync")
        write(first, files, next(names), next(names))
        write(first, files, next(names))
        files.break_down("append")
        write(first, files, next(names))
        write(first, files, next(names), next(names))
        files.break_down("fdatasync")
        with pytest.raises(OSError, match="Input/output"):
            first.write(next(names), next(names))
    with life(root, files) as second:
        write(second, files, next(names), next(names))
        second.roll()
        write(second, files, next(names))
    return files


@pytest.fixture(scope="module")
def recorded(tmp_path_factory: pytest.TempPathFactory) -> RecordingFiles:
    return record_lives(tmp_path_factory.mktemp("recorded"))


def must_be_found(record: list[Operation]) -> set[str]:
    """The names of the frames that were acknowledged by the end of a record."""
    return {operation.path.name for operation in record if operation.name == "mark"}


def check(root: Path, must: set[str]) -> None:
    """A life after the cut finds what was acknowledged, in order and once, and nothing damaged."""
    with life(root) as after:
        after.write("after")
        number = after.tail.number
    found = read_all(root)
    assert found.damages == []
    assert must <= set(found.names)
    order = [NAMES.index(name) for name in found.names[:-1]]
    assert order == sorted(set(order))
    assert found.names[-1] == "after"
    with life(root) as again:
        assert again.tail.number > number


@pytest.mark.parametrize("keep", [nothing, everything])
def test_every_prefix_of_what_was_done(recorded: RecordingFiles, keep: Callable[[], float], tmp_path: Path) -> None:
    """After a cut at any operation, with all that was not flushed gone or all of it kept, nothing is lost (I2)."""
    for count in range(len(recorded.record) + 1):
        with tempfile.TemporaryDirectory(dir=MEMORY) as name:
            recorded.cut(count, keep).write(Path(name))
            check(Path(name), must_be_found(recorded.record[:count]))


@given(
    count=st.integers(0, 10_000),
    seed=st.integers(0, 2**32),
    again=st.integers(0, 200),
    seed_again=st.integers(0, 2**32),
)
@settings(deadline=None, max_examples=150, suppress_health_check=UNTIMED)
def test_cuts_that_keep_a_part_and_cut_the_recovery_too(
    recorded: RecordingFiles, count: int, seed: int, again: int, seed_again: int
) -> None:
    """Whatever part is kept, and when the power is cut again while the next life recovers, nothing is lost (I2, I6)."""
    count %= len(recorded.record) + 1
    must = must_be_found(recorded.record[:count])
    with tempfile.TemporaryDirectory(dir=MEMORY) as name:
        first, second = Path(name, "first"), Path(name, "second")
        first.mkdir()
        second.mkdir()
        recorded.cut(count, by_chance(seed)).write(first)
        files = RecordingFiles(first, PUBLISHED_NAME)
        with life(first, files):
            pass
        check(first, must)
        files.cut(again % (len(files.record) + 1), by_chance(seed_again)).write(second)
        check(second, must)


@given(count=counts, seed=seeds)
@settings(deadline=None, max_examples=100, suppress_health_check=UNTIMED)
def test_what_a_reader_saw_outlives_a_cut(recorded: RecordingFiles, count: int, seed: int) -> None:
    """Whatever lay below the published offset at the cut is there after it, at the same place (I3)."""
    count %= len(recorded.record) + 1
    with tempfile.TemporaryDirectory(dir=MEMORY) as name:
        seen_root, root = Path(name, "seen"), Path(name, "cut")
        seen_root.mkdir()
        root.mkdir()
        recorded.cut(count, everything).write(seen_root)
        seen = frames(seen_root)
        recorded.cut(count, by_chance(seed)).write(root)
        with life(root):
            pass
        assert seen.items() <= frames(root).items()


def frames(root: Path) -> dict[FramePosition, str]:
    """Every frame that a reader sees, with its place."""
    source = reader(root, quarantining=False)
    found: dict[FramePosition, str] = {}
    for directory in source.directories():
        at = None
        while (result := source.read(directory, at, 1_000_000)).next != at:
            found |= {frame.position: name_of(frame) for frame in result.frames}
            at = result.next
    return found
