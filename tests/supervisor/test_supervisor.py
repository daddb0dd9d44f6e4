from __future__ import annotations

import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from uuid import uuid4

import pytest
import structlog.testing

from counterfoil import supervisor
from counterfoil.config import Settings, read_settings
from counterfoil.datadir import Part
from counterfoil.errors import SettingsInvalid, StartRefused
from counterfoil.sources import AllowedEvent
from tests.ports import free_port

TOKEN_SHA256 = "ab" * 32


@pytest.fixture
def settings(tmp_path: Path) -> Settings:
    text = f'[gateway]\nworkers = 2\n[[sources]]\nname = "website"\ntoken_sha256 = ["{TOKEN_SHA256}"]\n'
    return read_settings(text, tmp_path / "counterfoil.toml")


@pytest.fixture
def caplog_events() -> Iterator[list[dict[str, object]]]:
    """What is logged during the test."""
    with structlog.testing.capture_logs() as events:
        yield events  # type: ignore[misc]


@pytest.mark.parametrize(
    ("part", "names"),
    [
        (Part.SERVE, ["gateway-1", "gateway-2", "pipeline", "console"]),
        (Part.GATEWAY, ["gateway-1", "gateway-2"]),
        (Part.PIPELINE, ["pipeline", "console"]),
    ],
)
def test_each_part_has_its_processes(part: Part, names: list[str], settings: Settings, tmp_path: Path) -> None:
    """`serve` runs everything, `gateway` the workers, `pipeline` the pipeline and the console."""
    plan = supervisor.plan_processes(part, settings, uuid4(), tmp_path)
    assert [process.name for process in plan] == names


def test_task_of_a_process_comes_back_whole(settings: Settings, tmp_path: Path) -> None:
    """What a process is told survives the way over its lifeline."""
    for process in supervisor.plan_processes(Part.SERVE, settings, uuid4(), tmp_path):
        told = process.task.model_dump_json()
        assert type(process.task).model_validate_json(told) == process.task


def test_a_port_in_use_is_told() -> None:
    """A port on which somebody listens is refused in one line that names the setting."""
    port = free_port()
    with socket.socket() as other:
        other.bind(("127.0.0.1", port))
        other.listen()
        with pytest.raises(StartRefused, match=rf"port {port} on 127\.0\.0\.1 is in use .*gateway\.port"):
            supervisor.check_port("127.0.0.1", port, "gateway")
    supervisor.check_port("127.0.0.1", port, "gateway")


def test_a_port_that_granian_would_share_is_in_use() -> None:
    """A listener with SO_REUSEPORT, as another gateway's is, counts as using the port."""
    with socket.socket() as other:
        other.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
        other.bind(("127.0.0.1", 0))
        other.listen()
        with pytest.raises(StartRefused, match="in use"):
            supervisor.check_port("127.0.0.1", other.getsockname()[1], "gateway")


@pytest.mark.parametrize("host", ["192.0.2.1", "no-such-host.invalid"])
def test_an_address_of_another_machine_is_told(host: str) -> None:
    """An address that this machine doesn't have is refused, naming the setting."""
    with pytest.raises(StartRefused, match=r"console\.host"):
        supervisor.check_port(host, 8081, "console")


def test_a_certificate_that_is_none_is_told(tmp_path: Path) -> None:
    """Files that are missing or hold no certificate are refused before anything starts."""
    certificate, key = tmp_path / "cert.pem", tmp_path / "key.pem"
    certificate.write_text("no certificate")
    with pytest.raises(SettingsInvalid, match=r"gateway\.tls_key: .*key\.pem can't be read: No such file"):
        supervisor.check_certificate(certificate, key)
    key.write_text("no key")
    with pytest.raises(SettingsInvalid, match="expected a certificate chain and its key"):
        supervisor.check_certificate(certificate, key)


