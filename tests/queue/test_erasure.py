"""Rows erased in closed segments: gone for good, and everything else as it was."""

from __future__ import annotations

import errno
import os
import random
import tempfile
import threading
from collections.abc import Callable, Sequence
from pathlib import Path

import msgspec
import pytest
import zstandard
from hypothesis import given, settings
from hypothesis import strategies as st

from counterfoil.contract.facts import RowFlag, Verdict, key_hash, key_prefix
from counterfoil.contract.subject import Subject
from counterfoil.errors import FrameDamaged
from counterfoil.files import Files, RealFiles
from counterfoil.positions import DirectoryId, FramePosition, SegmentNumber
from counterfoil.queue import ErasedRows
from counterfoil.queue import reader as reader_module
from counterfoil.queue.frame import (
    FLAG_DICTIONARY,
    Frame,
    FrameDraft,
    Origin,
    draft_frame,
    erase_rows,
    parse_frame,
    seal_frame,
)
from counterfoil.queue.published import PUBLISHED_NAME
from counterfoil.queue.reader import QueueReader
from tests.faults.disk import RecordingFiles, by_chance, everything, nothing
from tests.faults.files import ANY, FaultyFiles
from tests.queue.drafts import SOURCE, draft
from tests.queue.lives import NOW_MS, flip, life, quarantined, read_all, reader, segment_path, the_directory
from tests.queue.test_crash_states import MEMORY

ZSTD = zstandard.ZstdCompressor()
ONE = SegmentNumber(1)
PLACE = FramePosition(DirectoryId(b"writer-1"), ONE, 64)


@pytest.fixture(params=["none", "zstd"])
def compressor(request: pytest.FixtureRequest) -> zstandard.ZstdCompressor | None:
    return ZSTD if request.param == "zstd" else None


def write_segments(root: Path, compressor: zstandard.ZstdCompressor | None = None) -> list[FramePosition]:
    """A segment of three frames, closed by one with another; the distinctIds of their rows are `a.0` to `d.2`."""
    with life(root) as one:
        positions = one.tail.write([draft(name, 3, 40, compressor) for name in ("a", "b", "c")])
        one.roll()
        positions += one.tail.write([draft("d", 3, 40, compressor)])
    return positions


def new(position: FramePosition, row_index: int) -> Verdict:
    return Verdict.NEW


def erase(root: Path, distinct_id: str, files: Files | None = None, *, around_bad_blocks: bool = False) -> ErasedRows:
    """Erase a person's rows in the first segment."""
    source = QueueReader(root / "queue", files or RealFiles(), root / "quarantine")
    subject = Subject(distinct_id=distinct_id)
    return source.erase(the_directory(source), ONE, subject, new, around_bad_blocks=around_bad_blocks)


def rows_of(source: QueueReader) -> list[tuple[FramePosition, int, bytes]]:
    """Every row of the one directory, with its place."""
    directory = the_directory(source)
    found: list[tuple[FramePosition, int, bytes]] = []
    at = None
    while (result := source.read(directory, at, 1_000_000)).next != at:
        assert not result.damages
        for frame in result.frames:
            found += [(frame.position, index, frame.row(index)) for index in range(frame.facts.row_count)]
        at = result.next
    return found


def files_below(root: Path) -> dict[str, bytes]:
    return {str(path.relative_to(root)): path.read_bytes() for path in root.rglob("*") if path.is_file()}


# One frame

IDS = ["p", "person", "another", "p\u00e9\n"]


class Drawn(msgspec.Struct, frozen=True):
    """A frame as the property test draws it."""

    rows: list[tuple[str, str]]
    """Whose, and what it says."""
    is_compressed: bool


frames = st.lists(
    st.builds(
        Drawn,
        st.lists(st.tuples(st.sampled_from(IDS), st.text(max_size=30)), min_size=1, max_size=12),
        st.booleans(),
    ),
    min_size=1,
    max_size=6,
)


def draft_of(drawn: Drawn) -> FrameDraft:
    bodies = [
        msgspec.json.encode({"event": "e", "distinctId": whose, "eventProperties": {"a": text}})
        for whose, text in drawn.rows
    ]
    return draft_frame(
        origin=msgspec.json.encode(Origin(SOURCE, (("lake",),))),
        rows=bodies,
        key_hashes=[key_hash(key_prefix(SOURCE), whose) for whose, _ in drawn.rows],
        content_hashes=[len(body).to_bytes(8, "little") for body in bodies],
        destination_set=b"".join((index % 2).to_bytes(2, "little") for index in range(len(bodies))),
        flags=bytes(index % 8 for index in range(len(bodies))),
        received_at_ms=NOW_MS,
        request_id=b"r" * 16,
        compressor=ZSTD if drawn.is_compressed else None,
    )


