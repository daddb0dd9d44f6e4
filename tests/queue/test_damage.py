"""One test for each kind of damage, named after it: what is whole is read, what is not is set aside and told."""

from __future__ import annotations

from pathlib import Path

import msgspec
import pytest
import xxhash

from counterfoil.errors import FrameDamaged, StartRefused
from counterfoil.files import RealFiles
from counterfoil.positions import DirectoryId, FramePosition, SegmentNumber
from counterfoil.queue import Damage, DamageKind
from counterfoil.queue.directory import ID_NAME
from counterfoil.queue.frame import HEADER_BYTES
from counterfoil.queue.quarantine import Note
from counterfoil.queue.recovery import recover_idle
from counterfoil.queue.segment import SEGMENT_HEADER_BYTES, SEGMENT_MARK, SegmentHeader
from tests.queue.lives import NOW_MS, flip, life, overwrite, quarantined, read_all, reader, segment_path, the_directory


def one_segment(root: Path, *flushes: list[str]) -> list[FramePosition]:
    """A life that wrote these frames, flush after flush, and ended."""
    with life(root) as one:
        return [position for names in flushes for position in one.write(*names)]


def kinds(damages: list[Damage]) -> list[DamageKind]:
    return [damage.kind for damage in damages]


def notes(root: Path) -> list[Note]:
    return [msgspec.json.decode(data, type=Note) for name, data in quarantined(root).items() if name.endswith(".json")]


def test_torn_tail(tmp_path: Path) -> None:
    """Bytes that no flush covers and no frame fills are set aside and cut; every whole frame stays (I6)."""
    one_segment(tmp_path, ["a"], ["b"])
    path = segment_path(tmp_path, 1)
    whole = path.read_bytes()
    torn = whole[64:150]
    overwrite(path, whole + torn)
    with life(tmp_path) as second:
        second.write("c")
    assert path.read_bytes() == whole
    found = read_all(tmp_path)
    assert (found.names, found.damages) == (["a", "b", "c"], [])
    (note,) = notes(tmp_path)
    assert note == Note(
        reason="torn tail: reaches past its segment's end",
        file="1/0000000001.seg",
        directory=second.directory.id.hex(),
        segment=1,
        offset=len(whole),
        copied_bytes=len(torn),
        found_at_ms=NOW_MS,
    )
    assert torn in quarantined(tmp_path).values()


def test_torn_tail_of_zeros(tmp_path: Path) -> None:
    """A file that was made longer before its bytes arrived ends in zeros; they are a torn tail."""
    one_segment(tmp_path, ["a"])
    path = segment_path(tmp_path, 1)
    whole = path.read_bytes()
    overwrite(path, whole + bytes(5000))
    with life(tmp_path):
        pass
    assert path.read_bytes() == whole
    assert read_all(tmp_path).names == ["a"]


def test_torn_tail_with_a_whole_frame_behind_it(tmp_path: Path) -> None:
    """Of a flush that never ended, nothing after the first bad frame is kept: none of it was acknowledged (I6)."""
    with life(tmp_path) as first:
        first.write("a")
        published = first.directory.published_path.read_bytes()
        positions = first.write("torn", "whole")
    overwrite(tmp_path / "queue" / "1" / "flushed", published)
    flip(segment_path(tmp_path, 1), positions[0].offset + HEADER_BYTES)
    with life(tmp_path) as second:
        second.write("b")
    found = read_all(tmp_path)
    assert (found.names, found.damages) == (["a", "b"], [])
    assert segment_path(tmp_path, 1).stat().st_size == positions[0].offset


def test_whole_frames_past_the_published_place(tmp_path: Path) -> None:
    """After a power cut the published place may be old; whole frames past it were acknowledged and are kept (I2)."""
    with life(tmp_path) as first:
        first.write("a")
        published = first.directory.published_path.read_bytes()
        first.write("b")
        first.write("c", "d")
    overwrite(tmp_path / "queue" / "1" / "flushed", published)
    assert read_all(tmp_path).names == ["a"]
    with life(tmp_path):
        pass
    assert read_all(tmp_path).names == ["a", "b", "c", "d"]


