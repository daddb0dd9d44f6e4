"""`serve`: builds the processes of the server from the settings, starts, watches, restarts and stops them.

    supervisor ─┬─ gateway-1 … gateway-n    HTTP in, one queue writer each
                ├─ pipeline                 settle, and one thread a destination
                └─ console                  health, metrics and the operator's page, on a port of its own

The order at the start: the data directory's lock, then the ports, then the processes. Each process inherits the lock's
descriptor, so the lock is free only when the last process of an old life is gone, and with it the ports, the queue's
writers and the ledger: a new life waits for this one thing alone.

The order at the stop: the gateway first, which answers what is in flight and flushes; then the pipeline finishes its
step. What doesn't end in time is killed, which loses nothing: all three can die at any instruction.
"""

from __future__ import annotations

import asyncio
import contextlib
import errno
import os
import resource
import signal
import socket
import ssl
import sys
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from uuid import UUID

import msgspec
import structlog
from pydantic import BaseModel

from counterfoil.children import Child
from counterfoil.config import Settings, disagreements
from counterfoil.console.task import ConsoleTask
from counterfoil.datadir import DataDir, Part
from counterfoil.errors import SettingsInvalid, StartRefused
from counterfoil.files import RealFiles
from counterfoil.gateway.task import GatewayTask
from counterfoil.gateway.tuning import worker_environment
from counterfoil.lifeline import Held, Refused
from counterfoil.pipeline.task import PipelineTask
from counterfoil.queue.recovery import recover_idle
from counterfoil.sources import Sources
from counterfoil.telemetry.logs import configure_logs

log = structlog.get_logger()

GATEWAY_STOP_SECONDS = 7.0
"""More than a worker gives those that are still sending."""
STOP_SECONDS = 9.5
"""From the signal to the end, for all: within the 10 s that `serve` promises."""

RENEWED = ("sources", "limits")
"""What SIGHUP changes."""

TOKEN_FILE = Path("counterfoil.token")


Load = Callable[[], Settings]
"""Reads the settings, as they are now; raises SettingsInvalid."""


def serve(load: Load) -> int:
    """Run gateway workers, pipeline and console until SIGTERM or SIGINT; the exit status.

    SIGHUP reads the settings again: sources and limits hold from then on, anything else from the next start. Raises
    StartRefused, SettingsInvalid.
    """
    return _run(Part.SERVE, load)


def run_gateway(load: Load) -> int:
    """Run the gateway workers alone, as `serve` does."""
    return _run(Part.GATEWAY, load)


def run_pipeline(load: Load) -> int:
    """Run the pipeline and the console alone, as `serve` does."""
    return _run(Part.PIPELINE, load)


def _run(part: Part, load: Load) -> int:
    settings = load()
    configure_logs("supervisor")
    os.umask(0o077)
    # A core dump would hold rows (promise P6).
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    data_dir = DataDir(settings.data_dir)
    ledger_id = data_dir.make(lambda: stored_ledger_id(settings))
    if ledger_id is None:
        log.error("supervisor.id_lost", path=str(data_dir.path))
    with data_dir.lock(part) as inherited:
        check_listening(part, settings)
        recover_queue(data_dir)
        metrics_dir = data_dir.run / "metrics"
        with data_dir.refusing():
            forget_counts(metrics_dir, part)

        def plan(settings: Settings) -> tuple[PlannedProcess, ...]:
            return plan_processes(part, settings, ledger_id, metrics_dir)

        return asyncio.run(_supervise(part, settings, load, plan, inherited))


# What must be so before anything starts


def stored_ledger_id(settings: Settings) -> UUID | None:
    """The id that the ledger has, when the files that name it are lost."""
    from counterfoil.ledger import LedgerReader  # RocksDB, which the supervisor needs for nothing else.

    return LedgerReader.stored_id(settings.data_dir / "ledger", settings.ledger)


