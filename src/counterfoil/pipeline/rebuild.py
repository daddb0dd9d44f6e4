"""Rebuild: a ledger made anew from what the queue and the destinations hold, when the old one is lost.

    1. What each destination holds is read into an index of keys, on disk.
    2. Every frame of the queue is settled again, in the order of receipt, in groups whose numbers lie after every
       number that a destination's cursor or row may name: no cursor ever names other rows.
    3. For each destination: up to the last group of which it holds a row, the rows it holds count as delivered, and
       those it lacks are sent to it alone. Later groups wait for it like any others.
    4. Keys that a destination holds and no frame has any more join the seen index, so that a repeat of them is one.
    5. The cursors of the destinations are moved to where the new ledger has them. Then the old ledger goes to
       quarantine, and the new one takes its place.

Until step 5 nothing of what is there is changed, and all of it may be done again from the beginning: what an earlier,
interrupted rebuild left is thrown away. Memory does not grow with rows or keys.
"""

from __future__ import annotations

import shutil
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from itertools import groupby, islice
from pathlib import Path
from uuid import UUID

import msgspec
import numpy as np
from numpy.typing import NDArray

from counterfoil.contract.facts import Verdict, key_hashes, key_prefix
from counterfoil.destinations.interface import Delivery, Destination
from counterfoil.failpoints import reach
from counterfoil.files import Files
from counterfoil.ledger import (
    ROWS_A_GROUP_MAX,
    Cause,
    DeadRow,
    Group,
    GroupNumber,
    Ledger,
    LedgerReader,
    ResentRow,
    Seq,
    SourceCounts,
    group_of,
    seq_of,
)
from counterfoil.ledger.held import HeldKeys
from counterfoil.ledger.settings import LedgerSettings
from counterfoil.pipeline.routes import set_columns
from counterfoil.pipeline.settings import PipelineSettings
from counterfoil.pipeline.settle import READ_BYTES, Reading, Settler, packed_items
from counterfoil.positions import FramePosition
from counterfoil.queue import FrameSource
from counterfoil.queue.frame import Frame

EPOCH_GROUPS = 2**32
"""The first group of a rebuilt ledger follows a multiple of this: a webhook can't be asked what it was given."""

NOT_HELD = "not_held"
"""Why a row is dead that was settled before a rebuild, and that its destination does not hold."""

COMMIT = "rebuild"
"""What the ledger calls the delivery of rows that a destination held when the ledger was rebuilt."""

COMPLETE = "complete"

KEYS_AT_ONCE = 50_000
LACKING_AT_ONCE = 4096


class RebuiltDestination(msgspec.Struct, frozen=True):
    """What a rebuild found at a destination."""

    destination: str
    is_asked: bool
    """False when it can't say what it holds."""
    held: int
    """Rows that it holds, whether the queue still has them or not."""
    delivered: int
    """Rows of the queue that count as delivered there."""
    pending: int
    """Rows of the queue that are sent to it now."""


class Rebuilt(msgspec.Struct, frozen=True):
    """What a rebuild came to."""

    sources: tuple[SourceCounts, ...]
    destinations: tuple[RebuiltDestination, ...]
    first_group: int
    last_group: int
    damaged_frames: int
    keys_without_frames: int
    """Keys that destinations hold and the queue does not have any more."""


class Places(msgspec.Struct, frozen=True):
    """Where a rebuild works: everything on one file system."""

    ledger: Path
    quarantine: Path

    @property
    def work(self) -> Path:
        return self.ledger.with_name("rebuilding")

    @property
    def new(self) -> Path:
        return self.work / "ledger"


