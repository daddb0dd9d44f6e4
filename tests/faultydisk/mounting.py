"""A faulty disk for a test, which is skipped where none can be had."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from pathlib import Path

import pytest

from counterfoil.faultydisk.disk import DiskUnavailable, FaultyDisk


@contextlib.contextmanager
def mounted(mount_point: Path, seed: int) -> Iterator[FaultyDisk]:
    """The disk, mounted; skips the test where FUSE can't be mounted."""
    mount_point.mkdir(parents=True, exist_ok=True)
    disk = FaultyDisk(mount_point, seed)
    try:
        disk.__enter__()
    except DiskUnavailable as problem:
        pytest.skip(f"needs FUSE and the right to mount: {problem}")
    with contextlib.closing(disk):
        yield disk