@pytest.mark.parametrize("is_published", [True, False])
def test_good_frame_after_a_bad_one(tmp_path: Path, is_published: bool) -> None:
    """A bad frame that a later one proves to have been flushed is damage, also where nothing is published (I5)."""
    _, bad, after = one_segment(tmp_path, ["a"], ["bad"], ["after"])
    path = segment_path(tmp_path, 1)
    flip(path, bad.offset + HEADER_BYTES)
    bad_bytes = path.read_bytes()[bad.offset : after.offset]
    if not is_published:
        (tmp_path / "queue" / "1" / "flushed").unlink()
    with life(tmp_path) as second:
        second.write("b")
    found = read_all(tmp_path)
    assert found.names == ["a", "after", "b"]
    assert found.damages == [Damage(DamageKind.BAD_BYTES, bad, after.offset - bad.offset, "checksum differs")]
    assert quarantined(tmp_path)[f"{bad.directory.hex()}-1-{bad.offset}.bytes"] == bad_bytes
    assert path.read_bytes()[bad.offset : after.offset] == bad_bytes


def test_flipped_length(tmp_path: Path) -> None:
    """A length that a flipped bit made huge asks for nothing; the next whole frame is found by its mark."""
    _, bad, after = one_segment(tmp_path, ["a", "bad", "after"])
    flip(segment_path(tmp_path, 1), bad.offset + 19, 0x80)
    found = read_all(tmp_path)
    assert found.names == ["a", "after"]
    assert found.damages == [Damage(DamageKind.BAD_BYTES, bad, after.offset - bad.offset, "impossible length")]


def test_flipped_length_that_reaches_past_the_end(tmp_path: Path) -> None:
    """A length that reaches past what was flushed is damage, not a reason to wait for more."""
    _, bad = one_segment(tmp_path, ["a", "bad"])
    flip(segment_path(tmp_path, 1), bad.offset + 17, 0x80)
    found = read_all(tmp_path)
    assert found.names == ["a"]
    assert kinds(found.damages) == [DamageKind.BAD_BYTES]


def test_zeroed_block(tmp_path: Path) -> None:
    """A block of zeros takes the frames that lay in it, as one damage, and no other."""
    names = [f"frame-{i:02}" for i in range(40)]
    positions = one_segment(tmp_path, names)
    path = segment_path(tmp_path, 1)
    data = path.read_bytes()
    overwrite(path, data[:2048] + bytes(2048) + data[4096:])
    ends = [position.offset for position in positions[1:]] + [len(data)]
    lost = {n for n, p, end in zip(names, positions, ends, strict=True) if p.offset < 4096 and end > 2048}
    found = read_all(tmp_path)
    assert found.names == [name for name in names if name not in lost]
    assert kinds(found.damages) == [DamageKind.BAD_BYTES]


def test_missing_segment(tmp_path: Path) -> None:
    """A segment between others that is not there is told with the length it had; the others are read."""
    with life(tmp_path) as one:
        one.write("a")
        one.roll()
        one.write("lost")
        flushed = one.tail.flushed
        one.roll()
        one.write("b")
    segment_path(tmp_path, 2).unlink()
    found = read_all(tmp_path)
    assert found.names == ["a", "b"]
    place = FramePosition(one.directory.id, SegmentNumber(2), SEGMENT_HEADER_BYTES)
    assert found.damages == [Damage(DamageKind.SEGMENT_MISSING, place, flushed - place.offset, "segment missing")]
    assert [(note.segment, note.copied_bytes) for note in notes(tmp_path)] == [(2, 0)]


