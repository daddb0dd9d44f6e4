"""Erasing rows on a disk that forgets what was not flushed."""

from __future__ import annotations

import subprocess
import sys
import time
from pathlib import Path

import msgspec

from counterfoil.faultydisk.disk import FaultyDisk
from tests.queue.lives import life, quarantined, reader
from tests.queue.test_erasure import erase, rows_of, write_segments

PERSONS = ("a.1", "b.0")
WAIT_SECONDS = 300

ERASING = """
import sys
from pathlib import Path
from tests.queue.test_erasure import erase
for person in sys.argv[2:]:
    assert erase(Path(sys.argv[1]), person).damaged == 0
    print(person, flush=True)
"""


def cut_while_erasing(disk: FaultyDisk, root: Path, operations: int) -> set[str]:
    """Erase both persons' rows, and cut the power after so many operations; whose were said to be gone."""
    disk.power_off(after=operations)
    child = subprocess.Popen((sys.executable, "-c", ERASING, str(root), *PERSONS), stdout=subprocess.PIPE, text=True)
    until = time.monotonic() + WAIT_SECONDS
    while not disk.state().is_off and child.poll() is None:
        assert time.monotonic() < until
        time.sleep(0.02)
    disk.power_off()
    child.kill()
    disk.unplug()
    said, _ = child.communicate()
    disk.power_on(operations)
    return set(said.split())


def test_a_power_cut_leaves_the_old_or_the_new_segment(disk: FaultyDisk) -> None:
    """Cut at any operation: all other rows are there, and rows that were said to be gone never come back."""
    root = disk.mount_point / "root"
    root.mkdir()
    write_segments(root)
    before = rows_of(reader(root))
    subprocess.run(("sync", "-f", str(root)), check=True)
    done: set[str] = set()
    operations = 0
    while done != set(PERSONS):
        assert operations < 40
        done |= cut_while_erasing(disk, root, operations % 7)
        with life(root):
            pass
        after = rows_of(reader(root))
        assert [row[:2] for row in after] == [row[:2] for row in before]
        changed = {was[2] for was, now in zip(before, after, strict=True) if was != now}
        assert done <= {str(msgspec.json.decode(row)["distinctId"]) for row in changed} <= set(PERSONS)
        operations += 1
    for person in PERSONS:
        assert erase(root, person).rows == 0
    reader(root).remove_unfinished()
    assert not list(root.rglob("*.erasing"))
    assert quarantined(root) == {}