def facts_of(frame: Frame, row_index: int) -> tuple[object, ...]:
    facts = frame.facts
    return (
        frame.position,
        frame.frame_bytes,
        frame.flushed,
        frame.received_at_ms,
        frame.request_id,
        facts.source,
        facts.destinations_of(int(facts.destination_set[row_index])),
        facts.key_hashes[row_index].tobytes(),
        int(facts.content_hashes[row_index]),
        int(facts.flags[row_index]),
        frame.row(row_index),
    )


@given(frames, st.sampled_from(IDS))
@settings(deadline=None)
def test_of_all_else_every_byte_stays(drawn: Sequence[Drawn], whose: str) -> None:
    """Whatever shares a frame or a segment with erased rows is as it was, at its place, compressed or not (I10)."""
    with tempfile.TemporaryDirectory(dir=MEMORY) as name:
        root = Path(name)
        with life(root) as one:
            positions = one.tail.write([draft_of(each) for each in drawn])
            one.roll()
        before, size = [reader(root).fetch(position) for position in positions], segment_path(root, 1).stat().st_size
        erased = erase(root, whose)
        is_his = {
            (position, index)
            for position, each in zip(positions, drawn, strict=True)
            for index, (owner, _) in enumerate(each.rows)
            if owner == whose
        }
        assert erased == ErasedRows(len(is_his), len({position for position, _ in is_his}))
        assert segment_path(root, 1).stat().st_size == size
        for old in before:
            frame = reader(root).fetch(old.position)
            for index in range(old.facts.row_count):
                if (old.position, index) not in is_his:
                    assert facts_of(frame, index) == facts_of(old, index)
                    continue
                flags = int(old.facts.flags[index]) | RowFlag.ERASED | Verdict.NEW << 4
                assert facts_of(frame, index)[:4] == facts_of(old, index)[:4]
                assert facts_of(frame, index)[5:-4] == facts_of(old, index)[5:-4]
                assert facts_of(frame, index)[-4:-1] == (bytes(16), 0, flags)
                assert frame.row(index).strip(b" ") == b""
            is_any_left = not frame.facts.are_erased.all()
            assert frame.request_id == (old.request_id if is_any_left else bytes(16))
        assert erase(root, whose) == ErasedRows()


def test_the_place_of_a_frame_is_always_enough() -> None:
    """Rows that others pointed to when they were compressed leave a frame of the same bytes, which is read the same."""
    chance = random.Random(1)
    dictionaries = 0
    for _ in range(2_000):
        ids, text = ["p", f"{chance.getrandbits(128):x}"], f"{chance.getrandbits(chance.choice([16, 160, 800])):x}"
        bodies = [
            msgspec.json.encode(
                {"event": chance.choice(["Sign Up", "click", "x"]), "distinctId": chance.choice(ids)}
                | ({"eventProperties": {"u": text}} if chance.random() < 0.7 else {})
            )
            for _ in range(chance.choice([2, 3, 4]))
        ]
        made = draft_frame(
            origin=msgspec.json.encode(Origin(SOURCE)),
            rows=bodies,
            key_hashes=[bytes(16)] * len(bodies),
            content_hashes=[bytes(8)] * len(bodies),
            received_at_ms=NOW_MS,
            request_id=bytes(16),
            compressor=ZSTD,
        )
        sealed = b"".join(seal_frame(made, PLACE, 0))
        erased = erase_rows(sealed, PLACE, {0: None})
        frame = parse_frame(erased, 0, PLACE)
        assert (len(erased), frame.frame_bytes) == (len(sealed), len(sealed))
        assert [frame.row(index) for index in range(len(bodies))] == [b"", *bodies[1:]]
        dictionaries += bool(erased[23] & FLAG_DICTIONARY)
        again = parse_frame(erase_rows(erased, PLACE, dict.fromkeys(range(1, len(bodies)))), 0, PLACE)
        assert (again.frame_bytes, again.rows.strip()) == (len(sealed), b"")
        assert again.facts.are_erased.all()
    assert 0 < dictionaries < 1_000


# A segment