def test_missing_newest_segment(tmp_path: Path) -> None:
    """The newest segment is missed too: what was published names it, and its number does not come again (I1)."""
    with life(tmp_path) as first:
        first.write("a")
        first.roll()
        first.write("lost")
    segment_path(tmp_path, 2).unlink()
    assert kinds(read_all(tmp_path).damages) == [DamageKind.SEGMENT_MISSING]
    with life(tmp_path) as second:
        assert second.tail.number == 3
        second.write("b")
    found = read_all(tmp_path)
    assert (found.names, kinds(found.damages)) == (["a", "b"], [DamageKind.SEGMENT_MISSING])


def test_a_removed_segment_is_not_a_missing_one(tmp_path: Path) -> None:
    """What retention removed from the oldest end is told as gone to who asks for it, and is no damage."""
    with life(tmp_path) as one:
        (old,) = one.write("old")
        one.roll()
        one.write("kept")
    source = reader(tmp_path)
    directory = the_directory(source)
    assert source.read(directory, old, 300).frames
    source.remove_oldest(directory, SegmentNumber(1))
    result = source.read(directory, old, 300)
    assert (result.frames, result.damages, result.is_gone) == ([], [], True)
    assert result.next == source.oldest(directory)
    found = read_all(tmp_path)
    assert (found.names, found.damages) == (["kept"], [])
    with pytest.raises(FrameDamaged, match="gone"):
        source.fetch(old)


def test_segment_cut_below_the_flushed_mark(tmp_path: Path) -> None:
    """Bytes that were flushed and are no longer in the file are damage, down to the cut frame (I5)."""
    _, cut = one_segment(tmp_path, ["a"], ["cut"])
    path = segment_path(tmp_path, 1)
    length = path.stat().st_size
    overwrite(path, path.read_bytes()[: cut.offset + 20])
    expected = Damage(DamageKind.BYTES_MISSING, cut, length - cut.offset, "truncated")
    found = read_all(tmp_path)
    assert (found.names, found.damages) == (["a"], [expected])
    with life(tmp_path) as second:
        second.write("b")
    found = read_all(tmp_path)
    assert (found.names, found.damages) == (["a", "b"], [expected])
    assert [note.copied_bytes for note in notes(tmp_path)] == [20]


def test_segment_cut_below_where_a_reader_was(tmp_path: Path) -> None:
    """The place a reader had come to proves that more was flushed than a cut segment and its header say (I5)."""
    with life(tmp_path) as first:
        first.write("a")
        published = first.directory.published_path.read_bytes()
        first.write("settled")
        end = first.tail.flushed
    path = segment_path(tmp_path, 1)
    overwrite(tmp_path / "queue" / "1" / "flushed", published)
    overwrite(path, path.read_bytes()[: end - 8])
    with life(tmp_path) as second:
        second.write("b")
    found = read_all(tmp_path, FramePosition(second.directory.id, SegmentNumber(1), end))
    assert (found.names, kinds(found.damages)) == (["b"], [DamageKind.BYTES_MISSING])
    assert found.damages[0].position.offset + found.damages[0].damaged_bytes == end


@pytest.mark.parametrize("number", [1, 2, 3])
def test_damaged_header(tmp_path: Path, number: int) -> None:
    """A segment whose header is damaged is read all the same: its frames say themselves where they belong."""
    with life(tmp_path) as one:
        for i in range(3):
            if i:
                one.roll()
            one.write(f"{i}.0", f"{i}.1")
    flip(segment_path(tmp_path, number), 20)
    expected = [f"{i}.{j}" for i in range(3) for j in range(2)]
    found = read_all(tmp_path)
    assert (found.names, found.damages) == (expected, [])
    with life(tmp_path) as second:
        assert second.tail.number == 4
        second.write("b")
    found = read_all(tmp_path)
    assert (found.names, found.damages) == ([*expected, "b"], [])


def test_damaged_header_and_nothing_published(tmp_path: Path) -> None:
    """Frames of the newest segment are kept although neither its header nor anything published vouches for it."""
    with life(tmp_path) as first:
        first.write("a")
        first.roll()
        first.write("b")
    flip(segment_path(tmp_path, 2), 20)
    (tmp_path / "queue" / "1" / "flushed").unlink()
    with life(tmp_path) as second:
        second.write("c")
    found = read_all(tmp_path)
    assert (found.names, found.damages) == (["a", "b", "c"], [])