def recover_queue(data_dir: DataDir) -> None:
    """Make readable what an earlier life left in writers' directories that no worker of this life may take.

    A disk that can't be read or flushed just now keeps nobody from starting: workers and pipeline meet it themselves.
    """
    try:
        recover_idle(data_dir.queue, RealFiles(), data_dir.quarantine)
    except OSError as problem:
        log.error("supervisor.queue_not_recovered", errno=problem.errno)


def check_listening(part: Part, settings: Settings) -> None:
    """Raise StartRefused when a port can't be listened on, SettingsInvalid when the certificate can't be used.

    By a plain bind: Granian binds with SO_REUSEPORT, and would quietly share the port with another server.
    """
    if part is not Part.PIPELINE:
        check_port(settings.gateway.host, settings.gateway.port, "gateway")
        if settings.gateway.tls_cert and settings.gateway.tls_key:
            check_certificate(settings.gateway.tls_cert, settings.gateway.tls_key)
    if part is not Part.GATEWAY:
        check_port(settings.console.host, settings.console.port, "console")


def check_port(host: str, port: int, section: str) -> None:
    """Raise StartRefused when nothing can listen on this port; `section` is where the settings name it."""
    try:
        addresses = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)
    except socket.gaierror:
        raise StartRefused(f"{section}.host: no address of this machine has the name {host}") from None
    for family, kind, protocol, _, address in addresses:
        with socket.socket(family, kind, protocol) as tried:
            # Connections of an old life that wait for their end don't count; what listens does.
            tried.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            try:
                tried.bind(address)
            except OSError as problem:
                raise StartRefused(_port_problem(problem, host, port, section)) from None


def _port_problem(problem: OSError, host: str, port: int, section: str) -> str:
    if problem.errno == errno.EADDRINUSE:
        return f"port {port} on {host} is in use by another program; set {section}.port to a free one"
    if problem.errno == errno.EADDRNOTAVAIL:
        return f"{section}.host: {host} is no address of this machine"
    return f"port {port} on {host} can't be listened on ({section}.port): {problem.strerror}"


def check_certificate(certificate: Path, key: Path) -> None:
    """Raise SettingsInvalid when the two files can't serve HTTPS together."""
    for name, path in (("tls_cert", certificate), ("tls_key", key)):
        try:
            path.open("rb").close()
        except OSError as problem:
            raise SettingsInvalid(f"gateway.{name}: {path} can't be read: {problem.strerror}") from None
    try:
        # A key with a password would ask for it on a terminal that nobody watches.
        ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER).load_cert_chain(certificate, key, password=lambda: "")
    except OSError:  # ssl.SSLError is one.
        raise SettingsInvalid(
            f"gateway.tls_cert, gateway.tls_key: expected a certificate chain and its key as PEM: {certificate}, {key}"
        ) from None


def forget_counts(metrics_dir: Path, part: Part) -> None:
    """Remove what the processes of this part counted in an old life; those of the other half may be running."""
    for file in metrics_dir.glob("*.db"):
        is_gateway = "_gateway-" in file.name
        if part is Part.SERVE or is_gateway is (part is Part.GATEWAY):
            file.unlink(missing_ok=True)


# What runs


class PlannedProcess(msgspec.Struct, frozen=True):
    """A process as it is to be started: its name, the module that it runs, what it is told."""

    name: str
    module: str
    task: BaseModel

    @property
    def is_gateway(self) -> bool:
        return isinstance(self.task, GatewayTask)


