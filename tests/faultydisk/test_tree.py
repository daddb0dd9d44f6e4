from __future__ import annotations

import errno
import stat
from random import Random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from counterfoil.faultydisk.tree import PAGE_BYTES, SECTOR_BYTES, Directory, File, Tree

SEEDS = range(60)


def a_file(tree: Tree, name: bytes = b"a", data: bytes = b"") -> File:
    file = tree.make(tree.root, name, stat.S_IFREG | 0o600)
    assert isinstance(file, File)
    tree.write(file, 0, data)
    return file


def a_directory(tree: Tree, name: bytes) -> Directory:
    directory = tree.make(tree.root, name, stat.S_IFDIR | 0o700)
    assert isinstance(directory, Directory)
    return directory


def left(tree: Tree, seed: int) -> dict[bytes, bytes]:
    """The files of the root after a power cut."""
    tree.lose_power(seed)
    return {name: bytes(file.data) for name, file in tree.root.entries.items() if isinstance(file, File)}


@pytest.mark.parametrize("seed", range(10))
def test_what_was_flushed_outlives_a_power_cut(seed: int) -> None:
    """K1: bytes, length and entry are there after it, whatever else was lost."""
    tree = Tree()
    file = a_file(tree, data=b"x" * 10_000)
    file.flush()
    tree.flush_directory(tree.root)
    a_file(tree, b"b", b"y" * 10_000)
    assert left(tree, seed)[b"a"] == b"x" * 10_000


def test_what_was_not_flushed_may_be_lost_in_every_way() -> None:
    """K2: all, nothing, whole pages, a torn page, a shorter file; and over the seeds each of it happens."""
    seen = set()
    for seed in SEEDS:
        tree = Tree()
        file = a_file(tree, data=b"x" * PAGE_BYTES)
        file.flush()
        tree.flush_directory(tree.root)
        tree.write(file, PAGE_BYTES, b"y" * 3 * PAGE_BYTES)
        data = left(tree, seed)[b"a"]
        assert data[:PAGE_BYTES] == b"x" * PAGE_BYTES
        pages = [data[at : at + PAGE_BYTES] for at in range(PAGE_BYTES, 4 * PAGE_BYTES, PAGE_BYTES)]
        seen |= {"longer" if len(data) > PAGE_BYTES else "as flushed"}
        seen |= {"whole" if page == b"y" * PAGE_BYTES else "zero" for page in pages if len(set(page)) == 1}
        torn = [page for page in pages if len(set(page)) == 2]
        seen |= {"torn" for page in torn if len(page.strip(b"\0")) % SECTOR_BYTES == 0}
        seen |= {"cut"} if len(data) % PAGE_BYTES else set()
        seen |= {"hole"} if pages[0] == bytes(PAGE_BYTES) and pages[1] == b"y" * PAGE_BYTES else set()
    assert seen == {"longer", "as flushed", "whole", "zero", "torn", "cut", "hole"}


def test_an_entry_that_was_not_flushed_may_be_gone() -> None:
    """K2: a file whose bytes were flushed has no name where its directory was not; in any order of the names."""
    seen = set()
    for seed in SEEDS:
        tree = Tree()
        for name in (b"a", b"b"):
            a_file(tree, name, b"x").flush()
        seen.add(tuple(sorted(left(tree, seed))))
    assert seen == {(), (b"a",), (b"b",), (b"a", b"b")}


def test_a_rename_is_there_or_not() -> None:
    """K2: the name leads to the old file or to the new one, whole, and the other name goes with it."""
    seen = set()
    for seed in SEEDS:
        tree = Tree()
        a_file(tree, b"current", b"old").flush()
        tree.flush_directory(tree.root)
        a_file(tree, b"new", b"new").flush()
        tree.flush_directory(tree.root)
        tree.rename(tree.root, b"new", tree.root, b"current", replaces=True)
        seen.add(tuple(sorted(left(tree, seed).items())))
    assert seen == {((b"current", b"old"), (b"new", b"new")), ((b"current", b"new"),)}


def test_a_removal_that_was_not_flushed_may_be_undone() -> None:
    """K2: the file is there again, with what was flushed of it."""
    seen = set()
    for seed in SEEDS:
        tree = Tree()
        a_file(tree, b"a", b"kept").flush()
        tree.flush_directory(tree.root)
        tree.remove(tree.root, b"a", is_directory=False)
        seen.add(tuple(left(tree, seed).items()))
    assert seen == {(), ((b"a", b"kept"),)}


