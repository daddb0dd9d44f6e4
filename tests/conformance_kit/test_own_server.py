"""Our own server does what the kit asks."""

import json
import subprocess
from pathlib import Path
from typing import Any

from tests.conformance_kit.own import arguments_for
from tests.e2e.server import Server, clean_environment, command, running
from tests.e2e.test_serve import make_certificate


def told_by(server: Server, *options: str) -> dict[str, Any]:
    """What the kit found on a server."""
    called = subprocess.run(
        command(*arguments_for(server), "--json", *options), capture_output=True, text=True, env=clean_environment()
    )
    assert called.stdout, called.stderr
    told: dict[str, Any] = json.loads(called.stdout)
    return told


def fallen_short(told: dict[str, Any]) -> list[tuple[str, Any]]:
    return [(case["name"], case["findings"][:1]) for case in told["cases"] if case["outcome"] == "fell_short"]


def test_our_own_server_passes_over_https(tmp_path: Path) -> None:
    """Behind TLS nothing is different, also where the kit writes onto the socket itself."""
    certificate, key = make_certificate(tmp_path / "tls")
    gateway = f'tls_cert = "{certificate}"\ntls_key = "{key}"'
    with running(Server(tmp_path / "server", tls=True, gateway=gateway)) as server:
        told = told_by(server, "--section", "3", "--section", "7", "--ca-file", str(certificate))
    assert fallen_short(told) == []
    assert told["passed"] > 100
    assert {case["why"] for case in told["cases"] if case["outcome"] == "not_tried"} == {
        "takes long (--slow)",
        "TLS has no connection that is closed in one direction alone",
    }
