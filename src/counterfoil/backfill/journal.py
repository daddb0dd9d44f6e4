"""The journal of a job: what is confirmed, flushed before anybody is told.

One JSON object a line, appended. The first says what the job is; each other one batch that is confirmed whole:

    {"version": 1, "to": "http://…", "mapping": "<sha-256>", "inputs": [{"path", "format", "size_bytes", "modified_ns",
     "fingerprint"}]}
    {"input": 0, "first": 1, "last": 1000, "accepted": 990, "rejected": 10, "repeated": 0, "bytes": 210000,
     "rejected_bytes": 2310, "at_ms": 1767225600000}
    {"input": 0, "read": 69659}

`first` and `last` are numbers of records, ends included; `repeated` is how many of its rows were sent more than once,
`bytes` the length of the originals; `rejected_bytes` is the length of the input's rejected file once the batch's
rejected records stand in it, flushed: going on with the job cuts what lies behind the last one. The last form says
that an input was read to its end. A torn last line, as a crash leaves it, is cut.
"""

from __future__ import annotations

import fcntl
import os
from bisect import bisect_right
from collections import deque
from pathlib import Path

import msgspec
import pyarrow as pa
import pyarrow.fs
import xxhash

from counterfoil.backfill.errors import BackfillError, writing
from counterfoil.backfill.reading import Input
from counterfoil.files import Files

JOURNAL_VERSION = 1
_SAMPLE_BYTES = 1024 * 1024
_RECENT_BATCHES = 50
_BEHIND_ALL = 1 << 62


class InputFacts(msgspec.Struct, frozen=True):
    """A file as it was when the job began."""

    path: str
    format: str
    size_bytes: int
    modified_ns: int
    fingerprint: str
    """xxh3-128 of its first and last MiB."""


class JobFacts(msgspec.Struct, frozen=True):
    """What a job is."""

    version: int
    to: str
    mapping: str
    inputs: tuple[InputFacts, ...]


class Confirmed(msgspec.Struct, frozen=True, omit_defaults=True):
    """A batch that is confirmed, or an input that was read to its end."""

    input: int
    first: int = 0
    last: int = 0
    accepted: int = 0
    rejected: int = 0
    repeated: int = 0
    bytes: int = 0
    rejected_bytes: int = 0
    at_ms: int = 0
    read: int | None = None


class Progress:
    """How far a job is, by its journal."""

    def __init__(self, input_count: int) -> None:
        self.accepted = [0] * input_count
        self.rejected = [0] * input_count
        self.repeated = [0] * input_count
        self.bytes = [0] * input_count
        self.rejected_bytes = [0] * input_count
        self.recent: deque[tuple[int, int]] = deque(maxlen=_RECENT_BATCHES)
        """Of the last batches: when each was confirmed, and its rows."""
        self.read: list[int | None] = [None] * input_count
        self._runs: list[list[tuple[int, int]]] = [[] for _ in range(input_count)]

    def add(self, entry: Confirmed) -> None:
        """Take a line of the journal in."""
        if entry.read is not None:
            self.read[entry.input] = entry.read
            return
        self.accepted[entry.input] += entry.accepted
        self.rejected[entry.input] += entry.rejected
        self.repeated[entry.input] += entry.repeated
        self.bytes[entry.input] += entry.bytes
        self.recent.append((entry.at_ms, entry.accepted + entry.rejected))
        self.rejected_bytes[entry.input] = entry.rejected_bytes
        runs = self._runs[entry.input]
        at = bisect_right(runs, (entry.first, entry.last))
        runs.insert(at, (entry.first, entry.last))

    def next_confirmed(self, input_index: int, number: int) -> tuple[int, int]:
        """The first and last record of the first confirmed batch that does not end before a record."""
        runs = self._runs[input_index]
        at = bisect_right(runs, (number, _BEHIND_ALL))
        if at > 0 and runs[at - 1][1] >= number:
            return runs[at - 1]
        return runs[at] if at < len(runs) else (_BEHIND_ALL, _BEHIND_ALL)

    def rows_per_second(self) -> float | None:
        """The rate of the last batches; None when there are too few."""
        if len(self.recent) < 2:
            return None
        seconds = (self.recent[-1][0] - self.recent[0][0]) / 1000
        return sum(rows for _, rows in list(self.recent)[1:]) / seconds if seconds > 0 else None

    @property
    def is_complete(self) -> bool:
        """Whether every input was read to its end; what was read is confirmed by then."""
        return None not in self.read


