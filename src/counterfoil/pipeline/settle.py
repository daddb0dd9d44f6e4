"""Settle: gives every row its verdict, once, in one order over all writers.

Works on the facts that stand in the frames and reads no row. Whole frames of all writers make a group; a group's
verdicts, new keys, counters and reading positions are one synced batch of the ledger, so that a crash at any line
loses and doubles nothing: the same frames are read again, and form the group anew under a number that nobody has seen.

`judge` says what the verdict of one row is. `judge_rows` says the same for the rows of a group at once: rows are
sorted by key, so that each key is asked for once and neighbours in the index are asked for together, and the rest is
arithmetic on columns. A test holds the two together.
"""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable, Sequence
from itertools import chain

import msgspec
import numpy as np
from numpy.typing import NDArray

from counterfoil.contract.facts import ERASED_VERDICT_SHIFT, KEY_HASH_BYTES, RowFlag, Verdict
from counterfoil.ledger import (
    CONTENT_UNKNOWN,
    ROWS_A_GROUP_MAX,
    DamageRecord,
    Group,
    GroupFrame,
    GroupNumber,
    Ledger,
    Settled,
    count_sources,
)
from counterfoil.pipeline.routes import set_columns
from counterfoil.pipeline.settings import PipelineSettings
from counterfoil.positions import DirectoryId, FramePosition
from counterfoil.queue import FrameSource
from counterfoil.queue.frame import Frame

SEGMENT_GONE = "segment_gone"
"""Reason of a damage: the segment that settle was to read on in is not there any more."""

READ_BYTES = 4 * 1024 * 1024
"""How much is read of a writer's directory at once: what a group leaves over is kept, for each writer."""

TEND_SECONDS = 60.0
"""How often the ledger is told that time passed."""

MS_A_DAY = 86_400_000
DAY_MAX = 65_535

_SEEN = np.dtype([("seq", ">u8"), ("content", ">u8"), ("day", ">u2")])
_REPEAT_KEY = np.dtype([("key", f"V{KEY_HASH_BYTES}"), ("seq", ">u8")])
_REPEAT = np.dtype([("verdict", "u1"), ("day", ">u2")])
_NO_CLAIM = RowFlag.TEST | RowFlag.BLOCKED | RowFlag.ERASED
_VERDICTS = max(Verdict) + 1

Seen = Callable[[list[bytes]], list[bytes | None]]


def judge(flags: RowFlag, content_hash: int, first_content_hash: int | None) -> Verdict:
    """What becomes of a row, given the content hash of its key's first row, if there is one (design, section 2).

    A row that was erased stays what it was; it counts as new where nobody knew that any more. Only who settles frames
    again meets one.
    """
    if kept := flags >> ERASED_VERDICT_SHIFT:
        return Verdict(kept)
    if RowFlag.TEST in flags:
        return Verdict.TEST
    if RowFlag.BLOCKED in flags:
        return Verdict.BLOCKED
    if first_content_hash is None or RowFlag.ERASED in flags:
        return Verdict.NEW
    return Verdict.DUPLICATE if first_content_hash in (content_hash, CONTENT_UNKNOWN) else Verdict.CONFLICT


class Judged(msgspec.Struct, frozen=True):
    """The verdicts of a group's rows, and the order in which the ledger likes to write them."""

    verdicts: NDArray[np.uint8]
    """A `Verdict` a row, in the order of the rows."""
    new_rows: NDArray[np.intp]
    """The rows that claim their key, by key."""
    repeat_rows: NDArray[np.intp]
    """All others, by key and then in the order of the rows; those that were erased have no key and are in neither."""


