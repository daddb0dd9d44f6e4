"""A real PostgreSQL of the tests' own: started in a temporary directory, killed and started again at will."""

from __future__ import annotations

import os
import pwd
import shutil
import signal
import subprocess
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import psycopg
import stamina

_BINARIES = sorted(Path("/usr/lib/postgresql").glob("*/bin"), key=lambda path: int(path.parent.name))


def why_not() -> str | None:
    """Why no PostgreSQL can be started here; None when it can."""
    if not _BINARIES:
        return "PostgreSQL is not installed: apt-get install postgresql"
    return None


class PostgresServer:
    """One cluster, reached through a socket in its directory; every local user is let in."""

    def __init__(self, directory: Path, *, flushes: bool = False) -> None:
        self.directory = directory
        self._fsync = "on" if flushes else "off"
        self._as_user: list[str] = []
        if os.geteuid() == 0:
            # PostgreSQL refuses to run as root.
            user = pwd.getpwnam("postgres")
            os.chown(directory, user.pw_uid, user.pw_gid)
            self._as_user = ["setpriv", f"--reuid={user.pw_uid}", f"--regid={user.pw_gid}", "--clear-groups"]
        self._process: subprocess.Popen[bytes] | None = None

    def make(self) -> None:
        """Make the cluster."""
        self._run("initdb", "--auth=trust", "--username=postgres", "--encoding=UTF8", "--no-locale", "--no-sync")

    def dsn(self, database: str = "postgres", user: str = "postgres") -> str:
        """Where it is reached."""
        return f"postgresql://{user}@/{database}?host={self.directory}"

    def start(self) -> None:
        """Start it and wait until it answers."""
        command = [*self._as_user, str(_BINARIES[-1] / "postgres"), "-D", str(self.directory / "data")]
        command += ["-k", str(self.directory), "-c", "listen_addresses=", "-c", "max_connections=50"]
        command += ["-c", f"fsync={self._fsync}"]
        self._process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        for attempt in stamina.retry_context(
            on=psycopg.OperationalError, attempts=2000, timeout=120, wait_initial=0.05, wait_max=0.2
        ):
            with attempt, psycopg.connect(self.dsn()):
                pass

    def kill(self) -> None:
        """End it at once, as a power cut would for its clients."""
        if self._process is not None:
            self._process.send_signal(signal.SIGQUIT)
            self._process.wait()
            self._process = None

    def _run(self, program: str, *arguments: str) -> None:
        command = [*self._as_user, str(_BINARIES[-1] / program), "-D", str(self.directory / "data"), *arguments]
        subprocess.run(command, check=True, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE)


@contextmanager
def postgres_server(*, flushes: bool = False) -> Iterator[PostgresServer]:
    """A server that runs, gone with its files at the end; `flushes`: as one that is to keep what it holds."""
    # Its own directory below the system's: the user postgres can't pass through the tests' private ones.
    directory = Path(tempfile.mkdtemp(prefix="counterfoil-postgres-"))
    server = PostgresServer(directory, flushes=flushes)
    try:
        server.make()
        server.start()
        yield server
    finally:
        server.kill()
        shutil.rmtree(directory)
