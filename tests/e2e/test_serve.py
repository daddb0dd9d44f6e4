from __future__ import annotations

import json
import os
import signal
import socket
import ssl
import stat
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import httpx
import pytest

from tests.certificate import make_certificate
from tests.e2e.server import (
    TOKEN,
    WAIT_SECONDS,
    Server,
    children_of,
    clean_environment,
    command,
    ended,
    sha256,
    until,
)
from tests.gateway.server import read_answer, request_head

MakeServer = Callable[..., Server]


def track(server: Server, distinct_id: str, **more: Any) -> httpx.Response:
    body = {"token": TOKEN, "event": "Purchase", "distinctId": distinct_id}
    return httpx.post(f"{server.url}/track", json=body, timeout=60, trust_env=False, **more)


def events_of(server: Server, name: str) -> list[dict[str, Any]]:
    return [line for line in server.log() if line["event"] == name]


def serve_refused(server: Server) -> tuple[int, list[str]]:
    """The exit status of a start that fails, and the lines that it says about it."""
    done = subprocess.run(
        command("serve", "--config", str(server.config)),
        cwd=server.directory,
        capture_output=True,
        text=True,
        timeout=WAIT_SECONDS,
        env=clean_environment(),
    )
    return done.returncode, [line for line in done.stderr.splitlines() if not line.startswith("{")]


def test_a_stop_answers_what_is_in_flight(make_server: MakeServer) -> None:
    """SIGTERM while a request is arriving: it is answered, flushed and, after the next start, delivered; exit 0."""
    server = make_server().start()
    body = json.dumps({"token": TOKEN, "event": "Purchase", "distinctId": "in-flight"}).encode()
    with socket.create_connection(("127.0.0.1", server.port), WAIT_SECONDS) as connection:
        connection.sendall(request_head("/api/v1/track", f"content-length: {len(body)}", "expect: 100-continue"))
        # The gateway waits for the body from here on.
        assert read_answer(connection).status == 100
        connection.sendall(body[:10])
        assert server.process is not None
        worker = os.pidfd_open(server.pid_of("gateway-1") or 0)
        server.process.send_signal(signal.SIGTERM)
        until(lambda: events_of(server, "gateway.stopping") or None, "the gateway is stopping")
        connection.sendall(body[10:])
        answer = read_answer(connection)
        assert (answer.status, answer.body) == (200, b'{"success":true}')
    assert ended(worker, WAIT_SECONDS)
    os.close(worker)
    assert server.stop() == 0
    assert events_of(server, "process.killed") == []
    server.start()
    assert len(server.rows_of("in-flight")) == 1
    assert server.stop(signal.SIGINT) == 0


def test_a_stop_does_not_wait_for_idle_connections(make_server: MakeServer) -> None:
    """A connection that says nothing doesn't keep the server from ending in time."""
    server = make_server().start()
    with socket.create_connection(("127.0.0.1", server.port)):
        assert server.stop() == 0
    assert events_of(server, "process.killed") == []


def test_a_dead_worker_is_started_again(make_server: MakeServer) -> None:
    """A gateway worker that dies is started again, the log says so, and rows are taken as before."""
    server = make_server().start()
    assert track(server, "before").status_code == 200
    first = server.pid_of("gateway-1")
    assert first is not None
    os.kill(first, signal.SIGKILL)
    until(lambda: (server.pid_of("gateway-1") or first) != first or None, "another worker")
    (told,) = events_of(server, "process.ended")
    assert (told["child"], told["end"], told["level"]) == ("gateway-1", "SIGKILL", "error")
    assert track(server, "after").status_code == 200
    assert [row["distinct_id"] for row in server.rows_of("before", "after")] == ["before", "after"]
    assert server.stop() == 0


def test_rows_are_taken_while_the_pipeline_is_down(make_server: MakeServer) -> None:
    """A pipeline that dies again and again stops no sender; when it lives again, every row is delivered once."""
    server = make_server().start()
    assert track(server, "first").status_code == 200
    server.rows_of("first")
    killed: set[int] = set()
    for number in range(2):
        pipeline = until(lambda: {server.pid_of("pipeline")} - killed - {None} or None, "another pipeline runs").pop()
        assert pipeline is not None
        os.kill(pipeline, signal.SIGKILL)
        killed.add(pipeline)
        assert track(server, f"down-{number}").status_code == 200
        assert server.console("/readyz") == 200
    rows = server.rows_of("first", "down-0", "down-1")
    assert [row["distinct_id"] for row in rows] == ["first", "down-0", "down-1"]
    assert [told["child"] for told in events_of(server, "process.ended")] == ["pipeline", "pipeline"]
    server.run("audit")
    assert server.stop() == 0