def judge_rows(
    key_hashes: NDArray[np.uint8], content_hashes: NDArray[np.uint64], flags: NDArray[np.uint8], seen: Seen
) -> Judged:
    """What `judge` says of each row, one after the other.

    `seen` gives for a list of key hashes, sorted and each once, what the seen index holds of them.
    """
    halves = np.ascontiguousarray(key_hashes).view(">u8").astype(np.uint64)
    order = np.lexsort((halves[:, 1], halves[:, 0]))
    claims = (flags & _NO_CLAIM) == 0
    claiming = order[claims[order]]
    # The sort is stable: the first row of each run of equal keys is the first that came.
    sorted_halves = halves[claiming]
    is_first = np.ones(len(claiming), np.bool_)
    np.any(sorted_halves[1:] != sorted_halves[:-1], axis=1, out=is_first[1:])
    firsts = claiming[is_first]
    found = seen(packed_items(key_hashes[firsts]))
    is_seen = np.fromiter((value is not None for value in found), np.bool_, len(found))
    first_contents = content_hashes[firsts].astype(np.uint64)
    first_contents[is_seen] = np.frombuffer(b"".join(filter(None, found)), _SEEN)["content"]
    key_of = np.cumsum(is_first) - 1
    verdicts = np.where(flags & RowFlag.TEST, np.uint8(Verdict.TEST), np.uint8(Verdict.BLOCKED))
    is_same = (content_hashes[claiming] == first_contents[key_of]) | (first_contents[key_of] == CONTENT_UNKNOWN)
    verdicts[claiming] = np.where(is_same, np.uint8(Verdict.DUPLICATE), np.uint8(Verdict.CONFLICT))
    new_rows = firsts[~is_seen]
    verdicts[new_rows] = Verdict.NEW
    is_erased = (flags & np.uint8(RowFlag.ERASED)) != 0
    if is_erased.any():
        unknown = np.where(flags & (RowFlag.TEST | RowFlag.BLOCKED), verdicts, np.uint8(Verdict.NEW))
        kept = flags >> np.uint8(ERASED_VERDICT_SHIFT)
        verdicts = np.where(is_erased, np.where(kept != 0, kept, unknown), verdicts)
        order = order[~is_erased[order]]
    return Judged(verdicts, new_rows, order[verdicts[order] != Verdict.NEW])


def packed_items(array: NDArray[np.uint8] | NDArray[np.void]) -> list[bytes]:
    """Each entry along the first axis as its bytes."""
    packed = np.ascontiguousarray(array)
    size = packed.nbytes // len(packed) if len(packed) else 1
    data = packed.tobytes()
    return [data[start : start + size] for start in range(0, len(data), size)]