def test_a_row_is_erased_and_the_rest_stays(tmp_path: Path, compressor: zstandard.ZstdCompressor | None) -> None:
    """The row's content and hashes are gone, its frame says what it was, and its verdict is asked for once."""
    positions = write_segments(tmp_path, compressor)
    source = reader(tmp_path)
    directory = the_directory(source)
    before = rows_of(source)
    asked: list[tuple[FramePosition, int]] = []

    def conflict(position: FramePosition, row_index: int) -> Verdict:
        asked.append((position, row_index))
        return Verdict.CONFLICT

    subject = Subject(distinct_id="b.1")
    assert source.count_rows(directory, ONE, subject) == ErasedRows(rows=1, frames=1)
    assert source.erase(directory, ONE, subject, conflict) == ErasedRows(rows=1, frames=1)
    assert asked == [(positions[1], 1)]
    changed = [after[2] for was, after in zip(before, rows_of(source), strict=True) if was != after]
    assert [row.strip() for row in changed] == [b""]
    facts = source.fetch(positions[1]).facts
    assert (facts.has_erased, facts.are_erased.tolist()) == (True, [False, True, False])
    assert facts.erased_verdicts.tolist() == [0, Verdict.CONFLICT, 0]
    assert not source.fetch(positions[0]).facts.has_erased


@pytest.mark.parametrize("is_cut_short", [False, True])
def test_nothing_of_it_is_left_in_the_directory(tmp_path: Path, is_cut_short: bool) -> None:
    """Neither its bytes nor its key nor its request is in any file, also where a flush failed that held them (I10)."""
    files = FaultyFiles()
    with life(tmp_path, files) as one:
        one.write("a")
        if is_cut_short:
            files.break_down("fdatasync")
            with pytest.raises(OSError, match="error"):
                one.write("a", "b")
        one.roll()
    key = key_hash(key_prefix(SOURCE), "a.0")
    traces = (b'"a.0"', key, b"a".ljust(16, b"\0"))
    assert any(b'"a.0"' in data for data in files_below(tmp_path).values())
    assert erase(tmp_path, "a.0") == ErasedRows(1, 1)
    assert not any(trace in data for trace in traces for data in files_below(tmp_path).values())
    assert len(rows_of(reader(tmp_path))) == 1


def test_what_a_failed_flush_left_goes_by_itself(tmp_path: Path) -> None:
    """Past the end of a closed segment nothing is read, and nothing is kept that could hold a person's row."""
    files = FaultyFiles()
    with life(tmp_path, files) as one:
        one.write("a")
        files.break_down("fdatasync")
        with pytest.raises(OSError, match="error"):
            one.write("b")
        one.roll()
    assert erase(tmp_path, "b.0") == ErasedRows()
    assert not any(b'"b.0"' in data for data in files_below(tmp_path).values())
    assert len(rows_of(reader(tmp_path))) == 1


def test_erasing_again_changes_nothing(tmp_path: Path, compressor: zstandard.ZstdCompressor | None) -> None:
    """What is erased is not found again, and a segment without rows of the subject is left as it is."""
    write_segments(tmp_path, compressor)
    assert erase(tmp_path, "a.0").rows == 1
    path = segment_path(tmp_path, 1)
    data, inode = path.read_bytes(), path.stat().st_ino
    source = reader(tmp_path)
    for again in (Subject(distinct_id="a.0"), Subject(user_id="a.1"), Subject(distinct_id="a.1", source="another")):
        assert source.erase(the_directory(source), ONE, again, new) == ErasedRows()
        assert (path.read_bytes(), path.stat().st_ino) == (data, inode)


def test_only_closed_segments(tmp_path: Path) -> None:
    """A segment that may be written to is refused, though it can be searched; one that is gone has no rows."""
    write_segments(tmp_path)
    source = reader(tmp_path)
    directory = the_directory(source)
    subject = Subject(distinct_id="d.0")
    with pytest.raises(ValueError, match="closed"):
        source.erase(directory, SegmentNumber(2), subject, new)
    assert source.count_rows(directory, SegmentNumber(2), subject) == ErasedRows(1, 1)
    source.remove_oldest(directory, ONE)
    assert source.count_rows(directory, ONE, subject) == ErasedRows()
    assert source.erase(directory, ONE, subject, new) == ErasedRows()
    assert not segment_path(tmp_path, 1).exists()


