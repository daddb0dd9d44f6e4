"""Damage of every kind at once: whatever was done to the files, what is left of the frames is read."""

from __future__ import annotations

import tempfile
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from counterfoil.queue.frame import sealed_bytes
from tests.faults.disk import Tree
from tests.queue.drafts import draft
from tests.queue.lives import life, overwrite, quarantined, read_all, segment_path
from tests.queue.test_crash_states import MEMORY, UNTIMED

SEGMENTS = 4
NAMES = [f"frame-{i:03}" for i in range(60)]
FRAME_BYTES = sealed_bytes(draft(NAMES[0]))
SMALL_FILES = ("flushed", "id")

flips = st.tuples(st.just("flip"), st.integers(0, 8000), st.integers(1, 255))
zeros = st.tuples(st.just("zeros"), st.integers(0, 8000), st.integers(1, 3000))
cuts = st.tuples(st.just("cut"), st.integers(0, 8000), st.just(0))
removals = st.just(("remove", 0, 0))
harms = st.tuples(st.integers(1, SEGMENTS), flips | zeros | cuts | removals)
small_harms = st.tuples(st.sampled_from(SMALL_FILES), flips | zeros | cuts | removals)

Harm = tuple[str, int, int]


class Written:
    """What a life wrote, and where each frame stands."""

    def __init__(self, tree: Tree, places: dict[str, tuple[int, int]]) -> None:
        self.tree = tree
        self.places = places


@pytest.fixture(scope="module")
def written(tmp_path_factory: pytest.TempPathFactory) -> Written:
    """Segments of 15 frames each, in flushes of 1 to 4; and where each frame stands."""
    root = tmp_path_factory.mktemp("written")
    places: dict[str, tuple[int, int]] = {}
    with life(root) as one:
        for segment in range(SEGMENTS):
            if segment:
                one.roll()
            names = NAMES[segment * 15 : segment * 15 + 15]
            for start, end in ((0, 4), (4, 5), (5, 8), (8, 9), (9, 13), (13, 15)):
                for name, position in zip(names[start:end], one.write(*names[start:end]), strict=True):
                    places[name] = (position.segment, position.offset)
    return Written(Tree.of(root), places)


def do(path: Path, harm: Harm) -> range:
    """Harm a file; the bytes that are not what they were."""
    kind, at, what = harm
    data = bytearray(path.read_bytes()) if path.exists() else bytearray()
    if kind == "remove":
        path.unlink(missing_ok=True)
        return range(len(data))
    at = min(at, len(data))
    end = {"flip": at + 1, "zeros": at + what, "cut": len(data)}[kind]
    if kind == "cut":
        del data[at:]
    else:
        for i in range(at, min(end, len(data))):
            data[i] = data[i] ^ what if kind == "flip" else 0
    if path.exists():
        overwrite(path, bytes(data))
    return range(at, end)


@given(done=st.lists(harms, max_size=6), small=st.none() | small_harms)
@settings(deadline=None, max_examples=150, suppress_health_check=UNTIMED)
def test_what_is_left_is_read(
    written: Written,
    done: list[tuple[int, Harm]],
    small: tuple[str, Harm] | None,
) -> None:
    """The next life starts, and every frame whose bytes are as they were is read, in order and once (I5, I8)."""
    with tempfile.TemporaryDirectory(dir=MEMORY) as name:
        root = Path(name)
        written.tree.write(root)
        harmed: dict[int, list[range]] = {}
        for segment, harm in done:
            harmed.setdefault(segment, []).append(do(segment_path(root, segment), harm))
        if small is not None:
            do(root / "queue" / "1" / small[0], small[1])
        with life(root) as after:
            after.write("after")
            # Unless the place that was published is lost with them, the numbers of lost segments are not given again.
            assert after.tail.number > SEGMENTS or (small is not None and small[0] == "flushed")
        found = read_all(root)
        again = read_all(root, quarantining=False)
        whole = [
            name
            for name, (segment, offset) in written.places.items()
            if not any(span.start < offset + FRAME_BYTES and offset < span.stop for span in harmed.get(segment, []))
        ]
        assert set(whole) <= set(found.names)
        assert found.names == [*sorted(set(found.names) - {"after"}), "after"]
        assert (again.names, again.damages) == (found.names, found.damages)
        assert not found.damages or quarantined(root)
