"""Half of the disk reserve is the ledger's."""

from __future__ import annotations

from pathlib import Path

import pytest

from counterfoil.destinations.settings import DeltaSettings, WebhookSettings
from counterfoil.errors import DestinationDown
from counterfoil.files import RealFiles
from counterfoil.ledger.settings import LedgerSettings
from counterfoil.pipeline import process
from counterfoil.pipeline.process import room_for
from counterfoil.pipeline.room import Room
from counterfoil.pipeline.settings import PipelineSettings
from counterfoil.pipeline.task import PipelineTask
from counterfoil.queue.settings import MIB, QueueSettings


class SmallDisk(RealFiles):
    """A disk of 100 MiB of which some are free."""

    def __init__(self, free_bytes: int) -> None:
        self.free = free_bytes

    def free_bytes(self, path: Path) -> int:
        return self.free

    def disk_bytes(self, path: Path) -> int:
        return 100 * MIB


@pytest.mark.parametrize(("free_mib", "is_room"), [(11, True), (5, True), (4, False), (0, False)])
def test_half_of_the_reserve_is_the_ledgers(tmp_path: Path, free_mib: int, is_room: bool) -> None:
    """A table may write into the first half of the reserve, which is 10 MiB here, and not into the second."""
    room = Room(tmp_path, SmallDisk(free_mib * MIB), QueueSettings(reserve_percent=10))
    if is_room:
        room.look()
    else:
        with pytest.raises(DestinationDown, match="make room"):
            room.look()


def test_only_what_writes_on_our_disk_is_held(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A table in an object store, on another disk, and a webhook go on while our disk is full."""
    monkeypatch.setattr(process, "RealFiles", lambda: SmallDisk(0))
    task = PipelineTask(
        data_dir=tmp_path, ledger_id=None, metrics_dir=tmp_path, ledger=LedgerSettings(), pipeline=PipelineSettings(),
        queue=QueueSettings(), destinations=(),
    )  # fmt: skip
    hook = WebhookSettings(name="hook", url="https://example.org/", secret="whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLjPV")
    room_for(hook, task)()
    if Path("/dev/shm").stat().st_dev != tmp_path.stat().st_dev:
        room_for(DeltaSettings(name="lake", path="/dev/shm/lake"), task)()
    with pytest.raises(DestinationDown):
        room_for(DeltaSettings(name="lake", path="lake"), task)()