@pytest.mark.parametrize("whose", ["a.0", "c.0"])
def test_damage_is_left_and_counted(tmp_path: Path, whose: str) -> None:
    """A frame that can't be read stays byte for byte, and what is readable around it is erased."""
    positions = write_segments(tmp_path)
    damaged = positions[1]
    flip(segment_path(tmp_path, 1), damaged.offset + 90)
    end = positions[2].offset
    before = segment_path(tmp_path, 1).read_bytes()[damaged.offset : end]
    assert erase(tmp_path, whose) == ErasedRows(1, 1, damaged=1)
    assert segment_path(tmp_path, 1).read_bytes()[damaged.offset : end] == before
    assert erase(tmp_path, "b.0") == ErasedRows(damaged=1)
    with pytest.raises(FrameDamaged):
        reader(tmp_path).fetch(damaged)


def test_a_damaged_end_and_a_lost_header(tmp_path: Path) -> None:
    """Where no header says how far a segment goes, all of its file is searched; a cut frame at its end is damage."""
    write_segments(tmp_path)
    path = segment_path(tmp_path, 1)
    flip(segment_path(tmp_path, 2), 30)
    path.write_bytes(path.read_bytes()[:-8])
    assert erase(tmp_path, "a.0") == ErasedRows(1, 1, damaged=1)
    assert erase(tmp_path, "b.2") == ErasedRows(1, 1, damaged=1)


@pytest.mark.parametrize("is_compressed", [False, True])
def test_a_cut_padding_is_no_damage(tmp_path: Path, is_compressed: bool) -> None:
    """A frame that ends with its file, whose padding the disk lost, is erased like any, and gets it back."""
    drafts = (draft("padded", 2, row_bytes, ZSTD if is_compressed else None) for row_bytes in range(100))
    made = next(one for one in drafts if len(one.body) % 8)
    padding = -len(made.body) % 8
    with life(tmp_path) as one:
        one.tail.write([made])
        one.roll()
    flip(segment_path(tmp_path, 2), 30)
    path = segment_path(tmp_path, 1)
    size = path.stat().st_size
    path.write_bytes(path.read_bytes()[:-padding])
    assert erase(tmp_path, "padded.1") == ErasedRows(1, 1)
    assert (path.stat().st_size, erase(tmp_path, "padded.0")) == (size, ErasedRows(1, 1))


def test_a_block_that_can_not_be_read_stops_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What a disk can't read now is not written off: the segment stays as it is."""
    positions = write_segments(tmp_path)
    before = segment_path(tmp_path, 1).read_bytes()
    pread = os.pread

    def unreadable(descriptor: int, size: int, offset: int) -> bytes:
        if offset <= positions[2].offset < offset + size:
            raise OSError(errno.EIO, os.strerror(errno.EIO))
        return pread(descriptor, size, offset)

    monkeypatch.setattr(os, "pread", unreadable)
    with pytest.raises(OSError, match="error"):
        erase(tmp_path, "a.0")
    monkeypatch.undo()
    assert segment_path(tmp_path, 1).read_bytes() == before


