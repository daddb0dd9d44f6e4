"""`counterfoil conformance` tells what it found, and says it by its exit status too."""

import json
from pathlib import Path

import pytest
import typer
from typer.testing import CliRunner

from counterfoil.cli.conformance import conformance
from tests.conformance_kit.small_server import TEST_TOKEN, TOKEN, small_server

app = typer.Typer()
app.command()(conformance)


@pytest.fixture
def token_file(tmp_path: Path) -> Path:
    """The live token, as `counterfoil init` writes it."""
    file = tmp_path / "token"
    file.write_text(TOKEN + "\n")
    return file


def test_a_table_and_status_1(token_file: Path) -> None:
    """What fell short is told with its rule, what was sent, what was expected and what came."""
    with small_server() as server:
        result = CliRunner().invoke(app, [server.url, "--token-file", str(token_file), "--section", "9"])
    assert result.exit_code == 0, result.output
    with small_server("fails everything") as server:
        result = CliRunner().invoke(app, [server.url, "--token-file", str(token_file), "--section", "9"])
    assert result.exit_code == 1
    assert "9. Allowlist and test token: 0 passed, 2 fell short, 6 not tried" in result.output
    for word in ("rule ", "sent ", "expected ", "came ", "not tried"):
        assert word in result.output


def test_json(token_file: Path, tmp_path: Path) -> None:
    """`--json` prints JSON alone, and `--junit` writes its file beside it."""
    test_file, junit = tmp_path / "test", tmp_path / "junit.xml"
    test_file.write_text(TEST_TOKEN)
    files = ["--token-file", str(token_file), "--test-token-file", str(test_file), "--junit", str(junit)]
    with small_server() as server:
        result = CliRunner().invoke(app, [server.url + "/api/v1", *files, "--section", "9", "--json"])
    told = json.loads(result.stdout)
    assert told["url"] == server.url
    assert told["fell_short"] == sum(case["outcome"] == "fell_short" for case in told["cases"])
    assert told["passed"] + told["fell_short"] + told["not_tried"] == len(told["cases"])
    assert junit.read_bytes().startswith(b"<?xml")


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        (["URL", "--token-file", "nowhere"], "can't be read"),
        (["URL", "--token-file", "EMPTY"], "expected a token"),
        (["nowhere", "--token-file", "TOKEN"], "expected http://"),
        (["URL", "--token-file", "TOKEN", "--section", "77"], "expected one of 1, 2"),
        (["URL", "--token-file", "OTHER"], "doesn't know the token"),
        (["https://h", "--token-file", "TOKEN", "--ca-file", "nowhere"], "expected certificates"),
    ],
)
def test_used_wrongly(arguments: list[str], told: str, token_file: Path, tmp_path: Path) -> None:
    """What can't be tested at all is told in a line, with status 2."""
    (tmp_path / "empty").touch()
    (tmp_path / "other").write_text("other")
    names = {"TOKEN": str(token_file), "EMPTY": str(tmp_path / "empty"), "OTHER": str(tmp_path / "other")}
    with small_server() as server:
        names["URL"] = server.url
        result = CliRunner().invoke(app, [names.get(word, word) for word in arguments])
    assert result.exit_code == 2
    assert told in result.stderr