def test_header_never_flushed(tmp_path: Path) -> None:
    """A newest segment that was never begun is set aside and removed, and its number is left unused."""
    one_segment(tmp_path, ["a"])
    for leftover in (b"", SEGMENT_MARK + bytes(20)):
        segment_path(tmp_path, 2).write_bytes(leftover)
        with life(tmp_path) as second:
            assert second.tail.number == 3
        assert not segment_path(tmp_path, 2).exists()
        segment_path(tmp_path, 3).unlink()
        (tmp_path / "queue" / "1" / "flushed").unlink()
    with life(tmp_path):
        pass
    assert read_all(tmp_path).names == ["a"]


@pytest.mark.parametrize("garbage", [None, b"", b"\xff" * 128, bytes(128), b"\xff" * 500])
def test_published_file_missing_or_garbage(tmp_path: Path, garbage: bytes | None) -> None:
    """Without the published file a reader takes what frames prove, and the next life what is whole."""
    one_segment(tmp_path, ["a"], ["b"], ["c"])
    path = tmp_path / "queue" / "1" / "flushed"
    if garbage is None:
        path.unlink()
    else:
        overwrite(path, garbage)
    assert read_all(tmp_path).names == ["a", "b"]
    with life(tmp_path) as second:
        second.write("d")
        assert read_all(tmp_path).names == ["a", "b", "c", "d"]


def test_published_file_replaced_under_a_writer(tmp_path: Path) -> None:
    """A published file that is removed or cut while a writer lives is made anew with its next flush."""
    with life(tmp_path) as one:
        one.write("a")
        path = one.directory.published_path
        source = reader(tmp_path)
        assert source.durable_end(one.directory.id).offset == one.tail.flushed
        path.unlink()
        one.write("b")
        assert source.durable_end(one.directory.id).offset == one.tail.flushed
        overwrite(path, b"")
        one.write("c")
        assert source.durable_end(one.directory.id).offset == one.tail.flushed
    assert read_all(tmp_path).names == ["a", "b", "c"]


def test_published_place_ahead_of_the_file(tmp_path: Path) -> None:
    """What was published as flushed and is not in the file is damage; the writer goes on in a fresh segment."""
    (only,) = one_segment(tmp_path, ["only"])
    path = segment_path(tmp_path, 1)
    flushed = path.stat().st_size
    overwrite(path, path.read_bytes()[: only.offset])
    with life(tmp_path) as second:
        second.write("b")
    found = read_all(tmp_path)
    assert (found.names, kinds(found.damages)) == (["b"], [DamageKind.BYTES_MISSING])
    assert found.damages[0].damaged_bytes == flushed - only.offset


def test_segment_of_another_directory(tmp_path: Path) -> None:
    """A segment that was copied from another directory is set aside; none of its frames is read."""
    one_segment(tmp_path / "other", ["foreign"])
    foreign = segment_path(tmp_path / "other", 1).read_bytes()
    one_segment(tmp_path, ["a"])
    segment_path(tmp_path, 9).write_bytes(foreign)
    with life(tmp_path) as second:
        assert second.tail.number == 10
        second.write("b")
    found = read_all(tmp_path)
    assert (found.names, found.damages) == (["a", "b"], [])
    assert not segment_path(tmp_path, 9).exists()
    assert foreign in quarantined(tmp_path).values()


def test_segment_of_another_directory_in_the_place_of_one(tmp_path: Path) -> None:
    """A foreign segment under a number of ours is damage as a whole."""
    one_segment(tmp_path / "other", ["foreign"])
    with life(tmp_path) as one:
        one.write("a")
        one.roll()
        one.write("replaced")
        one.roll()
        one.write("b")
    overwrite(segment_path(tmp_path, 2), segment_path(tmp_path / "other", 1).read_bytes())
    found = read_all(tmp_path)
    assert (found.names, len(found.damages)) == (["a", "b"], 1)


