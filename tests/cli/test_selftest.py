from __future__ import annotations

from pathlib import Path

import pytest

from counterfoil.selftest.disk import Flushing, examine
from tests.cli.calling import call, facts


def test_a_short_self_test_loses_nothing(tmp_path: Path) -> None:
    """A round of kills, and of simulated power cuts where there is FUSE, is reported with nothing lost."""
    in_memory = examine(tmp_path).flushing is Flushing.NO
    told = facts(tmp_path, "selftest", "--minutes", "0", "--power-loss", status=1 if in_memory else 0)
    assert told["is_good"] is not in_memory
    assert told["disk"]["flush"]["count"] > 0
    assert told["kills"]["rounds"] == 1
    assert sum(told["kills"]["actions"].values()) >= 1
    assert told["kills"]["acknowledged"] > 0
    assert not any(told["kills"]["faults"].values())
    assert told["power_cuts"]["skipped"] or told["power_cuts"]["actions"].keys() == {"cut_power"}
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--data-dir", "nowhere"], "nowhere: expected a directory"),
        (["--real"], "--power-loss and --journal"),
        (["--power-loss", "--real"], "--power-loss and --journal"),
        (["--journal", "j"], "--power-loss and --journal"),
        (["--power-loss", "--resume", "--journal", "j"], "--real begins the test"),
    ],
)
def test_a_wrong_call_is_told_in_one_line(tmp_path: Path, arguments: list[str], words: str) -> None:
    """What can't be tried ends with status 2 and one line that says what was expected."""
    done = call(tmp_path, "selftest", *arguments, status=2)
    assert words in done.stderr
    assert done.stderr.count("\n") == 1


def test_a_file_that_is_no_journal_is_told(tmp_path: Path) -> None:
    """A file that is no journal ends with status 2 before anything is started."""
    (tmp_path / "counterfoil-selftest-power-loss").mkdir()
    (tmp_path / "j").write_text("something else\n")
    done = call(tmp_path, "selftest", "--power-loss", "--resume", "--journal", "j", status=2)
    assert "the journal is none" in done.stderr