def settle_group(number: int, frames: Sequence[Frame], seen: Seen, settled_at_ms: int) -> Settled:
    """What the ledger is to record of whole frames that become the group of this number."""
    facts = [frame.facts for frame in frames]
    key_hashes = np.concatenate([each.key_hashes for each in facts])
    content_hashes = np.concatenate([each.content_hashes for each in facts])
    flags = np.concatenate([each.flags for each in facts])
    judged = judge_rows(key_hashes, content_hashes, flags, seen)
    erased = tuple(np.flatnonzero(flags & np.uint8(RowFlag.ERASED)).tolist())
    day = min(settled_at_ms // MS_A_DAY, DAY_MAX)
    first_seq = number * ROWS_A_GROUP_MAX

    new = np.empty(len(judged.new_rows), _SEEN)
    new["seq"] = judged.new_rows + first_seq
    new["content"] = content_hashes[judged.new_rows]
    new["day"] = day
    repeats = np.empty(len(judged.repeat_rows), _REPEAT_KEY)
    repeats["key"] = key_hashes[judged.repeat_rows].view(f"V{KEY_HASH_BYTES}")[:, 0]
    repeats["seq"] = judged.repeat_rows + first_seq
    repeat_verdicts = np.empty(len(judged.repeat_rows), _REPEAT)
    repeat_verdicts["verdict"] = judged.verdicts[judged.repeat_rows]
    repeat_verdicts["day"] = day

    group = Group(
        number=GroupNumber(number),
        frames=tuple(
            GroupFrame(each.position, each.facts.source, each.facts.row_count, each.frame_bytes) for each in frames
        ),
        verdicts=judged.verdicts.tobytes(),
        routed=set_columns(facts).count(judged.verdicts == Verdict.NEW),
        settled_at_ms=settled_at_ms,
    )
    return Settled(
        group=group,
        reading_positions=(),
        source_counts=count_sources(facts, judged.verdicts, erased),
        new_keys=packed_items(key_hashes[judged.new_rows]),
        seen=packed_items(new),
        repeats=packed_items(repeats),
        repeat_verdicts=packed_items(repeat_verdicts),
        erased=erased,
    )


class Reading:
    """What was read of a writer's directory and is not settled yet."""

    def __init__(self, next_position: FramePosition | None) -> None:
        self.next = next_position
        self.frames: deque[Frame] = deque()
        self.damages: deque[DamageRecord] = deque()

    def position(self) -> FramePosition | None:
        """Where settle would go on if it were started anew after what has been taken."""
        return self.frames[0].position if self.frames else self.next

    def passed_damages(self) -> list[DamageRecord]:
        """The damages before `position`, taken out."""
        passed = []
        position = self.position()
        while self.damages and position is not None and self.damages[0].position < position:
            passed.append(self.damages.popleft())
        return passed


class Settler:
    """Settles what the queue holds, a group a step. Start anew with a ledger opened anew when a step raises."""

    def __init__(
        self,
        source: FrameSource,
        ledger: Ledger,
        settings: PipelineSettings,
        clock: Callable[[], int],
        monotonic: Callable[[], float] = time.monotonic,
    ) -> None:
        """`clock` gives the wall clock in ms since the Unix epoch."""
        self._source = source
        self._ledger = ledger
        self._settings = settings
        self._clock = clock
        self._monotonic = monotonic
        self._readings = {directory: Reading(position) for directory, position in ledger.reading_positions().items()}
        self._turn = 0
        self._tended = monotonic()

    def step(self) -> int:
        """How many rows were settled, in one group; 0 when there was nothing to do.

        Raises LedgerWriteFailed: nothing was recorded, and the frames will be settled again.
        """
        self._tend()
        frames = self._gather()
        damages = [damage for reading in self._readings.values() for damage in reading.passed_damages()]
        recorded = self._ledger.reading_positions()
        moved = [
            position
            for directory, reading in self._readings.items()
            if (position := reading.position()) is not None and recorded.get(directory) != position
        ]
        if frames:
            settled_at_ms = max(self._clock(), self._ledger.time_ms())
            settled = settle_group(self._ledger.last_group() + 1, frames, self._ledger.seen, settled_at_ms)
        elif damages or moved:
            # A writer that begins a segment is followed there at once: without rows that is rare, and "settled up to"
            # would stand behind "durable up to" for as long as nobody sends.
            settled = Settled(group=None, reading_positions=())
        else:
            return 0
        self._ledger.record(msgspec.structs.replace(settled, reading_positions=tuple(moved), damages=tuple(damages)))
        return settled.group.row_count if settled.group else 0

    def _gather(self) -> list[Frame]:
        """The frames of the next group; writers take turns at being first."""
        directories = sorted(self._source.directories())
        first = self._turn % len(directories) if directories else 0
        self._turn += 1
        taken: list[Frame] = []
        rows_left, bytes_left = self._settings.group_rows, self._settings.group_bytes
        row_room = ROWS_A_GROUP_MAX
        for directory in chain(directories[first:], directories[:first]):
            reading = self._readings.setdefault(directory, Reading(None))
            while rows_left > 0 and bytes_left > 0 and (reading.frames or self._read(directory, reading, bytes_left)):
                while reading.frames and rows_left > 0 and bytes_left > 0:
                    row_count = reading.frames[0].facts.row_count
                    if row_count > row_room:
                        return taken
                    frame = reading.frames.popleft()
                    taken.append(frame)
                    row_room -= row_count
                    rows_left -= row_count
                    bytes_left -= frame.frame_bytes
        return taken

    def _read(self, directory: DirectoryId, reading: Reading, bytes_max: int) -> bool:
        """Whether there are frames that wait now."""
        result = self._source.read(directory, reading.next, min(bytes_max, READ_BYTES))
        if result.is_gone and reading.next is not None:
            reading.damages.append(DamageRecord(reading.next, 0, SEGMENT_GONE))
        for damage in result.damages:
            reading.damages.append(DamageRecord(damage.position, damage.damaged_bytes, damage.kind))
        reading.frames.extend(result.frames)
        reading.next = result.next
        return bool(reading.frames)

    def _tend(self) -> None:
        now = self._monotonic()
        if now - self._tended >= TEND_SECONDS:
            self._ledger.tend(self._clock(), int((now - self._tended) * 1000))
            self._tended = now
