"""`counterfoil source`: senders are added and rotated, and the file stays its owner's."""

from __future__ import annotations

import difflib
from pathlib import Path

import pytest

from counterfoil.config import load_settings
from counterfoil.sources import Sources
from tests.cli.calling import call, complaint, facts


@pytest.fixture
def home(tmp_path: Path) -> Path:
    """A directory in which `init` was called."""
    call(tmp_path, "init")
    return tmp_path


def source_of(home: Path, token: str) -> tuple[str, bool] | None:
    """The source that a token belongs to, and whether it is its test token."""
    settings = load_settings(home / "counterfoil.toml")
    sender = Sources(settings.sources, settings.limits).find(token)
    return None if sender is None else (sender.source, sender.is_test)


def test_an_added_source_has_a_token_of_its_own(home: Path) -> None:
    """`source add` makes the tokens that it prints valid, and touches no other source."""
    made = facts(home, "source", "add", "shop", "--with-test-token", "--max-age-days", "0")
    assert source_of(home, made["token"]) == ("shop", False)
    assert source_of(home, made["test_token"]) == ("shop", True)
    assert source_of(home, (home / "counterfoil.token").read_text().strip()) == ("website", False)
    assert load_settings(home / "counterfoil.toml").sources[1].max_age_days == 0


def test_the_files_comments_order_and_mode_stay(home: Path) -> None:
    """Adding a source adds lines and changes none."""
    file = home / "counterfoil.toml"
    before = file.read_text().splitlines()
    call(home, "source", "add", "shop")
    after = file.read_text().splitlines()
    changes = [line for line in difflib.ndiff(before, after) if not line.startswith("  ")]
    assert [line.partition(" = ")[0] for line in changes] == ["+ [[sources]]", "+ name", "+ token_sha256", "+ "]
    assert file.stat().st_mode & 0o777 == 0o600


def test_a_token_is_rotated_without_a_gap(home: Path) -> None:
    """Old and new token are valid together until the old one is dropped."""
    old = (home / "counterfoil.token").read_text().strip()
    new = facts(home, "source", "rotate", "website")["token"]
    assert source_of(home, old) == source_of(home, new) == ("website", False)
    assert facts(home, "source", "rotate", "website", "--drop-old") == {"source": "website", "dropped": 1}
    assert source_of(home, old) is None
    assert source_of(home, new) == ("website", False)


def test_rotating_says_how_to_drop_the_old_token(home: Path) -> None:
    """The command to call when every sender has the new one stands in what is printed."""
    printed = call(home, "source", "rotate", "website").stdout
    assert "counterfoil source rotate website --drop-old" in printed


def test_the_test_token_is_rotated_by_itself(home: Path) -> None:
    """--test makes the first test token or another one, and leaves the live ones alone."""
    live = (home / "counterfoil.token").read_text().strip()
    first = facts(home, "source", "rotate", "website", "--test")["test_token"]
    second = facts(home, "source", "rotate", "website", "--test")["test_token"]
    assert source_of(home, first) == source_of(home, second) == ("website", True)
    call(home, "source", "rotate", "website", "--test", "--drop-old")
    assert source_of(home, first) is None
    assert source_of(home, live) == ("website", False)


def test_sources_are_listed(home: Path) -> None:
    """The list says of each source what a sender needs to know, and holds no token and no hash."""
    call(home, "source", "rotate", "website")
    listed = facts(home, "source", "list")["sources"]
    assert listed == [
        {
            "name": "website",
            "tokens": 2,
            "test_tokens": 0,
            "max_age_days": 7,
            "allowed_events": None,
            "rows_per_second_max": 0,
        }
    ]
    assert "website" in call(home, "source", "list").stdout


@pytest.mark.parametrize(
    ("arguments", "status", "line"),
    [
        (("add", "website"), 1, "source website: is there already"),
        (("rotate", "shop"), 1, "source shop: not in counterfoil.toml; there are: website"),
        (("rotate", "website", "--drop-old"), 1, "source website: has no older token to drop"),
        (("add", "My Shop"), 2, "sources[1].name (from counterfoil.toml): expected a text like"),
        (("add", "shop", "--max-age-days", "-1"), 2, "sources[1].max_age_days = -1 (from counterfoil.toml)"),
    ],
)
def test_what_cannot_be_done_is_one_line_and_changes_nothing(
    home: Path, arguments: tuple[str, ...], status: int, line: str
) -> None:
    """A refused change leaves the file as it was, byte for byte."""
    before = (home / "counterfoil.toml").read_bytes()
    assert complaint(home, "source", *arguments, status=status).startswith(line)
    assert (home / "counterfoil.toml").read_bytes() == before


def test_a_file_without_sources_gets_its_first(tmp_path: Path) -> None:
    """What the server refuses for want of a source, this command mends."""
    (tmp_path / "counterfoil.toml").write_text("# mine\n[gateway]\nport = 9000\n")
    token = facts(tmp_path, "source", "add", "shop")["token"]
    assert source_of(tmp_path, token) == ("shop", False)
    assert (tmp_path / "counterfoil.toml").read_text().startswith("# mine\n[gateway]\nport = 9000\n")


def test_sources_of_the_environment_are_not_edited(home: Path) -> None:
    """A file that does not count is not changed."""
    line = complaint(home, "source", "add", "shop", status=2, environment={"COUNTERFOIL_SOURCES": "[]"})
    assert line.startswith("COUNTERFOIL_SOURCES (from the environment)")


def test_sources_written_in_one_line_are_named(tmp_path: Path) -> None:
    """A file that can't be edited without spoiling it is left to its owner."""
    (tmp_path / "counterfoil.toml").write_text('sources = [{name = "website"}]\n')
    assert "write it as [[sources]]" in complaint(tmp_path, "source", "add", "shop", status=1)


def test_a_linked_file_stays_linked(home: Path) -> None:
    """The file that a link names is changed, not the link."""
    (home / "real").mkdir()
    (home / "counterfoil.toml").rename(home / "real" / "gateway.toml")
    (home / "counterfoil.toml").symlink_to("real/gateway.toml")
    call(home, "source", "add", "shop")
    assert (home / "counterfoil.toml").is_symlink()
    assert load_settings(home / "real/gateway.toml").sources[1].name == "shop"
