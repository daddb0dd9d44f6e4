"""The rejected file of an input: NDJSON of what was refused, why, and the original, to be mended and backfilled."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path

import msgspec

from counterfoil.backfill.reading import STANDARD_INPUT, Input
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

    def __init__(self, path: Path, files: Files, kept_bytes: int) -> None:
        """What lies behind `kept_bytes` is of batches that were never confirmed, and is cut."""
        self.path = path
        self.size_bytes = kept_bytes
        self._files = files
        self._descriptor = -1
        if path.exists():
            files.truncate(path, kept_bytes)

    def write(self, rejections: Sequence[Rejection]) -> None:
        """Return when they stand in the file for good."""
        if not rejections:
            return
        if self._descriptor < 0:
            flags = os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC
            self._descriptor = os.open(self.path, flags, 0o600)
            self._files.sync_dir(self.path.parent)
        lines = b"".join(_line(rejection) for rejection in rejections)
        self._files.append(self._descriptor, lines)
        self._files.fdatasync(self._descriptor)
        self.size_bytes += len(lines)

    def close(self) -> None:
        """Closing twice is harmless."""
        if self._descriptor >= 0:
            os.close(self._descriptor)
            self._descriptor = -1


def rejected_path(source: Input, job: Path) -> Path:
    """Beside the file; for one that lies on no disk here, beside the journal."""
    if source.path == STANDARD_INPUT or "://" in source.path:
        name = Path(source.path.replace("://", "/")).name if "://" in source.path else "stdin"
        return job.parent / f"{name}.rejected.ndjson"
    return Path(f"{source.path}.rejected.ndjson")


def _line(rejection: Rejection) -> bytes:
    original = rejection.original
    try:
        msgspec.json.decode(original)
        inner = original
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        inner = msgspec.json.encode(original.decode("utf-8", "backslashreplace"))
    head = msgspec.json.encode({"line": rejection.number, "code": rejection.code, "message": rejection.message})
    return head[:-1] + b',"original":' + inner + b"}\n"