def test_fewer_workers_read_what_more_of_them_left(make_server: MakeServer) -> None:
    """A power cut leaves an old published place: a directory that no worker takes is read to its end all the same."""
    server = make_server(workers=2).start()
    queue = server.directory / "data" / "queue"
    old = {path: path.read_bytes() for path in queue.glob("*/flushed")}
    names = [f"o-{number}" for number in range(40)]
    # A connection a row: the kernel hands them to both workers.
    assert {track(server, name).status_code for name in names} == {200}
    server.kill()
    for path, content in old.items():
        path.write_bytes(content)
    server.config.write_text(server.config.read_text().replace("workers = 2", "workers = 1"))
    server.start()
    assert len(server.rows_of(*names)) == 40


def test_killing_the_supervisor_leaves_no_orphan(make_server: MakeServer) -> None:
    """When the supervisor alone is killed, all others end by themselves, and a new server starts at once."""
    server = make_server(workers=2).start()
    assert server.process is not None
    watched = [os.pidfd_open(pid) for pid in children_of(server.process.pid)]
    assert len(watched) == 4
    server.process.kill()
    server.process.wait()
    assert server.process.stdout is not None
    server.process.stdout.close()
    # It waits for the lock that the old life's processes still hold, and then finds their ports free.
    server.start()
    for descriptor in watched:
        assert ended(descriptor, WAIT_SECONDS)
        os.close(descriptor)
    assert track(server, "anew").status_code == 200
    assert server.stop() == 0


@pytest.mark.parametrize("section", ["gateway", "console"])
def test_a_port_in_use_is_one_clear_line(section: str, make_server: MakeServer) -> None:
    """A port that another program listens on ends the start with exit status 1 and one line that names the setting."""
    server = make_server()
    port = server.port if section == "gateway" else server.console_port
    with socket.create_server(("127.0.0.1", port)):
        status, lines = serve_refused(server)
    assert status == 1
    assert len(lines) == 1, lines
    assert f"port {port} on 127.0.0.1 is in use" in lines[0]
    assert f"{section}.port" in lines[0]


def test_a_locked_data_directory_is_one_clear_line(make_server: MakeServer, monkeypatch: pytest.MonkeyPatch) -> None:
    """A data directory in which a server runs is refused with exit status 1 and one line that names it and who."""
    server = make_server().start()
    assert server.process is not None
    status, lines = serve_refused(server)
    assert status == 1
    assert len(lines) == 1, lines
    assert str(server.directory / "data") in lines[0]
    assert str(server.process.pid) in lines[0]
    assert server.stop() == 0


def test_a_bad_configuration_is_one_clear_line(make_server: MakeServer) -> None:
    """A configuration that can't be used ends the start with exit status 2 and one line: file, key, expectation."""
    server = make_server()
    server.config.write_text(server.config.read_text().replace("workers = 1", 'workers = "many"'))
    status, lines = serve_refused(server)
    assert status == 2
    assert len(lines) == 1, lines
    assert "gateway.workers" in lines[0]
    assert str(server.config) in lines[0]


def test_only_the_owner_can_read_what_the_server_writes(make_server: MakeServer) -> None:
    """Every file and directory of the data directory is readable by its owner alone (promise P6)."""
    server = make_server().start()
    assert track(server, "private").status_code == 200
    server.rows_of("private")
    assert server.stop() == 0
    open_to_others = [
        path
        for path in [server.directory / "data", *(server.directory / "data").rglob("*")]
        if stat.S_IMODE(path.lstat().st_mode) & 0o077
    ]
    assert open_to_others == []


def test_logs_hold_nothing_of_a_row(make_server: MakeServer) -> None:
    """No token, identifier or value of a row is in the log, whether it was accepted or not (promise P6)."""
    server = make_server().start()
    body = {
        "token": TOKEN,
        "events": [
            {"event": "Secret-event", "distinctId": "secret-id", "email": "secret@example.org"},
            {"event": "Secret-event", "distinctId": "secret-id-2", "time": "secret-time"},
        ],
    }
    assert httpx.post(f"{server.url}/batch", json=body, trust_env=False, timeout=60).status_code == 207
    wrong = {"token": "secret-token", "event": "x", "distinctId": "secret-id-3"}
    assert httpx.post(f"{server.url}/track", json=wrong, trust_env=False, timeout=60).status_code == 401
    server.rows_of("secret-id")
    assert server.stop() == 0
    log = server.log_path.read_text()
    assert "secret" not in log.lower()
    assert TOKEN not in log