def rebuild(
    places: Places,
    ledger_id: UUID,
    source: FrameSource,
    destinations: Iterable[Destination],
    settings: LedgerSettings,
    pipeline: PipelineSettings,
    files: Files,
    *,
    assume_delivered: bool,
    clock_ms: Callable[[], int],
    tell: Callable[[str], None] = lambda _: None,
) -> Rebuilt:
    """Make the ledger anew; nobody else may work in the data directory.

    `assume_delivered`: what to believe of destinations that can't be asked; otherwise everything kept is sent to them.
    `tell` is told what is done now, a line a step. Raises DestinationDown and DestinationRefused, before anything of
    the old ledger was touched, and OSError.
    """
    named = {destination.name: destination for destination in destinations}
    shutil.rmtree(places.work, ignore_errors=True)
    files.make_dir(places.work)
    held = HeldKeys.open(places.work / "held", settings)
    try:
        tell("Asking the destinations what they hold")
        reach("rebuild.asking")
        asked = _ask(held, named)
        first = _first_group(places.ledger, settings, asked)
        ledger = Ledger.begin_after(places.new, settings, ledger_id, GroupNumber(first - 1))
        try:
            return _fill(
                ledger, held, named, asked, source, pipeline, assume_delivered=assume_delivered, clock_ms=clock_ms,
                tell=tell,
            )  # fmt: skip
        finally:
            ledger.close()
    finally:
        held.close()


def put_in_place(places: Places, ledger_id: UUID, files: Files, now_ms: int) -> Path | None:
    """Move the old ledger to quarantine and the new one into its place; where the old one lies now. Raises OSError.

    Harmless to begin again after it was interrupted: see `is_half_in_place`.
    """
    files.write_whole(places.ledger.with_name(f"{places.ledger.name}.made"), f"{ledger_id}\n".encode())
    files.write_whole(places.work / COMPLETE, b"")
    aside: Path | None = None
    if places.ledger.is_dir() and any(places.ledger.iterdir()):
        aside = places.quarantine / f"ledger-{now_ms}"
        files.make_dir(places.quarantine)
        files.rename(places.ledger, aside)
        files.sync_dir(places.quarantine)
    files.rename(places.new, places.ledger)
    files.sync_dir(places.ledger.parent)
    shutil.rmtree(places.work)
    return aside


def is_half_in_place(places: Places) -> bool:
    """Whether an earlier rebuild was interrupted after the old ledger was gone, and before the new one was there."""
    return (places.work / COMPLETE).exists() and places.new.is_dir() and not (places.ledger / "CURRENT").exists()


class _Asked(msgspec.Struct, frozen=True):
    """What a destination said of itself."""

    number: int
    """Its place in the index of keys."""
    can_be_asked: bool
    cursor: int
    """The last group that it holds, by its own cursor; 0 is none."""
    row_count: int
    last_seq: int


def _ask(held: HeldKeys, destinations: Mapping[str, Destination]) -> dict[str, _Asked]:
    asked: dict[str, _Asked] = {}
    for number, (name, destination) in enumerate(destinations.items()):
        receipt = destination.open()
        answer = destination.held() if destination.keeps_cursor else None
        row_count, last_seq = 0, 0
        for rows in answer or ():
            hashes = key_hashes(key_prefix(rows.source), rows.distinct_ids)
            held.add(number, hashes, rows.seqs)
            row_count += len(hashes)
            last_seq = max(last_seq, *rows.seqs)
        asked[name] = _Asked(number, answer is not None, receipt.last_group if receipt else 0, row_count, last_seq)
    held.flush()
    return asked


