"""The ledger's format: the keys of its facts, how a ledger begins, and how an older format is brought up to this one.

The family `default` holds, big-endian:

    key                                   value
    format                                format version (2), see `FORMAT_VERSION`
    id                                    the ledger's UUID (16)
    clock                                 time in ms (8), time observed running in ms (8)
    generations                           a record of 20 bytes each, see `generations.py`
    group                                 the last group's number (8)
    source/NAME                           accepted, new, duplicate, conflict, blocked, test, erased (8 each)
    routed/SOURCE/SET                     new rows meant for a set of destinations (8); SET is the names joined by
                                          commas, empty for none, * for every destination
    reading/DIRECTORY                     where settle goes on reading (16)
    destination/NAME                      start group, cursor, base, delivered, dead, again, erased (8 each)
    resent/NAME/GROUP                     nothing; a group of rows sent again that is not delivered yet
    damage/POSITION                       bytes (8), reason; the position packed (16)
    rebuilt/NAME                          the last group that a destination held when the ledger was rebuilt (8)
    segment/DIRECTORY NUMBER              the last group that names a frame of a segment (8)
    mark/GROUP                            time observed running (8) before which all groups up to this one were settled
    erased/GROUP                          places in a group (2 each) of rows that were erased, see `erasures.py`
    erasure/ID                            an erasure that was ordered, as JSON, see `erasures.py`
    gone/group                            the last group that is gone (8), when in ms (8)
    gone/source/NAME, gone/routed/…, gone/destination/NAME, gone/end/DIRECTORY
                                          balances carried forward of groups that are gone, see `carried.py`
"""

from __future__ import annotations

import struct
from pathlib import Path
from uuid import UUID

from counterfoil.errors import LedgerUnusable
from counterfoil.ledger.carried import Carried, upgrade_carried
from counterfoil.ledger.destinations import upgrade_destinations
from counterfoil.ledger.generations import Generation, LedgerClock, pack_clock, pack_generations
from counterfoil.ledger.kept import GONE_DESTINATION, GONE_SOURCE, Kept, Segment, put_segments
from counterfoil.ledger.records import FORMAT_VERSION, GroupNumber, unpack_group
from counterfoil.ledger.settings import LedgerSettings
from counterfoil.ledger.store import FACTS, GROUPS, Store

FORMAT = b"format"
ID = b"id"
CLOCK = b"clock"
GENERATIONS = b"generations"
GROUP = b"group"
SOURCE = b"source/"
ROUTED = b"routed/"
READING = b"reading/"
DAMAGE = b"damage/"

_U16 = struct.Struct(">H")
_U64 = struct.Struct(">Q")


def stored(path: Path, settings: LedgerSettings, key: bytes) -> bytes | None:
    """The value of a key of the ledger at `path`; None when it can't be read."""
    try:
        store = Store(path, settings, is_writer=False)
    except LedgerUnusable:
        return None
    try:
        return store.get(FACTS, key)
    except LedgerUnusable:
        return None
    finally:
        store.close()


def made_id(made: Path) -> UUID | None:
    """The id in the file that says that a ledger was made here; None when it has none."""
    try:
        return UUID(made.read_text().strip())
    except (OSError, ValueError):
        return None


def begin(store: Store, ledger_id: UUID, last_group: int = 0) -> None:
    """Write what an empty ledger holds, whose first group is the one after `last_group`."""
    first = Generation(1, begun_ms=0, observed_ms=0)
    batch = store.batch()
    batch.put(FACTS, FORMAT, _U16.pack(FORMAT_VERSION))
    batch.put(FACTS, ID, ledger_id.bytes)
    batch.put(FACTS, GROUP, _U64.pack(last_group))
    if last_group:
        # The groups before it are gone with the ledger that had them.
        Kept({}).put_carried(batch, Carried(GroupNumber(last_group)))
    batch.put(FACTS, CLOCK, pack_clock(LedgerClock(0, 0)))
    batch.put(FACTS, GENERATIONS, pack_generations((first,)))
    store.write(batch)


def check(store: Store, path: Path, ledger_id: UUID, *, is_writer: bool) -> None:
    """Raise LedgerUnusable, with one line, when the ledger is another queue's or of a format that can't be read."""
    packed_format, packed_id = store.get(FACTS, FORMAT), store.get(FACTS, ID)
    if packed_format is None or packed_id is None:
        raise LedgerUnusable(f"{path}: there is no ledger here")
    (version,) = _U16.unpack(packed_format)
    if version > FORMAT_VERSION:
        raise LedgerUnusable(
            f"{path}: format version {version}, this Counterfoil reads versions up to {FORMAT_VERSION}"
        )
    if version < FORMAT_VERSION and not is_writer:
        raise LedgerUnusable(
            f"{path}: format version {version}; start the server once, it brings it to {FORMAT_VERSION}"
        )
    if packed_id != ledger_id.bytes:
        raise LedgerUnusable(f"{path}: the ledger {UUID(bytes=packed_id)}, expected {ledger_id}")


def upgrade(store: Store) -> None:
    """Bring an older format up to this one, in one batch."""
    packed = store.get(FACTS, FORMAT)
    version = FORMAT_VERSION if packed is None else _U16.unpack(packed)[0]
    if version == FORMAT_VERSION:
        return
    batch = store.batch()
    if version < 2:
        # It did not note which group names a segment last.
        named: dict[Segment, GroupNumber] = {}
        for key, value in store.items(GROUPS, b""):
            group = unpack_group(GroupNumber(_U64.unpack(key)[0]), value)
            named.update(((f.position.directory, f.position.segment), group.number) for f in group.frames)
        put_segments(batch, named)
    upgrade_destinations(store, batch, version)
    if version < 4:
        # Nothing was ever erased.
        for prefix in (SOURCE, GONE_SOURCE):
            for key, value in store.items(FACTS, prefix, prefix):
                batch.put(FACTS, key, value + _U64.pack(0))
        for key, value in store.items(FACTS, GONE_DESTINATION, GONE_DESTINATION):
            batch.put(FACTS, key, upgrade_carried(value))
    batch.put(FACTS, FORMAT, _U16.pack(FORMAT_VERSION))
    store.write(batch)
