"""The data directory: whose it is, which ledger and queue it holds, and who works in it now.

    id                  UUID of this ledger and queue; stands in every cursor
    ledger.made         the same, written when the ledger was made
    lock                held whole by `serve`; shared by `gateway` and `pipeline` when they run apart
    queue/ ledger/ lake/ quarantine/
    run/                what is worth nothing after a stop: locks of the halves, metrics, rate limits

Invariants:
    N1. Nobody but its owner reads it: the directory and all that is made in it.
    N2. The id is made once. Where queue or ledger are and the id is not, none is made: a new one would let every
        destination begin anew, and each row be delivered twice. It also stands in `ledger.made` and in the ledger
        itself; what two of them say holds, and is put back.
    N3. Each half of the server runs at most once, and never beside a `serve`.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import time
from collections.abc import Callable, Iterator
from enum import StrEnum
from pathlib import Path
from uuid import UUID, uuid4

import structlog

from counterfoil.aside import copy_aside
from counterfoil.errors import StartRefused
from counterfoil.files import DIRECTORY_MODE, FILE_MODE, Files, RealFiles, told_in_a_line, user_name

log = structlog.get_logger()

LOCK_WAIT_SECONDS = 10.0
"""An old life may still be writing its last; longer than that, and it is no old one."""

_POLL_SECONDS = 0.05


class Part(StrEnum):
    """What works in a data directory."""

    SERVE = "serve"
    GATEWAY = "gateway"
    PIPELINE = "pipeline"


class DataDir:
    """The paths of a data directory; touches nothing until `make` or `lock`."""

    def __init__(self, path: Path, files: Files | None = None) -> None:
        self.path = path
        self.queue = path / "queue"
        self.ledger = path / "ledger"
        self.lake = path / "lake"
        self.quarantine = path / "quarantine"
        self.run = path / "run"
        self._id_file = path / "id"
        self._made_file = path / "ledger.made"
        self._files = files or RealFiles()

    @property
    def id(self) -> UUID:
        """The id of the ledger and queue that are here; raises StartRefused when this is no data directory yet."""
        try:
            return UUID(self._id_file.read_text("ascii").strip())
        except FileNotFoundError:
            if self._made_file.exists():
                raise StartRefused(f"{self._id_file}: missing; `counterfoil serve` puts it back") from None
            raise StartRefused(f"{self.path}: no data directory yet; `counterfoil serve` makes it") from None
        except OSError as error:
            raise StartRefused(f"{self._id_file}: can't be read: {error.strerror}") from None
        except ValueError:
            raise StartRefused(f"{self._id_file}: expected a UUID; put back what was there") from None

    def make(self, ledger_says: Callable[[], UUID | None] = lambda: None) -> UUID | None:
        """Make what is missing of the directory, owner only, and return its id; raises StartRefused.

        None when the id is lost: it is not there any more, or damaged, and nothing tells it. `ledger_says` is asked
        for the ledger's own only when the file and `ledger.made` don't say the same.
        """
        with self.refusing():
            self._files.make_dir(self.path)
            with _alone_in(self.path):
                self._refuse_strangers()
                self._make_private()
                found = self._found_id(ledger_says)
                for directory in (self.queue, self.ledger, self.quarantine, self.run):
                    self._files.make_dir(directory)
        return found

    @contextlib.contextmanager
    def refusing(self, is_meant: Callable[[OSError], bool] = lambda _: True) -> Iterator[None]:
        """Have what the system does not let do here be StartRefused, in one line that names the file.

        Errors that are not meant stay what they are.
        """
        try:
            yield
        except OSError as error:
            if not is_meant(error):
                raise
            raise StartRefused(told_in_a_line(error, self.path)) from None

    def put_id(self, ledger_id: UUID) -> None:
        """Have this be the id from now on; what stood in the file goes to quarantine. Raises OSError."""
        if self._id_file.exists():
            copy_aside(self._id_file, "id", self.quarantine, "not the id of this ledger and queue", self._files)
        self._files.write_whole(self._id_file, f"{ledger_id}\n".encode())
        log.error("datadir.id_put_back")

    def _found_id(self, ledger_says: Callable[[], UUID | None]) -> UUID | None:
        written, made = _uuid_in(self._id_file), _uuid_in(self._made_file)
        if written is not None and (written == made or not self._made_file.exists()):
            return written
        is_new = not any(path.exists() for path in (self._id_file, self._made_file)) and not self._holds_ours()
        if is_new:
            new = uuid4()
            self._files.write_whole(self._id_file, f"{new}\n".encode())
            return new
        kept = ledger_says()
        # Two that agree are right; of two that differ it can't be known which one is damaged.
        told = [each for each in (kept, made, written) if each is not None]
        agreed = next((each for each in told if told.count(each) > 1), told[0] if len(told) == 1 else None)
        if agreed is not None and agreed != written:
            self.put_id(agreed)
        return agreed

    def fault(self) -> str | None:
        """What would keep `make` from its work, in one line; None when nothing does. Makes and changes nothing."""
        there = next(path for path in (self.path, *self.path.parents) if path.exists())
        if not there.is_dir() or not os.access(there, os.W_OK | os.X_OK):
            return f"{there}: not a directory in which this user may write"
        try:
            if there == self.path:
                self._refuse_strangers()
            return None
        except StartRefused as refusal:
            return str(refusal)

    @contextlib.contextmanager
    def lock(self, part: Part, wait_seconds: float = LOCK_WAIT_SECONDS) -> Iterator[tuple[int, ...]]:
        """Be the one that does this part's work here; raises StartRefused, naming who does, after the wait.

        Gives the descriptors that hold it: a process that inherits them holds it as well, until it ends.
        """
        deadline = time.monotonic() + wait_seconds
        is_whole = part is Part.SERVE
        with contextlib.ExitStack() as held:
            whole = held.enter_context(self._locked(self.path / "lock", part, deadline, is_shared=not is_whole))
            if is_whole:
                yield (whole,)
            else:
                yield whole, held.enter_context(self._locked(self._lock_of(part), part, deadline, is_shared=False))

    def holder(self) -> str | None:
        """Who works here now, in words: `counterfoil serve, process 4711`; None when nobody does."""
        for path in (self.path / "lock", *(self._lock_of(part) for part in Part if part is not Part.SERVE)):
            with contextlib.suppress(FileNotFoundError), path.open("rb") as file:
                # A shared lock here says only that a half runs, and that half's own lock says which.
                if not _try_lock(file.fileno(), fcntl.LOCK_SH):
                    return file.read(200).decode(errors="replace").strip() or "another process"
        return None

    def _lock_of(self, part: Part) -> Path:
        return self.run / f"{part}.lock"

    @contextlib.contextmanager
    def _locked(self, path: Path, part: Part, deadline: float, *, is_shared: bool) -> Iterator[int]:
        # Not truncated here: the name of who holds it must stay readable until the lock is ours.
        with self.refusing():
            descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, FILE_MODE)
        try:
            while not _try_lock(descriptor, fcntl.LOCK_SH if is_shared else fcntl.LOCK_EX):
                if time.monotonic() >= deadline:
                    raise StartRefused(f"{self.path}: in use by {self.holder() or 'another process'}; stop it first")
                time.sleep(_POLL_SECONDS)
            if not is_shared:
                os.ftruncate(descriptor, 0)
                os.pwrite(descriptor, f"counterfoil {part}, process {os.getpid()}\n".encode(), 0)
            yield descriptor
        finally:
            os.close(descriptor)

    def _refuse_strangers(self) -> None:
        """Raise StartRefused when the directory is another owner's, or holds something else than a ledger and queue."""
        owner = self.path.stat().st_uid
        if owner != os.geteuid():
            raise StartRefused(
                f"{self.path}: the data directory of {user_name(owner)}, and this is {user_name(os.geteuid())}"
            )
        if self._id_file.exists():
            return
        if self._holds_ours():
            return
        if strange := [entry.name for entry in self.path.iterdir() if not _may_lie_here(entry.name)]:
            raise StartRefused(f"{self.path}: neither empty nor a data directory: it holds {min(strange)}")

    def _make_private(self) -> None:
        if self.path.stat().st_mode & 0o077:
            self.path.chmod(DIRECTORY_MODE)

    def _holds_ours(self) -> bool:
        return any(self._holds_something(path) for path in (self.queue, self.ledger))

    @staticmethod
    def _holds_something(directory: Path) -> bool:
        return directory.is_dir() and any(directory.iterdir())


def _uuid_in(path: Path) -> UUID | None:
    try:
        return UUID(path.read_text("ascii").strip())
    except (FileNotFoundError, ValueError):
        return None


def _may_lie_here(name: str) -> bool:
    """Whether a directory with this entry and no id may become a data directory."""
    ours = name in ("lock", "run", "queue", "ledger", "ledger.made", "lake", "quarantine") or name.startswith(".id.")
    return ours or name == "lost+found"


@contextlib.contextmanager
def _alone_in(directory: Path) -> Iterator[None]:
    """Keep two that start at once from making two ids, of which one would be gone."""
    descriptor = os.open(directory, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX)
        yield
    finally:
        os.close(descriptor)


def _try_lock(descriptor: int, kind: int) -> bool:
    try:
        fcntl.flock(descriptor, kind | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True