def plan_processes(
    part: Part, settings: Settings, ledger_id: UUID | None, metrics_dir: Path
) -> tuple[PlannedProcess, ...]:
    """The processes that make a part of the server."""
    planned: list[PlannedProcess] = []
    if part is not Part.PIPELINE:
        for number in range(1, settings.gateway.workers + 1):
            gateway = GatewayTask(
                name=f"gateway-{number}",
                data_dir=settings.data_dir,
                gateway=settings.gateway,
                metrics_dir=metrics_dir,
                limits=settings.limits,
                queue=settings.queue,
                sources=settings.sources,
            )
            planned.append(PlannedProcess(gateway.name, "counterfoil.gateway.process", gateway))
    if part is not Part.GATEWAY:
        pipeline = pipeline_task(settings, ledger_id, metrics_dir)
        console = ConsoleTask(
            data_dir=settings.data_dir,
            ledger_id=ledger_id,
            metrics_dir=metrics_dir,
            console=settings.console,
            ledger=settings.ledger,
            queue=settings.queue,
            readyz_url=gateway_url(settings) + "/readyz" if part is Part.SERVE else None,
            source_names=tuple(source.name for source in settings.sources),
            destination_names=tuple(destination.name for destination in settings.destinations),
        )
        planned.append(PlannedProcess("pipeline", "counterfoil.pipeline.process", pipeline))
        planned.append(PlannedProcess("console", "counterfoil.console.process", console))
    return tuple(planned)


def pipeline_task(settings: Settings, ledger_id: UUID | None, metrics_dir: Path) -> PipelineTask:
    """What a pipeline is told to do, by these settings."""
    return PipelineTask(
        data_dir=settings.data_dir,
        ledger_id=ledger_id,
        metrics_dir=metrics_dir,
        ledger=settings.ledger,
        pipeline=settings.pipeline,
        queue=settings.queue,
        destinations=settings.destinations,
    )


Plan = Callable[[Settings], Sequence[PlannedProcess]]


class Processes:
    """The children of this supervisor. Made on the event loop."""

    def __init__(self, plan: Sequence[PlannedProcess], inherited: Sequence[int]) -> None:
        self._children = {
            planned.name: Child(
                planned.name,
                # -P: a file of the working directory must not stand in for a module.
                (sys.executable, "-P", "-m", planned.module),
                planned.task.model_dump_json().encode(),
                environment=worker_environment(os.environ) if planned.is_gateway else os.environ,
                inherited=inherited,
                on_change=self._tell_console,
            )
            for planned in plan
        }
        gateways = {planned.name for planned in plan if planned.is_gateway}
        self._gateways = [child for child in self._children.values() if child.name in gateways]
        self._others = [child for child in self._children.values() if child.name not in gateways]

    def start(self) -> None:
        for child in self._children.values():
            child.start()

    async def ready(self) -> None:
        """Return when each does its work or is held; raises StartRefused when one says that it can't start."""
        for word in asyncio.as_completed([child.first_word for child in self._children.values()]):
            said = await word
            if isinstance(said, Refused):
                raise StartRefused(said.message)
            if isinstance(said, Held):
                say(f"Rows are taken and wait, nothing is delivered: {said.message}\n\n")

    async def stop(self) -> None:
        """Stop the gateway, then the rest; returns when all have ended."""
        now = asyncio.get_running_loop().time
        deadline = now() + STOP_SECONDS
        await _stop(self._gateways, GATEWAY_STOP_SECONDS)
        await _stop(self._others, deadline - now())

    def tell_gateways(self, plan: Sequence[PlannedProcess]) -> None:
        """Let the gateway workers of now and later work by what they are told in another plan."""
        for planned in plan:
            if planned.is_gateway:
                self._children[planned.name].tell(planned.task.model_dump_json().encode())

    def _tell_console(self) -> None:
        console = self._children.get("console")
        if console is not None:
            console.tell(msgspec.json.encode([child.status for child in self._children.values()]))


async def _stop(children: Iterable[Child], within_seconds: float) -> None:
    children = tuple(children)
    for child in children:
        child.stop()
    await asyncio.gather(*(child.ended(within_seconds) for child in children))


