"""Whole files that were damaged, set aside: byte for byte, with a note why.

Two files in quarantine/ for each, named after what it was and when it was found: `<name>-<ms>.bytes` and
`<name>-<ms>.json`, a `FileNote`. Nothing there is read by the server again.
"""

from __future__ import annotations

import time
from pathlib import Path

import msgspec
import structlog

from counterfoil.files import Files

log = structlog.get_logger()


class FileNote(msgspec.Struct, frozen=True):
    """Why a file was set aside, and from where."""

    reason: str
    file: str
    copied_bytes: int
    found_at_ms: int


def copy_aside(path: Path, name: str, quarantine: Path, reason: str, files: Files, now_ms: int | None = None) -> None:
    """Copy a file to quarantine and log that; `name` is how it is called there and in the note. Raises OSError.

    The note is written last: where it stands the copy is whole.
    """
    data = path.read_bytes()
    if now_ms is None:
        now_ms = time.time_ns() // 1_000_000
    target = f"{name.replace('/', '-')}-{now_ms}"
    files.make_dir(quarantine)
    files.write_whole(quarantine / f"{target}.bytes", data)
    note = FileNote(reason, name, len(data), now_ms)
    files.write_whole(quarantine / f"{target}.json", msgspec.json.encode(note) + b"\n")
    log.error("file.set_aside", file=name, reason=reason, copied_bytes=len(data))
