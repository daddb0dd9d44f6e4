"""Our own server does what the kit asks, with the contract's limits and with others."""

import json
import subprocess
from pathlib import Path
from typing import Any

from tests.certificate import make_certificate
from tests.conformance_kit.own import arguments_for
from tests.e2e.server import Server, clean_environment, command, running

OTHER_LIMITS = """
[limits]
body_bytes_max = 2097152
rows_max = 100
row_bytes_max = 1500000
row_depth_max = 40
token_chars_max = 80
object_keys_max = 20
object_levels_max = 4
array_entries_max = 10
object_units_max = 500000
age_days_max = 2
ahead_seconds_max = 120
request_seconds_max = 5
"""


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


def test_our_own_server_passes(tmp_path: Path) -> None:
    """No case falls short, and when all is delivered the books balance."""
    with running(Server(tmp_path, workers=2)) as server:
        told = told_by(server)
        assert fallen_short(told) == []
        assert told["limits_offered"]
        assert {case["why"] for case in told["cases"] if case["outcome"] == "not_tried"} == {
            "takes long (--slow)",
            "this server's limits don't allow it: object_units_max + 4 * kib <= row_bytes_max",
        }
        server.settle_down()
        server.run("audit")


def test_our_own_server_passes_with_other_limits(tmp_path: Path) -> None:
    """Every limit is the configuration's: the server holds to others, and the kit reads them and goes by them."""
    with running(Server(tmp_path, more=OTHER_LIMITS)) as server:
        told = told_by(server)
    assert told["limits"]["object_keys_max"] == 20
    assert fallen_short(told) == []
    tried = {case["name"] for case in told["cases"] if case["outcome"] == "passed"}
    assert {
        "JSON at its bound",
        "JSON just short of its bound",
        "a row one byte too large",
        "one row too many",
    } <= tried


def test_our_own_server_passes_over_https(tmp_path: Path) -> None:
    """Behind TLS nothing is different, also where the kit writes onto the socket itself."""
    certificate, key = make_certificate(tmp_path / "tls")
    gateway = f'tls_cert = "{certificate}"\ntls_key = "{key}"'
    with running(Server(tmp_path / "server", tls=True, gateway=gateway)) as server:
        told = told_by(server, "--section", "2", "--section", "7", "--ca-file", str(certificate))
    assert fallen_short(told) == []
    assert {case["why"] for case in told["cases"]} == {"", "takes long (--slow)"}