def test_no_token_stands_on_a_command_line(make_server: MakeServer) -> None:
    """What the processes are told doesn't show in the list of processes, not even a token's hash."""
    server = make_server().start()
    shown = [Path(f"/proc/{pid}/cmdline").read_bytes() for pid in server.pids()]
    assert len(shown) == 4
    hashes_of_tokens = [line for line in server.config.read_text().split('"') if len(line) == 64]
    assert len(hashes_of_tokens) == 2
    assert not [line for line in shown for token_hash in hashes_of_tokens if token_hash.encode() in line]
    assert server.stop() == 0


def test_greeting_is_a_command_that_works(make_server: MakeServer) -> None:
    """At the start the server prints a curl command that sends an event as it stands."""
    server = make_server()
    (server.directory / "counterfoil.token").write_text(TOKEN + "\n")
    server.start()
    assert server.process is not None
    assert server.process.stdout is not None
    lines = iter(server.process.stdout.readline, b"")
    pasted = next(line for line in lines if b"curl" in line) + next(lines)
    done = subprocess.run(["sh", "-c", pasted.decode()], cwd=server.directory, capture_output=True, text=True)
    assert done.stdout == '{"success":true}', done
    assert [row["event"] for row in server.rows_of("hello-1")] == ["Hello"]
    assert server.stop() == 0


def test_the_page_and_the_metrics_show_what_happened(make_server: MakeServer) -> None:
    """The console's page, JSON and metrics show the row that was sent and the processes that run."""
    server = make_server().start()
    assert track(server, "shown").status_code == 200
    server.rows_of("shown")
    status = until(
        lambda: found if (found := server.status())["destinations"][0]["delivered"] == 1 else None, "the delivery"
    )
    assert status["sources"] == [
        {"name": "website", "accepted": 1, "new": 1, "duplicate": 0, "conflict": 0, "blocked": 0, "test": 0}
    ]
    assert status["destinations"][0]["state"] == "running"
    assert {process["name"]: process["state"] for process in status["processes"]} == {
        "gateway-1": "ready",
        "pipeline": "ready",
        "console": "ready",
    }
    console = f"http://127.0.0.1:{server.console_port}"
    assert "website" in httpx.get(console, trust_env=False, timeout=60).text

    def metrics() -> str | None:
        text = httpx.get(f"{console}/metrics", trust_env=False, timeout=60).text
        return text if wanted <= set(text.splitlines()) else None

    wanted = {
        'counterfoil_requests_total{path="/api/v1/track",status="200"} 1.0',
        'counterfoil_rows_total{result="accepted",source="website"} 1.0',
        'counterfoil_delivered_rows{destination="lake"} 1.0',
        'counterfoil_commits_total{destination="lake",result="down"} 0.0',
        'counterfoil_commits_total{destination="lake",result="refused"} 0.0',
        'counterfoil_flushes_total{result="failed"} 0.0',
        "counterfoil_flushed_rows_total 1.0",
    }
    # Each process says by and by what it has counted.
    until(metrics, "all of it is counted")
    assert server.stop() == 0


def test_the_console_asks_for_its_password(make_server: MakeServer) -> None:
    """With a password set, the page and the metrics are shown to whoever has it, health to all, and none is logged."""
    made = json.loads(make_server().run("password", "--json"))
    server = make_server().start(environment={"COUNTERFOIL_CONSOLE__PASSWORD_SHA256": made["password_sha256"]})
    console = f"http://127.0.0.1:{server.console_port}"
    for path in ("/", "/metrics", "/api/status"):
        assert server.console(path) == 401
        assert httpx.get(console + path, auth=("prometheus", "guess"), trust_env=False, timeout=60).status_code == 401
        assert (
            httpx.get(console + path, auth=("prometheus", made["password"]), trust_env=False, timeout=60).status_code
            == 200
        )
    assert server.console("/livez") == 200
    text = server.log_path.read_text()
    assert made["password"] not in text
    assert made["password_sha256"] not in text


