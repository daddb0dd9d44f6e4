"""Files that hold a value of a row and must not: logs, metrics, error messages (promise P6)."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path

_PIECE_BYTES = 1 << 20


def leaks(paths: Iterable[Path], canaries: Sequence[str]) -> list[Path]:
    """Those of the files in which one of the canaries stands; read piece by piece."""
    wanted = [canary.encode() for canary in canaries]
    return [path for path in paths if _holds_any(path, wanted)]


def _holds_any(path: Path, wanted: Sequence[bytes]) -> bool:
    overlap = max(map(len, wanted)) - 1
    tail = b""
    with path.open("rb") as file:
        while piece := file.read(_PIECE_BYTES):
            piece = tail + piece
            if any(canary in piece for canary in wanted):
                return True
            # A canary may lie across two pieces.
            tail = piece[-overlap:] if overlap else b""
    return False