def _first_group(old: Path, settings: LedgerSettings, asked: Mapping[str, _Asked]) -> int:
    """The first number of the new groups: after all that anybody may know."""
    known = [max(each.cursor, group_of(Seq(each.last_seq))) for each in asked.values()]
    last = max([*known, LedgerReader.stored_last_group(old, settings) or 0])
    return (last // EPOCH_GROUPS + 1) * EPOCH_GROUPS + 1


def _fill(
    ledger: Ledger,
    held: HeldKeys,
    destinations: Mapping[str, Destination],
    asked: Mapping[str, _Asked],
    source: FrameSource,
    pipeline: PipelineSettings,
    *,
    assume_delivered: bool,
    clock_ms: Callable[[], int],
    tell: Callable[[str], None],
) -> Rebuilt:
    first = ledger.last_group() + 1
    for name in destinations:
        ledger.register_destination(name)
    tell("Settling the queue again")
    settler = ReceiptOrderSettler(source, ledger, pipeline, clock_ms, time.monotonic)
    while settler.step():
        pass
    last = ledger.last_group()
    for name, each in asked.items():
        if each.can_be_asked:
            tell(f"Comparing with {name}")
            reach("rebuild.comparing")
            _claim_held(ledger, held, each, name, source, last, clock_ms())
        elif assume_delivered:
            _claim_all(ledger, name, source, last, clock_ms())
    for name, each in asked.items():
        if each.can_be_asked:
            _send_lacking(ledger, name, clock_ms())
    tell("Taking over keys whose rows are gone")
    keys = _add_known_keys(ledger, held, clock_ms())
    tell("Moving the cursors")
    for name, destination in destinations.items():
        rebuilt_to = ledger.rebuilt_to(name)
        if asked[name].can_be_asked and rebuilt_to:
            # Empty: it holds these rows, under the numbers of the old ledger.
            destination.deliver(Delivery(first, rebuilt_to, []))
        destination.close()
    reach("rebuild.moved")
    books = ledger.books()
    return Rebuilt(
        sources=books.sources,
        destinations=tuple(
            RebuiltDestination(
                counts.destination,
                asked[counts.destination].can_be_asked,
                asked[counts.destination].row_count,
                counts.delivered,
                counts.pending + counts.dead,
            )
            for counts in books.destinations
        ),
        first_group=first,
        last_group=last,
        damaged_frames=books.damaged_frames,
        keys_without_frames=keys,
    )


class ReceiptOrderSettler(Settler):
    """Settles over all writers in the order in which rows were received: the first row of a key is the first again."""

    def _gather(self) -> list[Frame]:
        taken: list[Frame] = []
        row_count = frame_bytes = 0
        while row_count < self._settings.group_rows and frame_bytes < self._settings.group_bytes:
            reading = self._earliest()
            if reading is None or row_count + reading.frames[0].facts.row_count > ROWS_A_GROUP_MAX:
                break
            frame = reading.frames.popleft()
            taken.append(frame)
            row_count += frame.facts.row_count
            frame_bytes += frame.frame_bytes
        return taken

    def _earliest(self) -> Reading | None:
        """The writer whose next frame was received first; None when every frame is settled."""
        found: Reading | None = None
        for directory in sorted(self._source.directories()):
            reading = self._readings.setdefault(directory, Reading(None))
            before: FramePosition | None = None
            while not reading.frames and (reading.next is None or reading.next != before):
                before = reading.next
                self._read(directory, reading, READ_BYTES)
            if reading.frames and (found is None or _next_received_ms(reading) < _next_received_ms(found)):
                found = reading
        return found


def _next_received_ms(reading: Reading) -> int:
    return reading.frames[0].received_at_ms


# What destinations hold of the new groups


class _GroupHeld(msgspec.Struct, frozen=True):
    """The new rows of a group that are meant for a destination."""

    number: GroupNumber
    seqs: NDArray[np.int64]
    """Of those that were not erased."""
    is_held: NDArray[np.bool_]
    erased_rows: int


def _claim_held(
    ledger: Ledger, held: HeldKeys, asked: _Asked, name: str, source: FrameSource, last: int, at_ms: int
) -> None:
    """Let the rows that a destination holds count as delivered, up to the last group of which it holds one."""
    compared = _Compared(ledger, held, asked.number, name, source)
    rebuilt_to = max((group.number for group in compared.groups(last) if group.is_held.any()), default=None)
    if rebuilt_to is None:
        return
    for group in compared.groups(rebuilt_to):
        ledger.record_delivery(
            name,
            first_group=group.number,
            last_group=group.number,
            delivered_rows=int(group.is_held.sum()),
            dead=[DeadRow(Seq(seq), NOT_HELD) for seq in group.seqs[~group.is_held].tolist()],
            commit=COMMIT,
            at_ms=at_ms,
            erased_rows=group.erased_rows,
        )
    ledger.note_rebuilt(name, rebuilt_to)


def _send_lacking(ledger: Ledger, name: str, at_ms: int) -> None:
    """Send a destination the rows that it lacks, in groups of its own."""
    after = 0
    while letters := list(islice(ledger.dead_letters(name, after=after), LACKING_AT_ONCE)):
        after = letters[-1].seq
        rows: list[ResentRow] = []
        frames: dict[FramePosition, int] = {}
        for number, of_group in groupby(letters, lambda letter: group_of(letter.seq)):
            group = ledger.group(number)
            assert isinstance(group, Group)
            seqs = [letter.seq for letter in of_group]
            named = {frame.position: frame for frame in group.frames}
            for seq, position in zip(seqs, group.positions_of(seq % ROWS_A_GROUP_MAX for seq in seqs), strict=True):
                frame = named[position.frame]
                frames[position.frame] = frame.frame_bytes
                rows.append(ResentRow(seq, seq, position, frame.source))
        ledger.send_again(name, Cause.RETRY, rows, frame_bytes=sum(frames.values()), at_ms=at_ms)


def _claim_all(ledger: Ledger, name: str, source: FrameSource, last: GroupNumber, at_ms: int) -> None:
    first = ledger.cursor(name) + 1
    if first <= last:
        routed = ledger.routed_between(name, first - 1, last + 1)
        erased_rows = sum(_erased_rows(ledger, name, source, number) for number in range(first, last + 1))
        ledger.record_delivery(
            name,
            first_group=first,
            last_group=last,
            delivered_rows=routed - erased_rows,
            commit=COMMIT,
            at_ms=at_ms,
            erased_rows=erased_rows,
        )
        ledger.note_rebuilt(name, last)


def _erased_rows(ledger: LedgerReader, name: str, source: FrameSource, number: int) -> int:
    """How many rows of a group that are meant for a destination were erased."""
    group = ledger.group(number) if ledger.erased_places(number) else None
    if not isinstance(group, Group):
        return 0
    is_new = np.frombuffer(group.verdicts, np.uint8) == Verdict.NEW
    facts = [source.fetch(part.position).facts for part in group.frames]
    are_erased = np.concatenate([each.are_erased for each in facts])
    return int((set_columns(facts).are_for(name) & is_new & are_erased).sum())


class _Compared:
    """The groups of a new ledger beside what a destination holds."""

    def __init__(self, ledger: LedgerReader, held: HeldKeys, number: int, name: str, source: FrameSource) -> None:
        self._ledger = ledger
        self._held = held
        self._number = number
        self._name = name
        self._source = source
        self._first = ledger.cursor(name) + 1

    def groups(self, last: int) -> Iterator[_GroupHeld]:
        """Each group up to `last`, in order."""
        for number in range(self._first, last + 1):
            group = self._ledger.group(number)
            assert isinstance(group, Group)
            yield self._compare(group)

    def _compare(self, group: Group) -> _GroupHeld:
        verdicts = np.frombuffer(group.verdicts, np.uint8)
        seqs: list[NDArray[np.int64]] = [np.empty(0, np.int64)]
        keys: list[bytes] = []
        erased_rows = 0
        for part, place in group.parts():
            facts = self._source.fetch(part.position).facts
            is_new = verdicts[place : place + part.row_count] == Verdict.NEW
            meant = set_columns([facts]).are_for(self._name) & is_new
            chosen = meant & ~facts.are_erased
            erased_rows += int(meant.sum() - chosen.sum())
            seqs.append(seq_of(group.number, place) + np.flatnonzero(chosen))
            keys += packed_items(facts.key_hashes[chosen])
        is_held = self._held.are_held(self._number, keys)
        return _GroupHeld(group.number, np.concatenate(seqs), is_held, erased_rows)


def _add_known_keys(ledger: Ledger, held: HeldKeys, now_ms: int) -> int:
    """Put the keys that no frame of the queue has into the seen index; how many they are."""
    count = 0
    for keys, seqs in held.batches(KEYS_AT_ONCE):
        unknown = [index for index, found in enumerate(ledger.seen(keys)) if found is None]
        ledger.add_known_keys([keys[index] for index in unknown], [seqs[index] for index in unknown], now_ms)
        count += len(unknown)
    return count
