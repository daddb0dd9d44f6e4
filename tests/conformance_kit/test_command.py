"""`counterfoil conformance` tells what it found, and says it by its exit status too."""

import json
from pathlib import Path

import pytest

from tests.cli.calling import call, complaint
from tests.conformance_kit.small_server import TEST_TOKEN, TOKEN, small_server


@pytest.fixture
def directory(tmp_path: Path) -> Path:
    """A directory with the tokens in files, as `counterfoil init` leaves them."""
    (tmp_path / "live").write_text(TOKEN + "\n")
    (tmp_path / "test").write_text(TEST_TOKEN)
    (tmp_path / "empty").touch()
    (tmp_path / "other").write_text("other")
    return tmp_path


def test_a_table_and_its_status(directory: Path) -> None:
    """What fell short is told with its rule, what was sent, what was expected and what came."""
    with small_server() as server:
        called = call(directory, "conformance", server.url, "--token-file", "live", "--section", "9")
        assert "9. Allowlist and test token: 2 passed, 0 fell short, 6 not tried" in called.stdout
    with small_server("fails everything") as server:
        called = call(directory, "conformance", server.url, "--token-file", "live", "--section", "9", status=1)
    assert "9. Allowlist and test token: 0 passed, 2 fell short, 6 not tried" in called.stdout
    for word in ("rule ", "sent ", "expected ", "came ", "not tried"):
        assert word in called.stdout
    assert TOKEN not in called.stdout


def test_json(directory: Path) -> None:
    """`--json` prints JSON alone, and `--junit` writes its file beside it."""
    arguments = [
        "--token-file",
        "live",
        "--test-token-file",
        "test",
        "--section",
        "9",
        "--json",
        "--junit",
        "junit.xml",
    ]
    with small_server() as server:
        # The small server has no /identify.
        called = call(directory, "conformance", server.url + "/api/v1", *arguments, status=1)
    told = json.loads(called.stdout)
    assert told["url"] == server.url
    assert told["fell_short"] == sum(case["outcome"] == "fell_short" for case in told["cases"]) == 1
    assert told["passed"] + told["fell_short"] + told["not_tried"] == len(told["cases"])
    assert (directory / "junit.xml").read_bytes().startswith(b"<?xml")


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        (["URL", "--token-file", "nowhere"], "nowhere: can't be read (FileNotFoundError)"),
        (["URL", "--token-file", "empty"], "empty: expected a token, found nothing"),
        (["nowhere", "--token-file", "live"], "nowhere: expected http:// or https://, a host and a port"),
        (["URL", "--token-file", "live", "--section", "77"], "--section 77: expected one of 1, 2, 3, 4, 5, 6, 7, 8, 9"),
        (["URL", "--token-file", "other"], "URL doesn't know the token"),
        (["URL", "--token-file", "live", "--test-token-file", "other"], "URL doesn't know the test token"),
        (["http://127.0.0.1:1", "--token-file", "live"], "http://127.0.0.1:1 can't be reached"),
        (
            ["https://h", "--token-file", "live", "--ca-file", "nowhere"],
            "nowhere: expected certificates in PEM (FileNotFoundError)",
        ),
        (
            ["URL", "--token-file", "live", "--section", "8", "--junit", "no/such/file"],
            "no/such/file: can't be written: No such file or directory",
        ),
    ],
)
def test_used_wrongly(arguments: list[str], told: str, directory: Path) -> None:
    """What can't be tested at all is told in a line, with status 2."""
    with small_server() as server:
        said = complaint(directory, "conformance", *(word.replace("URL", server.url) for word in arguments), status=2)
        assert said == told.replace("URL", server.url)