def test_health_on_both_ports(make_server: MakeServer) -> None:
    """/livez and /readyz answer on the gateway's port and on the console's."""
    server = make_server().start()
    for path in ("/livez", "/readyz"):
        assert server.gateway(path) == 200
        assert server.console(path) == 200
    assert server.stop() == 0


def test_a_token_is_rotated_without_a_gap(make_server: MakeServer) -> None:
    """After SIGHUP a token that was added is taken beside the old one; one that was removed is taken no more."""
    server = make_server(workers=2).start()
    assert server.process is not None
    before = server.config.read_text()

    def statuses(token: str) -> set[int]:
        body = {"token": token, "event": "Purchase", "distinctId": "rotated"}
        # Each on a connection of its own, so that both workers answer.
        return {httpx.post(f"{server.url}/track", json=body, trust_env=False, timeout=60).status_code for _ in range(8)}

    both = before.replace(
        f'token_sha256 = ["{sha256(TOKEN)}"', f'token_sha256 = ["{sha256(TOKEN)}", "{sha256("new")}"', 1
    )
    server.config.write_text(both)
    assert statuses("new") == {401}
    server.process.send_signal(signal.SIGHUP)
    until(lambda: len(events_of(server, "gateway.reloaded")) == 2 or None, "both workers know")
    assert statuses("new") == statuses(TOKEN) == {200}
    server.config.write_text(both.replace(f'"{sha256(TOKEN)}", ', ""))
    server.process.send_signal(signal.SIGHUP)
    until(lambda: len(events_of(server, "gateway.reloaded")) == 4 or None, "both workers know")
    assert (statuses("new"), statuses(TOKEN)) == ({200}, {401})
    server.config.write_text("workers = many")
    server.process.send_signal(signal.SIGHUP)
    until(lambda: events_of(server, "supervisor.reload_refused") or None, "it is refused")
    assert statuses("new") == {200}
    worker = server.pid_of("gateway-2")
    assert worker is not None
    os.kill(worker, signal.SIGKILL)
    until(lambda: len(events_of(server, "gateway.reloaded")) == 5 or None, "the new worker knows, too")
    assert statuses("new") == {200}
    assert server.stop() == 0


def test_the_halves_run_apart(make_server: MakeServer) -> None:
    """`gateway` alone takes rows, and `pipeline` alone delivers them, at the same time or later."""
    server = make_server()

    def start(part: str) -> subprocess.Popen[bytes]:
        with server.log_path.open("ab") as log:
            return subprocess.Popen(
                command(part, "--config", str(server.config)),
                cwd=server.directory,
                stdout=subprocess.DEVNULL,
                stderr=log,
                env=clean_environment(),
            )

    gateway = start("gateway")
    pipeline = None
    try:
        until(lambda: server.gateway("/readyz") == 200 or None, "the gateway is ready")
        assert track(server, "apart").status_code == 200
        pipeline = start("pipeline")
        assert len(server.rows_of("apart")) == 1
        until(lambda: server.console("/readyz") == 200 or None, "the console is ready")
        status, lines = serve_refused(server)
        assert (status, len(lines)) == (1, 1)
    finally:
        for process in filter(None, (gateway, pipeline)):
            process.send_signal(signal.SIGTERM)
            assert process.wait(WAIT_SECONDS) == 0


def test_tls(make_server: MakeServer, tmp_path: Path) -> None:
    """With a certificate and its key the gateway speaks HTTPS alone."""
    certificate, key = make_certificate(tmp_path / "tls")
    server = make_server(tls=True, gateway=f'tls_cert = "{certificate}"\ntls_key = "{key}"').start()
    assert track(server, "secured", verify=ssl.create_default_context(cafile=certificate)).status_code == 200
    assert len(server.rows_of("secured")) == 1
    with pytest.raises(httpx.HTTPError):
        httpx.get(f"http://127.0.0.1:{server.port}/livez", trust_env=False, timeout=60)
    assert server.stop() == 0


def test_a_missing_key_is_one_clear_line(make_server: MakeServer, tmp_path: Path) -> None:
    """A certificate whose key is not there ends the start with one line."""
    certificate, key = make_certificate(tmp_path / "tls")
    key.unlink()
    server = make_server(tls=True, gateway=f'tls_cert = "{certificate}"\ntls_key = "{key}"')
    status, lines = serve_refused(server)
    assert status in (1, 2)
    assert len(lines) == 1, lines
    assert "key.pem" in lines[0]