def test_a_block_that_never_can_be_read_is_left_out(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Where it is asked for, the frames of the block are damage, the person goes from all others, and these stay."""
    with life(tmp_path) as one:
        positions = one.tail.write([draft(name, 3, 1_300) for name in "abcd"])
        one.roll()
    before = segment_path(tmp_path, 1).read_bytes()
    bad = positions[2].offset // 4096 * 4096
    assert positions[1].offset < bad < positions[2].offset < bad + 4096 < positions[3].offset
    pread = os.pread

    def unreadable(descriptor: int, size: int, offset: int) -> bytes:
        if offset < bad + 4096 and offset + size > bad:
            if offset >= bad:
                raise OSError(errno.EIO, os.strerror(errno.EIO))
            size = bad - offset
        return pread(descriptor, size, offset)

    with monkeypatch.context() as patched:
        patched.setattr(os, "pread", unreadable)
        with pytest.raises(OSError, match="error"):
            erase(tmp_path, "d.1")
        assert segment_path(tmp_path, 1).read_bytes() == before
        # Of nobody who is found elsewhere: nothing is written, and the block may still come back.
        assert erase(tmp_path, "b.0", around_bad_blocks=True) == ErasedRows(0, 0, 1)
        assert segment_path(tmp_path, 1).read_bytes() == before
        assert erase(tmp_path, "d.1", around_bad_blocks=True) == ErasedRows(1, 1, 1)
    after = segment_path(tmp_path, 1).read_bytes()
    assert len(after) == len(before)
    assert after[:bad] == before[:bad]
    assert after[bad : bad + 4096] == bytes(4096)
    assert after[bad + 4096 : positions[3].offset] == before[bad + 4096 : positions[3].offset]
    assert b"d.1" not in after
    found = read_all(tmp_path)
    assert (found.names, len(found.damages)) == (["a", "d"], 1)


def test_frames_larger_than_what_is_read_at_once(tmp_path: Path) -> None:
    """Frames of any size, and their ends anywhere, are searched whole."""
    with life(tmp_path) as one:
        one.tail.write([draft("a", 2, 3_000_000), draft("b", 3, 3_000_000), draft("c", 1, 100)])
        one.roll()
    assert erase(tmp_path, "b.1") == ErasedRows(1, 1)
    assert erase(tmp_path, "c.0") == ErasedRows(1, 1)
    assert erase(tmp_path, "a.0") == ErasedRows(1, 1)
    blank = [index for index, (_, _, row) in enumerate(rows_of(reader(tmp_path))) if not row.strip()]
    assert blank == [0, 3, 5]


# Crashes


def three_erased(files: RecordingFiles) -> None:
    """What is recorded: rows of two persons go, the second from two frames."""
    source = QueueReader(files.root / "queue", files, files.root / "quarantine")
    source.remove_unfinished()
    for distinct_id in ("a.1", "b.0"):
        source.erase(the_directory(source), ONE, Subject(distinct_id=distinct_id), new)
        files.mark(distinct_id)


@pytest.fixture(scope="module")
def recorded(tmp_path_factory: pytest.TempPathFactory) -> RecordingFiles:
    root = tmp_path_factory.mktemp("recorded")
    write_segments(root)
    files = RecordingFiles(root, PUBLISHED_NAME)
    three_erased(files)
    return files


@pytest.mark.parametrize("keep", [nothing, everything, *(by_chance(seed) for seed in range(20))])
def test_a_power_cut_leaves_the_old_or_the_new(recorded: RecordingFiles, keep: Callable[[], float]) -> None:
    """After a cut at any operation the segment is whole, what was done stays done, and the rest can be done (I10)."""
    with tempfile.TemporaryDirectory(dir=MEMORY) as name:
        recorded.cut(0, nothing).write(Path(name))
        before = rows_of(reader(Path(name)))
    for count in range(len(recorded.record) + 1):
        done = {operation.path.name for operation in recorded.record[:count] if operation.name == "mark"}
        with tempfile.TemporaryDirectory(dir=MEMORY) as name:
            root = Path(name)
            recorded.cut(count, keep).write(root)
            with life(root):
                pass
            after = rows_of(reader(root))
            assert [row[:2] for row in after] == [row[:2] for row in before]
            changed = {was[2] for was, now in zip(before, after, strict=True) if was != now}
            erased = {str(msgspec.json.decode(row)["distinctId"]) for row in changed}
            assert done <= erased <= {"a.1", "b.0"}
            source = reader(root)
            source.remove_unfinished()
            for distinct_id in ("a.1", "b.0"):
                rows = source.erase(the_directory(source), ONE, Subject(distinct_id=distinct_id), new).rows
                assert rows == (distinct_id not in erased)
            names = {path.name for path in (root / "queue" / "1").iterdir()}
            assert names == {"id", "flushed", "lock", *(f"000000000{number}.seg" for number in (1, 2, 3))}
            assert quarantined(root) == {}


@pytest.mark.parametrize("code", [errno.ENOSPC, errno.EIO])
def test_a_failure_at_any_operation_leaves_the_segment_whole(tmp_path: Path, code: int) -> None:
    """Where the disk fails, it is told, nothing of the rows is lost, and the next try does what is left."""
    codes = set()
    for at in range(1, 100):
        root = tmp_path / f"{at}"
        write_segments(root)
        before = rows_of(reader(root))
        files = FaultyFiles()
        files.break_down(ANY, at, None, code)
        try:
            erased = erase(root, "b.1", files)
        except OSError as failure:
            codes.add(failure.errno)
        else:
            assert erased.rows == 1
            break
        changed = [was for was, now in zip(before, rows_of(reader(root)), strict=True) if was != now]
        assert len(changed) <= 1
        assert erase(root, "b.1").rows == 1 - len(changed)
        assert not list(root.rglob("*.erasing"))
    else:
        pytest.fail("it never came to an end")
    assert (codes, at > 5) == ({code}, True)


def test_without_room_for_a_second_segment_nothing_is_begun(tmp_path: Path) -> None:
    """An erasure takes no room that the disk does not have: it is refused, and nothing is left of it."""

    class FullFiles(RealFiles):
        def free_bytes(self, path: Path) -> int:
            return 100

    write_segments(tmp_path)
    before = files_below(tmp_path)
    with pytest.raises(OSError, match="space"):
        erase(tmp_path, "a.0", FullFiles())
    assert files_below(tmp_path) == before


def test_what_can_not_be_removed_stops_nobody(tmp_path: Path) -> None:
    """A leftover that the disk does not let go of stays, and a life begins all the same."""
    write_segments(tmp_path)
    unfinished = segment_path(tmp_path, 1).with_name("0000000001.seg.erasing")
    unfinished.write_bytes(b"half a segment")
    files = FaultyFiles("remove")
    QueueReader(tmp_path / "queue", files, tmp_path / "quarantine").remove_unfinished()
    assert unfinished.exists()
    assert len(rows_of(reader(tmp_path))) == 12


def test_what_a_crash_left_is_removed(tmp_path: Path) -> None:
    """A segment that was half written when its life ended goes at the beginning of the next, or with the next try."""
    write_segments(tmp_path)
    unfinished = segment_path(tmp_path, 1).with_name("0000000001.seg.erasing")
    for remove in (lambda: reader(tmp_path).remove_unfinished(), lambda: erase(tmp_path, "a.0")):
        unfinished.write_bytes(b"half a segment")
        remove()
        assert not unfinished.exists()


# Others at work


def test_retention_meanwhile_wins(tmp_path: Path) -> None:
    """A segment that is removed while its rows are erased does not come back."""
    write_segments(tmp_path)
    source: QueueReader

    class RemovingFiles(RealFiles):
        def fdatasync(self, descriptor: int) -> None:
            super().fdatasync(descriptor)
            source.remove_oldest(the_directory(source), ONE)

    source = QueueReader(tmp_path / "queue", RemovingFiles(), tmp_path / "quarantine")
    assert source.erase(the_directory(source), ONE, Subject(distinct_id="a.0"), new) == ErasedRows()
    assert [path.name for path in sorted((tmp_path / "queue" / "1").glob("*.seg*"))] == ["0000000002.seg"]


def test_retention_waits_for_the_moment_of_the_change(tmp_path: Path) -> None:
    """Between the look whether a segment is still there and the change nobody removes it."""
    write_segments(tmp_path)
    source: QueueReader
    threads: list[threading.Thread] = []

    class BusyFiles(RealFiles):
        def rename(self, path: Path, target: Path) -> None:
            if target.suffix == ".seg":
                remove = threading.Thread(target=source.remove_oldest, args=(the_directory(source), ONE))
                remove.start()
                remove.join(0.2)
                threads.append(remove)
            super().rename(path, target)
            assert target.exists()

    source = QueueReader(tmp_path / "queue", BusyFiles(), tmp_path / "quarantine")
    assert source.erase(the_directory(source), ONE, Subject(distinct_id="a.0"), new).rows == 1
    for thread in threads:
        thread.join()
    assert not segment_path(tmp_path, 1).exists()


def test_who_erased_reads_the_new_rows_at_once(tmp_path: Path) -> None:
    """A reader that had the segment open reads what stands there now, and so does one of another process, soon."""
    positions = write_segments(tmp_path)
    source, other = reader(tmp_path), reader(tmp_path)
    for each in (source, other):
        assert each.fetch(positions[0]).row(0)
    source.erase(the_directory(source), ONE, Subject(distinct_id="a.0"), new)
    assert source.fetch(positions[0]).facts.is_erased(0)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(reader_module, "LOOK_SECONDS", 0.0)
        assert other.fetch(positions[0]).facts.is_erased(0)


def test_a_reader_lets_go_of_what_is_no_longer_there(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A reader at work keeps no file open whose bytes were replaced or removed, whichever segment it reads now."""
    positions = write_segments(tmp_path)
    source, other = reader(tmp_path), reader(tmp_path)
    assert other.fetch(positions[0]).row(0)
    source.erase(the_directory(source), ONE, Subject(distinct_id="a.0"), new)
    monkeypatch.setattr(reader_module, "LOOK_SECONDS", 0.0)
    assert other.fetch(positions[3]).row(0)
    open_files = [str(path.readlink()) for path in Path("/proc/self/fd").iterdir() if path.is_symlink()]
    assert not [name for name in open_files if str(tmp_path) in name and name.endswith("(deleted)")]