def test_greeting_gives_a_command_to_paste(settings: Settings, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The greeting names the ports, and where the token file is there a curl command that reads it."""
    monkeypatch.chdir(tmp_path)
    assert "curl" not in supervisor.greeting(Part.SERVE, settings)
    Path("counterfoil.token").write_text("secret\n")
    told = supervisor.greeting(Part.SERVE, settings)
    assert "http://127.0.0.1:8080/api/v1" in told
    assert "http://127.0.0.1:8081" in told
    assert "$(cat counterfoil.token)" in told
    assert "secret" not in told


@pytest.mark.parametrize(
    ("host", "reached"),
    [("127.0.0.1", "127.0.0.1"), ("0.0.0.0", "127.0.0.1"), ("::", "[::1]"), ("events.example", "events.example")],
)
def test_all_addresses_are_reached_on_loopback(host: str, reached: str) -> None:
    """An address that means all of them is shown as one that can be opened."""
    assert supervisor.url("http", host, 8080) == f"http://{reached}:8080"


@pytest.mark.parametrize(
    ("part", "left"),
    [
        (Part.SERVE, set()),
        (Part.GATEWAY, {"counter_pipeline.db"}),
        (Part.PIPELINE, {"counter_gateway-1.db", "histogram_gateway-12.db"}),
    ],
)
def test_counts_of_an_old_life_are_forgotten(part: Part, left: set[str], tmp_path: Path) -> None:
    """What an old life counted is gone at the start, and what the other half counts stays."""
    for name in ("counter_pipeline.db", "counter_gateway-1.db", "histogram_gateway-12.db"):
        (tmp_path / name).touch()
    supervisor.forget_counts(tmp_path, part)
    assert {file.name for file in tmp_path.iterdir()} == left
    supervisor.forget_counts(tmp_path / "not there", part)


def test_sources_and_limits_are_renewed(settings: Settings, caplog_events: list[dict[str, object]]) -> None:
    """Settings that are read again change sources and limits, and it is said what else waits for a restart."""
    other = settings.model_copy(
        update={
            "sources": (settings.sources[0].model_copy(update={"token_sha256": ("cd" * 32,)}),),
            "limits": settings.limits.model_copy(update={"rows_max": 5}),
            "gateway": settings.gateway.model_copy(update={"workers": 7}),
        }
    )
    renewed = supervisor.renew(settings, lambda: other)
    assert renewed == settings.model_copy(update={"sources": other.sources, "limits": other.limits})
    assert ("supervisor.reload_needs_restart", "gateway.workers") in [
        (event["event"], event.get("keys")) for event in caplog_events
    ]


def test_settings_that_can_not_be_used_change_nothing(
    settings: Settings, caplog_events: list[dict[str, object]]
) -> None:
    """A file that is broken when it is read again, or names a destination that doesn't run, is refused in the log."""

    def broken() -> Settings:
        raise SettingsInvalid("limits.rows_max: expected a number")

    def with_new_destination() -> Settings:
        allowed = AllowedEvent(event="Purchase", destinations=("shop",))
        source = settings.sources[0].model_copy(update={"allowed_events": (allowed,)})
        return settings.model_copy(update={"sources": (source,)})

    assert supervisor.renew(settings, broken) is None
    assert supervisor.renew(settings, with_new_destination) is None
    reasons = [str(event["reason"]) for event in caplog_events if event["event"] == "supervisor.reload_refused"]
    assert reasons[0] == "limits.rows_max: expected a number"
    assert "expected names of destinations" in reasons[1]


def test_the_supervisor_loads_nothing_that_its_processes_work_with() -> None:
    """Importing the supervisor brings in no server and no table: that would double each start and its memory."""
    heavy = ["granian", "deltalake", "pyarrow", "psycopg", "uvicorn", "starlette", "httpx"]
    found = subprocess.run(
        [sys.executable, "-c", "import counterfoil.supervisor, sys; print(*sys.modules)"],
        capture_output=True,
        text=True,
        check=True,
    ).stdout.split()
    assert [module for module in heavy if module in found] == []
