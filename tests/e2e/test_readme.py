"""What the README, the guide and the page of the API tell to call works as it stands there."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from docs._tools.pages import ROOT
from tests.e2e.server import WAIT_SECONDS, clean_environment, command, get, until
from tests.ports import free_port

README = (ROOT / "README.md").read_text()


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Path, int]]:
    """A directory in which a server runs as `make run` starts it, and the gateway's port."""
    home = tmp_path_factory.mktemp("home")
    port, console_port = free_port(), free_port()
    environment = clean_environment() | {
        "COUNTERFOIL_GATEWAY__PORT": str(port),
        "COUNTERFOIL_GATEWAY__WORKERS": "1",
        "COUNTERFOIL_CONSOLE__PORT": str(console_port),
        "COUNTERFOIL_QUEUE__RESERVE_BYTES": "0",
    }
    subprocess.run(command("init"), cwd=home, env=environment, check=True, capture_output=True)
    with (home / "server.log").open("wb") as log:
        server = subprocess.Popen(command("serve"), cwd=home, env=environment, stdout=log, stderr=log)
    try:
        until(lambda: get(f"http://127.0.0.1:{console_port}/readyz") == 200, "the server is ready")
        yield home, port
    finally:
        server.send_signal(signal.SIGTERM)
        assert server.wait(WAIT_SECONDS) == 0, (home / "server.log").read_text()


def on_path() -> dict[str, str]:
    """An environment in which `counterfoil` is found, as the guide sets it up."""
    environment = clean_environment()
    return environment | {"PATH": f"{Path(sys.executable).parent}{os.pathsep}{environment['PATH']}"}


def blocks(text: str, language: str) -> list[str]:
    """The code of a page in one language, block by block."""
    return re.findall(rf"^```{language}\n(.*?)^```", text, re.MULTILINE | re.DOTALL)


def run(home: tuple[Path, int], code: str, *program: str) -> str:
    """What a block prints, called as it stands; only the port is that of the server of this test."""
    directory, port = home
    code = code.replace("127.0.0.1:8080", f"127.0.0.1:{port}").replace(".venv/bin/", "")
    done = subprocess.run(
        [*program, code], cwd=directory, env=on_path(), capture_output=True, text=True, timeout=WAIT_SECONDS
    )
    assert done.returncode == 0, f"{code}\n{done.stdout}\n{done.stderr}"
    return done.stdout


def delivered(home: tuple[Path, int], distinct_id: str) -> str:
    """What `trace` prints once a row is delivered."""

    def traced() -> str | None:
        printed = run(home, f"counterfoil trace {distinct_id}", "sh", "-c")
        return printed if "lake       delivered" in printed else None

    return until(traced, f"{distinct_id} is delivered")


def test_the_curl_of_the_readme_works_as_pasted(home: tuple[Path, int]) -> None:
    """A newcomer's first row is accepted, traced to the table, and found there."""
    curl, asked = blocks(README, "sh")
    assert json.loads(run(home, curl, "sh", "-c")) == {"success": True}
    delivered(home, "order-1")
    printed = run(home, asked, "sh", "-c")
    assert "website: new" in printed
    assert re.search(r"Purchase +order-1 +20\d\d-", printed)


def test_the_sdk_of_the_readme_works_in_three_lines(home: tuple[Path, int]) -> None:
    """The official SDK sends a row with nothing changed but the base URL."""
    [code] = blocks(README, "python")
    assert len(code.splitlines()) == 3
    run(home, code, sys.executable, "-c")
    assert "website: new" in delivered(home, "order-2")


def test_the_guide_can_be_followed(home: tuple[Path, int]) -> None:
    """Every command of the first ten minutes works in its turn, and the books balance at its end."""
    called = [block for block in blocks((ROOT / "docs" / "guide.md").read_text(), "sh") if "make run" not in block]
    path, track, batch, trace, query, audit, dead, retry, sources, digest = called
    assert path.startswith("export PATH=")
    assert json.loads(run(home, track, "sh", "-c")) == {"success": True}
    answer = json.loads(run(home, batch, "sh", "-c"))
    assert [result["success"] for result in answer["results"]] == [True, False, True]
    assert answer["results"][1]["code"] == "invalid_event"
    delivered(home, "order-4")
    assert "order-4" in run(home, query, "sh", "-c")
    assert "website: " in run(home, trace, "sh", "-c")
    assert "The books balance." in run(home, audit, "sh", "-c")
    assert "No dead letters." in run(home, dead.splitlines()[0], "sh", "-c")
    assert (retry, dead.splitlines()[1:]) == ("counterfoil dead retry\n", ["counterfoil dead show lake 65536"])
    assert "shop" in run(home, sources, "sh", "-c")
    assert re.match("[0-9a-f]{64} ", run(home, digest, "sh", "-c"))


def test_the_requests_of_the_api_page_are_answered_as_it_says(home: tuple[Path, int]) -> None:
    """Every request of the page, pasted, is answered with exactly the JSON below it."""
    page = (ROOT / "docs" / "reference" / "api.md").read_text()
    requests, answers = blocks(page, "sh"), blocks(page, "json")
    assert [request.split()[2].rpartition("/")[2] for request in requests] == ["batch", "track", "identify", "limits"]
    for request, answer in zip(requests, answers, strict=True):
        assert json.loads(run(home, request, "sh", "-c")) == json.loads(answer)