def test_newer_format_version(tmp_path: Path) -> None:
    """A segment of a later version is refused with one line that says what to do; nothing is cut or moved."""
    one_segment(tmp_path, ["a"])
    path = segment_path(tmp_path, 1)
    data = bytearray(path.read_bytes())
    data[16:18] = (2).to_bytes(2, "little")
    data[8:16] = xxhash.xxh3_64_intdigest(bytes(data[:8] + data[16:64])).to_bytes(8, "little")
    overwrite(path, bytes(data))
    for is_published in (True, False):
        if not is_published:
            (tmp_path / "queue" / "1" / "flushed").unlink()
        with pytest.raises(StartRefused, match="format version 2"), life(tmp_path):
            pass
        with pytest.raises(StartRefused, match=r"0000000001\.seg has format version 2"):
            read_all(tmp_path)
        assert path.read_bytes() == bytes(data)
    assert quarantined(tmp_path) == {}


def test_directory_id_lost(tmp_path: Path) -> None:
    """The id is found again in the segments' headers, so every position stays good."""
    (position,) = one_segment(tmp_path, ["a"])
    path = tmp_path / "queue" / "1" / ID_NAME
    for lost in (b"", b"\xff" * 24):
        overwrite(path, lost)
        with life(tmp_path) as second:
            assert second.directory.id == position.directory
    path.unlink()
    assert reader(tmp_path).fetch(position).position == position


def test_damage_is_set_aside_once(tmp_path: Path) -> None:
    """Who finds the same damage again writes nothing, and who only reads writes nothing ever."""
    _, bad, _ = one_segment(tmp_path, ["a", "bad", "b"])
    flip(segment_path(tmp_path, 1), bad.offset + HEADER_BYTES)
    assert len(read_all(tmp_path, quarantining=False).damages) == 1
    assert quarantined(tmp_path) == {}
    read_all(tmp_path)
    before = {path: path.stat().st_mtime_ns for path in (tmp_path / "quarantine").iterdir()}
    assert len(read_all(tmp_path).damages) == 1
    with pytest.raises(FrameDamaged):
        reader(tmp_path).fetch(bad)
    assert {path: path.stat().st_mtime_ns for path in (tmp_path / "quarantine").iterdir()} == before
    assert all(path.stat().st_mode & 0o077 == 0 for path in before)


def test_directories_without_a_writer_are_closed_too(tmp_path: Path) -> None:
    """Where fewer writers live than before, what lies in the other directories becomes readable all the same (I7)."""
    with life(tmp_path) as first:
        first.write("a")
        published = first.directory.published_path.read_bytes()
        first.write("b")
    overwrite(first.directory.published_path, published)
    with segment_path(tmp_path, 1).open("ab") as file:
        file.write(b"torn")
    assert read_all(tmp_path).names == ["a"]
    recover_idle(tmp_path / "queue", RealFiles(), tmp_path / "quarantine")
    assert read_all(tmp_path).names == ["a", "b"]
    with life(tmp_path) as held:
        held.write("c")
        recover_idle(tmp_path / "queue", RealFiles(), tmp_path / "quarantine")
        held.write("d")
    found = read_all(tmp_path)
    assert (found.names, found.damages) == (["a", "b", "c", "d"], [])


def test_a_header_packs_what_it_says() -> None:
    """The bytes of a header are those that the format page names."""
    header = SegmentHeader(SegmentNumber(7), DirectoryId(b"directry"), SegmentNumber(5), 4096, NOW_MS)
    packed = header.pack()
    assert len(packed) == SEGMENT_HEADER_BYTES
    assert (packed[:8], packed[16:18], packed[20:24]) == (SEGMENT_MARK, b"\1\0", b"\7\0\0\0")
    assert (packed[24:32], packed[32:36], packed[40:48]) == (b"directry", b"\5\0\0\0", (4096).to_bytes(8, "little"))
