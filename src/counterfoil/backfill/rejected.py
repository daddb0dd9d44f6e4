"""The rejected file of an input: NDJSON of what was refused, why, and the original, to be mended and backfilled.

    {"line": 17, "code": "invalid_event", "message": "…", "original": …}

The original is the record's JSON, or its text when it was none. Columns that were mapped by their names stand there as
`{"columns": {…}}`: so they are mapped again when the file is backfilled, where a row of JSON would be sent as it is.
"""

from __future__ import annotations

import fcntl
import os
from collections.abc import Sequence
from itertools import accumulate
from pathlib import Path

import msgspec

from counterfoil.backfill.errors import BackfillError, writing
from counterfoil.backfill.reading import REJECTED_SUFFIX, STANDARD_INPUT, Input
from counterfoil.files import Files

INVALID_EVENT = "invalid_event"


class Rejection(msgspec.Struct, frozen=True):
    """A record that is not in: by its place, and why."""

    number: int
    original: bytes
    code: str
    message: str


class RejectedFile:
    """Appends rejections, flushed; made when the first one comes."""

    def __init__(self, path: Path, files: Files, kept_bytes: int, *, is_new: bool, are_columns: bool = False) -> None:
        """Cuts what lies behind `kept_bytes`: it is of batches that were never confirmed.

        `is_new`: the job begins; `are_columns`: originals are columns that are mapped by their names. Raises
        BackfillError when the file is not as the job left it: it may be mended just now.
        """
        self.path = path
        self._files = files
        self._are_columns = are_columns
        self._descriptor = -1
        found_bytes = path.stat().st_size if path.exists() else 0
        if is_new and found_bytes:
            raise BackfillError(f"{path}: holds what an earlier job rejected; backfill it or move it away first")
        # Moved away, or emptied, it begins again.
        self.size_bytes = min(kept_bytes, found_bytes)
        if found_bytes > kept_bytes:
            self._cut(kept_bytes)

    def write(self, batches: Sequence[Sequence[Rejection]]) -> list[int]:
        """Return when the rejections of batches stand in the file for good: how long it is with those of each.

        Raises BackfillError where that can't be.
        """
        written = [b"".join(_line(rejection, self._are_columns) for rejection in batch) for batch in batches]
        if any(written):
            with writing(self.path):
                if self._descriptor < 0:
                    self._open()
                self._files.append(self._descriptor, b"".join(written))
                self._files.fdatasync(self._descriptor)
        sizes = [*accumulate(map(len, written), initial=self.size_bytes)]
        self.size_bytes = sizes[-1]
        return sizes[1:]

    def close(self) -> None:
        """Closing twice is harmless."""
        if self._descriptor >= 0:
            os.close(self._descriptor)
            self._descriptor = -1

    def _cut(self, kept_bytes: int) -> None:
        with self.path.open("rb") as file:
            file.seek(max(0, kept_bytes - 1))
            if kept_bytes and file.read(1) != b"\n":
                raise self._changed()
        with writing(self.path):
            self._files.truncate(self.path, kept_bytes)

    def _open(self) -> None:
        flags = os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC
        self._descriptor = os.open(self.path, flags, 0o600)
        try:
            fcntl.flock(self._descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise BackfillError(f"{self.path}: another job writes there; wait for it, then go on") from None
        if os.fstat(self._descriptor).st_size != self.size_bytes:
            raise self._changed()
        self._files.sync_dir(self.path.parent)

    def _changed(self) -> BackfillError:
        return BackfillError(f"{self.path}: changed since the job wrote it; move it away, then go on")


def rejected_paths(inputs: Sequence[Input], job: Path) -> list[Path]:
    """The rejected file of each input: beside it; for one that lies on no disk here, beside the journal."""
    paths: list[Path] = []
    for source in inputs:
        first = path = _rejected_path(source, job)
        number = 2
        while path in paths:
            path = first.with_name(f"{number}-{first.name}")
            number += 1
        paths.append(path)
    return paths


def _rejected_path(source: Input, job: Path) -> Path:
    if source.path == STANDARD_INPUT:
        return job.parent / f"{job.stem}{REJECTED_SUFFIX}"
    if "://" in source.path:
        name = Path(source.path.replace("://", "/").partition("?")[0]).name
        return job.parent / f"{name if name == job.stem else f'{job.stem}.{name}'}{REJECTED_SUFFIX}"
    return Path(f"{source.path}{REJECTED_SUFFIX}")


def _line(rejection: Rejection, are_columns: bool) -> bytes:
    original = rejection.original
    try:
        msgspec.json.decode(original)
        inner = b'{"columns":' + original + b"}" if are_columns else original
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        inner = msgspec.json.encode(original.decode("utf-8", "backslashreplace"))
    head = msgspec.json.encode({"line": rejection.number, "code": rejection.code, "message": rejection.message})
    return head[:-1] + b',"original":' + inner + b"}\n"
