from __future__ import annotations

from pathlib import Path

import pytest

from counterfoil.selftest.plug import file_recorder, judge_afterwards, send_until_the_end


def test_a_server_that_ended_in_the_middle_is_judged_by_its_journal(tmp_path: Path) -> None:
    """What a journal says was acknowledged before the end is found afterwards, and losing any of it would be told."""
    record = file_recorder(tmp_path / "journal")
    lines: list[str] = []

    def record_both(line: str) -> None:
        record(line)
        lines.append(line)

    send_until_the_end(tmp_path / "server", record_both, lambda: len(lines) < 60)
    data = (tmp_path / "journal").read_bytes()
    assert data == "".join(lines).encode()
    # Power cuts end files anywhere: the last line is in part.
    told = judge_afterwards(tmp_path / "server", data[:-2])
    assert told.is_clean, told.lines()
    assert told.acknowledged > 0
    # A journal that has more than the server ever took: one row more, acknowledged.
    more = data + f"t 1\na {told.sent}\n".encode()
    assert judge_afterwards(tmp_path / "server", more).lost.count == 1


def test_a_journal_is_never_written_over(tmp_path: Path) -> None:
    """A journal that is there stays as it is."""
    (tmp_path / "journal").write_text("of another run")
    with pytest.raises(FileExistsError):
        file_recorder(tmp_path / "journal")
    assert (tmp_path / "journal").read_text() == "of another run"
