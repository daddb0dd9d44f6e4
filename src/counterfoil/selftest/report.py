"""The report of a self-test, for people and for programs."""

from __future__ import annotations

from typing import Any

import msgspec

from counterfoil.selftest.disk import DiskReport, Flushing
from counterfoil.selftest.trials import Trial

FLUSHING_LINES = {
    Flushing.PLAUSIBLE: "plausible, as far as a program can see",
    Flushing.IMPLAUSIBLE: "IMPLAUSIBLE: acknowledged rows may be lost when the power goes",
    Flushing.NO: "NO: acknowledged rows are lost when the power goes",
    Flushing.UNKNOWN: "can't be told from here",
}


class SelftestReport(msgspec.Struct, frozen=True):
    """What was found on this disk and machine."""

    directory: str
    disk: DiskReport
    kills: Trial
    power_cuts: Trial | None = None

    @property
    def is_good(self) -> bool:
        """Whether nothing was lost or went wrong, and the disk is not known to flush nothing."""
        cuts_are_good = self.power_cuts is None or self.power_cuts.is_good
        return self.kills.is_good and cuts_are_good and self.disk.flushing is not Flushing.NO

    def document(self) -> dict[str, Any]:
        """The report as it stands in the JSON document."""
        facts: dict[str, Any] = msgspec.to_builtins(self)
        return {"is_good": self.is_good, **facts}

    def lines(self) -> list[str]:
        """The report for people."""
        told = [*self._disk_lines(), "", *_trial_lines("kills survived", self.kills)]
        if self.power_cuts is not None:
            told += ["", *_trial_lines("simulated power cuts survived", self.power_cuts)]
        return [*told, "", "Nothing was lost." if self.is_good else "NOT GOOD: see above."]

    def _disk_lines(self) -> list[str]:
        disk, flush = self.disk, self.disk.flush
        mount = f"{disk.mount.type} on {disk.mount.source}" if disk.mount else "unknown"
        told = [
            f"disk              {self.directory}: {mount}",
            f"flush             p50 {_ms(flush.p50)}, p99 {_ms(flush.p99)}, max {_ms(flush.max)},"
            f" of {flush.count:,} writes of 4 KiB",
            f"really flushes?   {FLUSHING_LINES[disk.flushing]}",
        ]
        told += [f"                  {reason}" for reason in disk.reasons]
        return [*told, "                  Only a real cut proves it: counterfoil selftest --power-loss --real"]


def _trial_lines(title: str, trial: Trial) -> list[str]:
    if trial.skipped is not None:
        return [trial.skipped]
    kinds = ", ".join(f"{name.replace('_', ' ')} {count}" for name, count in trial.actions.items())
    told = [
        f"{title}: {trial.action_count:,} in {trial.rounds:,} rounds ({kinds})",
        f"rows sent {trial.sent:,}, acknowledged {trial.acknowledged:,}, sent again {trial.repeated:,},"
        f" never answered {trial.unsure:,}, found in the table {trial.found:,}",
        ", ".join(f"{name.replace('_', ' ')} {count:,}" for name, count in trial.faults.items()),
    ]
    return told if trial.failure is None else [*told, f"failed: {trial.failure}"]


def _ms(seconds: float) -> str:
    return f"{seconds * 1000:.2f} ms"