class Journal:
    """A journal that is open for writing; `append` gathers, `flush` makes it count."""

    def __init__(self, path: Path, descriptor: int, files: Files, progress: Progress, is_new: bool) -> None:
        self.path = path
        self.progress = progress
        self.is_new = is_new
        """No earlier run began this job."""
        self._descriptor = descriptor
        self._files = files
        self._gathered: list[Confirmed] = []

    @classmethod
    def open(cls, path: Path, facts: JobFacts, files: Files) -> Journal:
        """The journal of a job, begun or gone on with.

        Raises BackfillError when another process holds it, or when it is another job's: another target, mapping or
        list of files, or a file that changed.
        """
        with writing(path):
            descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC, 0o600)
        try:
            _lock(path, descriptor)
            begun, progress, good_bytes = _read(path, facts)
            with writing(path):
                os.ftruncate(descriptor, good_bytes)
                if begun is None:
                    files.append(descriptor, _ENCODER.encode(facts) + b"\n")
                    files.fdatasync(descriptor)
                    files.sync_dir(path.parent)
            return cls(path, descriptor, files, progress, begun is None)
        except BaseException:
            os.close(descriptor)
            raise

    def append(self, entry: Confirmed) -> None:
        """Gather a line for the next flush."""
        self._gathered.append(entry)

    def flush(self) -> None:
        """Make what was gathered durable; only then it is progress. Raises BackfillError where the disk refuses."""
        gathered, self._gathered = self._gathered, []
        if not gathered:
            return
        with writing(self.path):
            self._files.append(self._descriptor, b"".join(_ENCODER.encode(entry) + b"\n" for entry in gathered))
            self._files.fdatasync(self._descriptor)
        for entry in gathered:
            self.progress.add(entry)

    def close(self) -> None:
        """Flush and close; closing twice is harmless."""
        if self._descriptor >= 0:
            self.flush()
            os.close(self._descriptor)
            self._descriptor = -1


def read_journal(path: Path) -> tuple[JobFacts, Progress]:
    """What a journal says, for `--status`; also while a job writes it. Raises BackfillError when it is none."""
    if not path.exists():
        raise BackfillError(f"{path}: there is no such job")
    begun, progress, _ = _read(path, None)
    if begun is None:
        raise BackfillError(f"{path}: not a journal of a backfill")
    return begun, progress


def facts_of(source: Input) -> InputFacts:
    """What tells a file from another, or from itself after a change."""
    digest = xxhash.xxh3_128()
    if source.is_seekable:
        system, inner = pa.fs.FileSystem.from_uri(source.path) if "://" in source.path else _local(source.path)
        with system.open_input_file(inner) as file:
            digest.update(file.read(_SAMPLE_BYTES))
            if source.size_bytes > _SAMPLE_BYTES:
                file.seek(source.size_bytes - _SAMPLE_BYTES)
                digest.update(file.read(_SAMPLE_BYTES))
    return InputFacts(source.path, source.format, source.size_bytes, source.modified_ns, digest.hexdigest())


def _local(path: str) -> tuple[pa.fs.FileSystem, str]:
    return pa.fs.LocalFileSystem(), str(Path(path).absolute())


def _lock(path: Path, descriptor: int) -> None:
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        raise BackfillError(f"{path}: another process works on this job") from None


def _read(path: Path, expected: JobFacts | None) -> tuple[JobFacts | None, Progress, int]:
    """The job, its progress, and how many bytes of the journal are whole lines."""
    whole, _, _ = path.read_bytes().rpartition(b"\n")
    lines = whole.split(b"\n") if whole else []
    if not lines:
        return None, Progress(len(expected.inputs) if expected else 0), 0
    try:
        begun = msgspec.json.decode(lines[0], type=JobFacts)
        if expected is not None:
            _check(path, begun, expected)
        progress = Progress(len(begun.inputs))
        for line in lines[1:]:
            progress.add(_DECODER.decode(line))
    except (msgspec.MsgspecError, IndexError):
        raise BackfillError(f"{path}: not a journal of a backfill, or damaged") from None
    return begun, progress, len(whole) + 1


def _check(path: Path, begun: JobFacts, expected: JobFacts) -> None:
    if begun.version != JOURNAL_VERSION:
        raise BackfillError(f"{path}: version {begun.version}, expected {JOURNAL_VERSION}")
    if begun.to != expected.to:
        raise BackfillError(f"{path}: this job sends to {begun.to}; name another with --job")
    if begun.mapping != expected.mapping:
        raise BackfillError(f"{path}: this job began with another mapping; name another with --job")
    if [one.path for one in begun.inputs] != [one.path for one in expected.inputs]:
        raise BackfillError(f"{path}: this job is for other files; name another with --job")
    for before, now in zip(begun.inputs, expected.inputs, strict=True):
        if before != now:
            raise BackfillError(
                f"{before.path}: changed since the job began, so records can't be told from those confirmed; "
                "put the file back, or name another job with --job"
            )


_ENCODER = msgspec.json.Encoder()
_DECODER = msgspec.json.Decoder(Confirmed)