async def _supervise(part: Part, settings: Settings, load: Load, plan: Plan, inherited: Sequence[int]) -> int:
    asked_to_stop = asyncio.Event()
    loop = asyncio.get_running_loop()
    processes = Processes(plan(settings), inherited)

    def reload() -> None:
        renewed = renew(settings, load)
        if renewed is not None:
            processes.tell_gateways(plan(renewed))

    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, asked_to_stop.set)
    loop.add_signal_handler(signal.SIGHUP, reload)
    processes.start()
    stopping = loop.create_task(asked_to_stop.wait())
    becoming_ready = loop.create_task(processes.ready())
    try:
        await asyncio.wait([stopping, becoming_ready], return_when=asyncio.FIRST_COMPLETED)
        if becoming_ready.done():
            becoming_ready.result()
            say(greeting(part, settings))
        await asked_to_stop.wait()
        log.info("supervisor.stopping")
    finally:
        becoming_ready.cancel()
        stopping.cancel()
        await processes.stop()
    log.info("supervisor.stopped")
    return 0


# What changes while it runs


def renew(running: Settings, load: Load) -> Settings | None:
    """The running settings with the sources and limits of those that are read now; None when they can't be used.

    Says in the log what was read and can't change before the next start.
    """
    try:
        read = load()
        renewed = running.model_copy(update={name: getattr(read, name) for name in RENEWED})
        # An allowlist may name a destination that only the next start brings: its rows would be nobody's until then.
        Sources(renewed.sources, renewed.limits, [destination.name for destination in running.destinations])
        for key, expectation in disagreements(renewed):
            raise SettingsInvalid(f"{key}: {expectation}")
    except SettingsInvalid as problem:
        log.error("supervisor.reload_refused", reason=str(problem))
        return None
    waiting = changed_keys(renewed, read)
    if waiting:
        log.warning("supervisor.reload_needs_restart", keys=", ".join(waiting))
    log.info("supervisor.reloaded", sources=len(renewed.sources))
    return renewed


def changed_keys(one: BaseModel, other: BaseModel, prefix: str = "") -> list[str]:
    """The keys whose values differ between two settings."""
    changed = []
    for name in type(one).model_fields:
        value, other_value = getattr(one, name), getattr(other, name)
        if isinstance(value, BaseModel) and isinstance(other_value, BaseModel):
            changed += changed_keys(value, other_value, f"{prefix}{name}.")
        elif value != other_value:
            changed.append(prefix + name)
    return changed


# What the operator reads


def say(text: str) -> None:
    """Print to whoever started this, if anybody still reads it."""
    with contextlib.suppress(OSError):
        sys.stdout.write(text)
        sys.stdout.flush()


def greeting(part: Part, settings: Settings) -> str:
    """Where it listens, where the token is, and a command to paste."""
    lines = []
    if part is not Part.PIPELINE:
        lines += [f"Counterfoil takes events on {gateway_url(settings)}/api/v1", ""]
    if part is not Part.GATEWAY:
        lines += [f"Its state, health and metrics: {url('http', settings.console.host, settings.console.port)}", ""]
    if part is not Part.PIPELINE and TOKEN_FILE.exists():
        lines += [f"The token lies in ./{TOKEN_FILE}. Send a first event:", "", curl_command(settings), ""]
    return "\n".join(lines) + "\n"


def gateway_url(settings: Settings) -> str:
    """Where the gateway is reached on this machine."""
    scheme = "https" if settings.gateway.tls_cert else "http"
    return url(scheme, settings.gateway.host, settings.gateway.port)


def curl_command(settings: Settings) -> str:
    """A command that sends one event with the token of TOKEN_FILE."""
    certificate = f" --cacert {settings.gateway.tls_cert}" if settings.gateway.tls_cert else ""
    body = f"""{{"token": "'$(cat {TOKEN_FILE})'", "event": "Hello", "distinctId": "hello-1"}}"""
    return (
        f"  curl -sS{certificate} {gateway_url(settings)}/api/v1/track \\\n"
        f"    -H 'Content-Type: application/json' -d '{body}'"
    )


def url(scheme: str, host: str, port: int) -> str:
    """Where to reach what listens on an address; one that means all addresses is reached on loopback."""
    reached = {"0.0.0.0": "127.0.0.1", "": "127.0.0.1", "::": "::1"}.get(host, host)  # noqa: S104 (compared, not bound)
    return f"{scheme}://{f'[{reached}]' if ':' in reached else reached}:{port}"
