"""`counterfoil check`: what would keep the server from its work is found, and nothing is changed."""

from __future__ import annotations

import hashlib
import socket
from pathlib import Path
from typing import Any

import pytest

from counterfoil.datadir import DataDir, Part
from tests.cli.calling import call, complaint, facts
from tests.ports import free_port


@pytest.fixture
def home(tmp_path: Path) -> Path:
    """A directory in which `init` was called."""
    call(tmp_path, "init")
    return tmp_path


def free_ports() -> dict[str, str]:
    """Settings by which gateway and console have ports that nobody uses."""
    return {"COUNTERFOIL_GATEWAY__PORT": str(free_port()), "COUNTERFOIL_CONSOLE__PORT": str(free_port())}


def problems(found: Any) -> list[str]:
    return [problem for check in found["checks"] for problem in check["problems"]]


def test_a_fresh_configuration_is_well_and_nothing_is_made(home: Path) -> None:
    """What `init` wrote can be served; the check leaves no file behind."""
    before = sorted(home.iterdir())
    found = facts(home, "check", environment=free_ports())
    assert found["is_well"]
    assert [check["what"].split()[0] for check in found["checks"]] == ["configuration", "data", "ports", "destination"]
    assert sorted(home.iterdir()) == before
    assert call(home, "check", environment=free_ports()).stdout.count("ok ") == 4


def test_a_configuration_that_cannot_be_used_is_used_wrongly(home: Path) -> None:
    """A wrong key is one line and exit status 2, as for every command."""
    line = complaint(home, "check", status=2, environment={"COUNTERFOIL_QUEUE__SEGMENT_BYTES": "12"})
    assert (
        line == "queue.segment_bytes = 12 (from the environment): expected a whole number from 1048576 to 17179869184"
    )


def test_a_console_that_others_reach_needs_a_password(home: Path) -> None:
    """Beyond loopback the console is refused without a password; with the hash that `password` prints it is well."""
    beyond = free_ports() | {"COUNTERFOIL_CONSOLE__HOST": "0.0.0.0"}
    assert complaint(home, "check", status=2, environment=beyond).startswith("console.password_sha256 (from ")
    made = facts(home, "password")
    assert facts(home, "check", environment=beyond | {"COUNTERFOIL_CONSOLE__PASSWORD_SHA256": made["password_sha256"]})
    assert made["password_sha256"] == hashlib.sha256(made["password"].encode()).hexdigest()
    shown = call(home, "password").stdout
    assert 'password_sha256 = "' in shown
    assert made["password"] not in shown


def test_a_port_in_use_is_named(home: Path) -> None:
    """Another program's port is a problem that names the setting."""
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        found = facts(home, "check", status=1, environment=(free_ports() | {"COUNTERFOIL_GATEWAY__PORT": str(port)}))
    assert problems(found) == [f"port {port} on 127.0.0.1 is in use by another program; set gateway.port to a free one"]


def test_the_ports_of_our_own_server_are_no_problem(home: Path) -> None:
    """While the server runs here, the check says so instead of finding its ports in use."""
    data = DataDir(home / "data")
    data.make()
    with data.lock(Part.SERVE), socket.create_server(("127.0.0.1", 0)) as taken:
        found = facts(
            home, "check", environment=(free_ports() | {"COUNTERFOIL_GATEWAY__PORT": str(taken.getsockname()[1])})
        )
    assert "counterfoil serve, process" in found["checks"][2]["what"]


def test_a_data_directory_that_is_none_is_named(home: Path) -> None:
    """A directory with other things in it is a problem, and stays as it is."""
    (home / "data").mkdir()
    (home / "data" / "letters").touch()
    found = facts(home, "check", status=1, environment=free_ports())
    assert problems(found) == [f"{home}/data: neither empty nor a data directory: it holds letters"]


def test_every_destination_is_tried(home: Path) -> None:
    """A table that lies where none can lie is a problem of that destination alone."""
    (home / "lake").write_text("not a table")
    with (home / "counterfoil.toml").open("a") as file:
        file.write('\n[[destinations]]\nname = "second"\npath = "lake"\n')
    found = facts(home, "check", status=1, environment=free_ports())
    by_name = {check["what"]: check["problems"] for check in found["checks"]}
    assert by_name["destination lake"] == []
    [problem] = by_name["destination second"]
    assert str(home / "lake") in problem
    printed = call(home, "check", status=1, environment=free_ports()).stdout
    assert f"wrong  destination second\n       {problem}\n" in printed
