"""`counterfoil init`: what a newcomer starts with."""

from __future__ import annotations

import re
import tomllib
from pathlib import Path
from typing import Any

import pytest

from counterfoil.config import Settings, load_settings, read_settings
from counterfoil.settings_tree import sections
from counterfoil.sources import Sources
from tests.cli.calling import call, complaint


def test_it_writes_a_configuration_that_its_token_opens(tmp_path: Path) -> None:
    """The file can be used as it is, the token beside it is its source's, and only the hash is in the file."""
    printed = call(tmp_path, "init").stdout
    token = (tmp_path / "counterfoil.token").read_text().strip()
    settings = load_settings(tmp_path / "counterfoil.toml")
    sender = Sources(settings.sources, settings.limits).find(token)
    assert sender is not None
    assert sender.source == "website"
    assert printed.count(token) == 1
    assert token not in (tmp_path / "counterfoil.toml").read_text()


def test_both_files_are_for_their_owner_alone(tmp_path: Path) -> None:
    """P6: neither the token nor the configuration is readable by others."""
    call(tmp_path, "init")
    for name in ("counterfoil.toml", "counterfoil.token"):
        assert (tmp_path / name).stat().st_mode & 0o777 == 0o600


def test_every_setting_is_in_the_file_with_its_default(tmp_path: Path) -> None:
    """What is commented out can be uncommented as it stands, and then sets the default."""
    call(tmp_path, "init")
    text = (tmp_path / "counterfoil.toml").read_text()
    is_code = re.compile(r"# (\[|[a-z_0-9]+ = )")
    lines = [line.removeprefix("# ") if is_code.match(line) else line for line in text.splitlines()]
    uncommented = tomllib.loads("\n".join(line for line in lines if not line.startswith("# ")))
    for section in sections(Settings):
        table: Any = uncommented[section.name] if section.name else uncommented
        tables = [one for one in table if one.get("type") == section.type] if section.is_list else [table]
        assert {setting.key for setting in section.settings} <= set(tables[0]), section.name
    as_written = read_settings(text, tmp_path / "counterfoil.toml")
    # Other kinds of destinations come last and want values that nobody can guess.
    until = next(place for place, line in enumerate(lines) if line.startswith("[[destinations]]  # A PostgreSQL"))
    everything = read_settings("\n".join(lines[:until]), tmp_path / "counterfoil.toml")
    for name in ("limits", "queue", "ledger", "pipeline", "console", "data_dir"):
        assert getattr(everything, name) == getattr(as_written, name)


@pytest.mark.parametrize("there", ["counterfoil.toml", "counterfoil.token"])
def test_nothing_is_overwritten(tmp_path: Path, there: str) -> None:
    """A file that is there stays as it is, and no other is written."""
    (tmp_path / there).write_text("mine")
    assert complaint(tmp_path, "init", status=1) == f"{there}: is there already; nothing was changed"
    assert [path.name for path in tmp_path.iterdir()] == [there]
    assert (tmp_path / there).read_text() == "mine"


def test_a_source_name_that_cannot_be_one_writes_nothing(tmp_path: Path) -> None:
    """A wrong name is refused before anything is there."""
    line = complaint(tmp_path, "init", "--source", "My Shop", status=2)
    assert line.startswith("sources[0].name (from counterfoil.toml): expected a text like ")
    assert list(tmp_path.iterdir()) == []


def test_a_directory_that_cannot_be_written_is_one_line(tmp_path: Path) -> None:
    """What the system refuses is said as one line."""
    line = complaint(tmp_path, "init", "--config", "nowhere/counterfoil.toml", status=1)
    assert line == "nowhere/counterfoil.token: can't be written: No such file or directory"
