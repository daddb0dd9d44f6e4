"""The one tree of exceptions.

    CounterfoilError
    ├── SettingsInvalid         a configuration that can't be used; names file, key and what was expected
    ├── StartRefused            a port in use, a data directory of somebody else, a lock that is held
    ├── QueueRefused            the queue takes no row now; nothing was written; trying again can help
    │   └── DiskReserveReached  the disk is as good as full
    ├── FlushFailed             a frame may or may not be on disk, and is not acknowledged; trying again can help
    ├── FrameDamaged            bytes of the queue that fail their checksum or make no sense
    ├── LedgerUnusable          the ledger can't be opened, or is another queue's
    │   ├── LedgerDamaged       what was flushed of it can't be read any more; `counterfoil rebuild` makes it anew
    │   └── LedgerInUse         another process writes it
    ├── LedgerWriteFailed       nothing of the batch was recorded
    ├── PipelineUnreachable     an order got no answer, or the pipeline is in no state to take one
    ├── OrderRefused            the pipeline did not carry an order out; its message says why
    ├── QueryRefused            SQL that is wrong, would write, or finds no table; its message is for who asked
    └── DestinationError
        ├── DestinationDown     can't be reached or is busy; trying again can help
        └── DestinationRefused  stands in the way until somebody acts: other table, cursor behind, bad credentials

What a sender gets wrong is not here: `counterfoil.contract` says it with `RequestRejected` and row faults, because it
imports nothing of the house. No message ever holds a value of a sender's data, a token or another system's words
(promise P6): reasons are our own codes.
"""

from __future__ import annotations


class CounterfoilError(Exception):
    """Something that a sender, a disk, another system or an operator broke."""

    retryable: bool = False

    def __init__(self, message: str | None = None) -> None:
        super().__init__(message or (self.__doc__ or type(self).__name__).splitlines()[0])


class SettingsInvalid(CounterfoilError):
    """The configuration can't be used."""


class StartRefused(CounterfoilError):
    """The server can't start here."""


class QueueRefused(CounterfoilError):
    """The queue takes no rows now; none was written."""

    retryable = True


class DiskReserveReached(QueueRefused):
    """The disk reserve is reached; the queue takes no rows until there is room."""


class FlushFailed(CounterfoilError):
    """A flush failed; its frames are not acknowledged."""

    retryable = True


class FrameDamaged(CounterfoilError):
    """A frame fails its checksum or makes no sense."""


class LedgerUnusable(CounterfoilError):
    """The ledger can't be used."""


class LedgerDamaged(LedgerUnusable):
    """What was flushed of the ledger can't be read any more; the message says what to do."""

    def __init__(self, what: str) -> None:
        super().__init__(
            f"{what}: put back what is missing, or stop the server and run `counterfoil rebuild`, which makes the "
            "ledger anew from the queue and the destinations"
        )


class LedgerInUse(LedgerUnusable):
    """Another process writes this ledger."""

    retryable = True


class LedgerWriteFailed(CounterfoilError):
    """Nothing of this batch was recorded in the ledger."""

    retryable = True


class PipelineUnreachable(CounterfoilError):
    """The pipeline gave no answer: what was ordered may or may not be done, and may be ordered again."""

    retryable = True


class OrderRefused(CounterfoilError):
    """The pipeline did not carry the order out."""


class QueryRefused(CounterfoilError):
    """The query can't be run."""


class DestinationError(CounterfoilError):
    """A destination did not take a delivery."""


class DestinationDown(DestinationError):
    """The destination can't be reached or is busy."""

    retryable = True

    def __init__(self, message: str | None = None, retry_after_s: float | None = None) -> None:
        super().__init__(message)
        self.retry_after_s = retry_after_s
        """Seconds that the destination asked us to wait."""
        self.has_progressed = False
        """Whether it took a part of the delivery first: it is not down for good."""


class DestinationRefused(DestinationError):
    """The destination stands in the way until somebody acts."""