def test_a_directory_that_was_not_flushed_goes_with_what_lies_in_it() -> None:
    """K1, K2: flushing a file and its directory is not enough where the directory's own entry is not flushed."""
    seen = set()
    for seed in SEEDS:
        tree = Tree()
        directory = a_directory(tree, b"d")
        file = tree.make(directory, b"a", stat.S_IFREG)
        tree.flush_directory(directory)
        tree.lose_power(seed)
        seen.add(b"d" in tree.root.entries)
        if b"d" in tree.root.entries:
            assert directory.entries == {b"a": file}
    assert seen == {True, False}


def test_flushing_one_directory_flushes_what_came_before_under_the_same_name() -> None:
    """K1: a rename between directories is flushed as a whole, and no earlier change of its names comes after it."""
    for seed in SEEDS:
        tree = Tree()
        one, two = a_directory(tree, b"one"), a_directory(tree, b"two")
        tree.flush_directory(tree.root)
        tree.make(two, b"x", stat.S_IFREG)
        moved = tree.make(one, b"y", stat.S_IFREG)
        tree.rename(one, b"y", two, b"x", replaces=True)
        tree.flush_directory(one)
        tree.lose_power(seed)
        assert one.entries == {}
        assert two.entries == {b"x": moved}


def test_a_flush_that_fails_loses_for_good() -> None:
    """K3: a later flush succeeds without what the failed one threw away."""
    lost = 0
    for seed in SEEDS:
        tree = Tree()
        file = a_file(tree, data=b"x" * 4 * PAGE_BYTES)
        tree.flush_directory(tree.root)
        file.fail_to_flush(Random(seed))
        assert len(file.data) == 4 * PAGE_BYTES
        tree.write(file, 4 * PAGE_BYTES, b"z")
        file.flush()
        data = left(tree, seed)[b"a"]
        assert len(data) == 4 * PAGE_BYTES + 1
        assert data[-1:] == b"z"
        lost += data[:-1] != b"x" * 4 * PAGE_BYTES
    assert len(SEEDS) / 2 < lost < len(SEEDS)


def test_what_is_cut_off_and_written_anew_never_mixes_with_what_stood_there() -> None:
    """K2: after a truncation the old bytes come back only as long as none of the new ones are there."""
    for seed in SEEDS:
        tree = Tree()
        file = a_file(tree, data=b"o" * 2 * PAGE_BYTES)
        file.flush()
        tree.flush_directory(tree.root)
        tree.truncate(file, 0)
        tree.write(file, 0, b"n" * 2 * PAGE_BYTES)
        assert set(left(tree, seed)[b"a"]) in ({ord("o")}, {ord("n")}, {ord("n"), 0}, {0}, set())


def test_the_room_ends_where_it_was_set() -> None:
    """A write that does not fit is short, the next one ENOSPC; what overwrites is taken, and removing makes room."""
    tree = Tree()
    file = a_file(tree)
    tree.room_bytes = tree.used_bytes + 2 * PAGE_BYTES
    assert tree.write(file, 0, bytes(9 * PAGE_BYTES)) == 2 * PAGE_BYTES
    with pytest.raises(OSError, match=r"^\[Errno 28\]") as raised:
        tree.write(file, 2 * PAGE_BYTES, b"x")
    assert raised.value.errno == errno.ENOSPC
    assert tree.write(file, 0, b"x" * PAGE_BYTES) == PAGE_BYTES
    tree.remove(tree.root, b"a", is_directory=False)
    assert tree.free_bytes >= 3 * PAGE_BYTES


steps = st.lists(
    st.one_of(
        st.tuples(st.just("write"), st.integers(0, 3 * PAGE_BYTES), st.binary(min_size=1, max_size=2 * PAGE_BYTES)),
        st.tuples(st.just("truncate"), st.integers(0, 3 * PAGE_BYTES)),
        st.tuples(st.just("flush")),
    ),
    max_size=12,
)


@given(steps, st.integers(0, 1000))
@settings(deadline=None, max_examples=100)
def test_whatever_was_done_a_flush_keeps_it(done: list[tuple[str, int, bytes]], seed: int) -> None:
    """K1, K5: a file that was flushed last is left as it is; else what is left follows from the seed alone."""
    found = []
    for is_flushed in (True, False, False):
        tree = Tree()
        file = a_file(tree)
        tree.flush_directory(tree.root)
        for step in done:
            do(tree, file, *step)
        before = bytes(file.data)
        if is_flushed:
            file.flush()
            assert left(tree, seed)[b"a"] == before
        else:
            found.append(left(tree, seed))
    assert found[0] == found[1]


def do(tree: Tree, file: File, name: str, at: int = 0, data: bytes = b"") -> None:
    if name == "write":
        tree.write(file, at, data)
    elif name == "truncate":
        tree.truncate(file, at)
    else:
        file.flush()
