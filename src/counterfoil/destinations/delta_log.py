"""A Delta table's log on a local disk: what a crash may leave in it, and how it is made durable and kept short.

deltalake writes the log and flushes nothing. So after a power cut the newest entry may be there and hold nothing, or
half of what it held; everything before it is whole, because an entry is flushed before the next is written:

    G1. `mend`, before the table is opened: a torn newest entry, and a newest checkpoint that can't be read, go to
        quarantine. Any other damage is refused by name. What stays is durable when `mend` returns.
    G2. `settle` makes new entries durable; only then does anybody hear of the commit.
    G3. `clean` removes entries only below a checkpoint that was made durable, oldest first: what is left at any moment
        is a log without a gap. So does `forget`.

An entry is called whole when each of its lines is a JSON object and it holds as many actions as its `commitInfo` says
(ours do say it). To make an entry durable that an earlier life may have failed to flush it is written anew beside
itself and renamed: after a failed flush Linux calls a page clean that never reached the disk.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

import msgspec
import pyarrow as pa
import pyarrow.parquet as pq

from counterfoil.aside import copy_aside
from counterfoil.destinations.delta_table import CommitNote, note_of
from counterfoil.errors import DestinationRefused
from counterfoil.files import FILE_MODE, Files

LOG_ENTRIES_MAX = 1000
"""Entries below the newest checkpoint that stay for readers; a commit lists the directory and looks at each."""

_ENTRY = re.compile(r"(\d{20})\.json")
_CHECKPOINT = re.compile(r"(\d{20})\.checkpoint\.parquet")
# Other writers make checkpoints of several files, or named by an id.
_ANY_CHECKPOINT = re.compile(r"(\d{20})\.checkpoint\.(?:.+\.)?(?:parquet|json)")
# Entries, checkpoints, and what other writers put beside them: checksums, entries run together.
_OF_A_VERSION = re.compile(r"\.?(\d{20})\.")
# What object stores of the Rust kind and our own `write_whole` leave behind when they are killed.
_STAGING = re.compile(r".*\.json#\d+|.*\.parquet#\d+|_last_checkpoint#\d+|_commit_.*\.tmp|\..*\.tmp")


class TableLog:
    """The directory `_delta_log` of one table."""

    def __init__(self, root: Path, files: Files, quarantine: Path, clock_ms: Callable[[], int]) -> None:
        self._root = root
        self._path = root / "_delta_log"
        self._files = files
        self._quarantine = quarantine
        self._clock_ms = clock_ms

    def begin(self) -> None:
        """Make the directories, for the owner alone."""
        self._files.make_dir(self._path)

    def mend(self) -> int | None:
        """Set right what a crash left (G1); the newest version, None when there is no table.

        Raises DestinationRefused when the log is damaged in a way that no crash explains.
        """
        for path in self._path.iterdir():
            if _STAGING.fullmatch(path.name):
                self._files.remove(path)
        self._mend_checkpoints()
        versions = self.versions()
        checkpoint = self._newest_of_any_kind()
        self._check_gaps(versions, checkpoint)
        if versions and (checkpoint is None or versions[-1] > checkpoint):
            newest = versions[-1]
            for version in versions:
                if (checkpoint is None or version > checkpoint) and not is_whole(self._entry(version).read_bytes()):
                    if version != newest:
                        raise DestinationRefused(f"{self._entry(version)}: damaged: bring the table back from a backup")
                    self._set_aside(self._entry(newest), "torn log entry; its groups are delivered again")
                    versions.pop()
            if versions:
                self._rewrite(self._entry(versions[-1]))
        self._files.sync_dir(self._path)
        known = [version for version in (checkpoint, *versions) if version is not None]
        return max(known, default=None)

    def settle(self, first: int, last: int) -> None:
        """Make the entries from `first` to `last` durable (G2)."""
        for version in range(first, last + 1):
            self._entry(version).chmod(FILE_MODE)
            self._files.sync_file(self._entry(version))
        self._files.sync_dir(self._path)

    def settle_checkpoint(self, version: int) -> None:
        """Make a new checkpoint durable, and after it the pointer to it."""
        for path in (self._checkpoint(version), self._path / "_last_checkpoint"):
            path.chmod(FILE_MODE)
            self._files.sync_file(path)
            self._files.sync_dir(self._path)

    def clean(self, checkpoint: int, replaced_before_ms: int) -> Iterator[None]:
        """Remove what a durable checkpoint replaces and is older than that, or too many (G3); yields now and then."""
        older = [version for version in self.versions() if version < checkpoint]
        kept_from = max(checkpoint - LOG_ENTRIES_MAX, 0)
        for version in older:
            if self._entry(version).stat().st_mtime_ns // 1_000_000 >= replaced_before_ms:
                break
            kept_from = max(kept_from, version + 1)
        gone = [self._entry(version) for version in older if version < kept_from]
        gone += [self._checkpoint(version) for version in self._checkpoints() if version < kept_from]
        for count, path in enumerate(sorted(gone), 1):
            self._files.remove(path)
            if count % 100 == 0:
                yield
        if gone:
            self._files.sync_dir(self._path)

    def forget(self, checkpoint: int) -> None:
        """Remove whatever tells of a version before a durable checkpoint, whoever wrote it (G3)."""
        named = [(match, path) for path in self._path.iterdir() if (match := _OF_A_VERSION.match(path.name))]
        for _, path in sorted((int(match[1]), path) for match, path in named if int(match[1]) < checkpoint):
            self._files.remove(path)
        self._files.sync_dir(self._path)

    def versions(self) -> list[int]:
        """The versions whose entries are there, in order."""
        return self._numbers(_ENTRY)

    def checkpoint(self) -> int | None:
        """The version of the newest checkpoint that is one file."""
        return max(self._checkpoints(), default=None)

    def note(self, version: int) -> CommitNote | None:
        """What a commit of ours says of itself; None when it is another's or its entry is gone."""
        for action in self._actions([version]):
            if "commitInfo" in action:
                return note_of(action["commitInfo"])
        return None

    def removed(self) -> dict[str, int] | None:
        """The files that something took the place of, and when (ms); None when the log can't tell."""
        checkpoint = self.checkpoint()
        if checkpoint != self._newest_of_any_kind():
            return None
        later = [version for version in self.versions() if checkpoint is None or version > checkpoint]
        removed: dict[str, int] = {}
        if checkpoint is not None:
            column = pq.read_table(self._checkpoint(checkpoint), columns=["remove"]).column("remove")
            removes: list[Any] = column.drop_null().to_pylist()
            removed.update((remove["path"], remove["deletionTimestamp"] or 0) for remove in removes)
        for action in self._actions(later):
            if "remove" in action:
                removed[action["remove"]["path"]] = action["remove"].get("deletionTimestamp", 0)
            elif "add" in action:
                removed.pop(action["add"]["path"], None)
        return removed

    def _actions(self, versions: Iterable[int]) -> Iterator[dict[str, Any]]:
        for version in versions:
            try:
                data = self._entry(version).read_bytes()
            except FileNotFoundError:
                continue
            for line in data.splitlines():
                yield msgspec.json.decode(line)

    def _mend_checkpoints(self) -> None:
        newest = self.checkpoint()
        pointer = self._path / "_last_checkpoint"
        while newest is not None and not _is_readable(self._checkpoint(newest)):
            self._set_aside(self._checkpoint(newest), "torn checkpoint; the log entries before it stand in")
            newest = self.checkpoint()
        if newest is not None:
            self._rewrite(self._checkpoint(newest))
        if pointer.exists() and _pointed_at(pointer.read_bytes()) != newest:
            # Only a hint: without it readers look for the newest checkpoint themselves.
            self._files.remove(pointer)

    def _check_gaps(self, versions: list[int], checkpoint: int | None) -> None:
        expected = 0 if checkpoint is None else checkpoint + 1
        for version in versions:
            if version < expected:
                continue
            if version > expected:
                raise DestinationRefused(f"{self._entry(expected)}: missing: bring the table back from a backup")
            expected += 1

    def _rewrite(self, path: Path) -> None:
        self._files.write_whole(path, path.read_bytes())

    def _set_aside(self, path: Path, reason: str) -> None:
        name = f"{self._root.name}/_delta_log/{path.name}"
        copy_aside(path, name, self._quarantine, reason, self._files, self._clock_ms())
        self._files.remove(path)
        self._files.sync_dir(self._path)

    def _entry(self, version: int) -> Path:
        return self._path / f"{version:020d}.json"

    def _checkpoint(self, version: int) -> Path:
        return self._path / f"{version:020d}.checkpoint.parquet"

    def _checkpoints(self) -> list[int]:
        return self._numbers(_CHECKPOINT)

    def _newest_of_any_kind(self) -> int | None:
        return max(self._numbers(_ANY_CHECKPOINT), default=None)

    def _numbers(self, pattern: re.Pattern[str]) -> list[int]:
        if not self._path.is_dir():
            return []
        return sorted(int(match[1]) for path in self._path.iterdir() if (match := pattern.fullmatch(path.name)))


def is_whole(entry: bytes) -> bool:
    """Whether a log entry holds all that was written to it, as far as that can be told."""
    lines = entry.splitlines()
    try:
        actions = [msgspec.json.decode(line, type=dict[str, Any]) for line in lines]
        infos = [action["commitInfo"] for action in actions if "commitInfo" in action]
        note = note_of(infos[0]) if infos else None
    except (msgspec.MsgspecError, UnicodeDecodeError):
        return False
    if note is None:
        return bool(lines)
    # A missing `txn` would be the worst: rows without their cursor.
    return len(actions) - len(infos) >= note.action_count


def _is_readable(checkpoint: Path) -> bool:
    try:
        pq.read_table(checkpoint)
    except (OSError, pa.ArrowException):
        return False
    return True


def _pointed_at(pointer: bytes) -> int | None:
    try:
        return int(msgspec.json.decode(pointer, type=dict[str, Any])["version"])
    except (msgspec.MsgspecError, UnicodeDecodeError, KeyError, TypeError, ValueError):
        return None
