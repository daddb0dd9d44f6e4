"""What the console's process is told to do. Apart from what it is done with, so that telling costs no start-up."""

from __future__ import annotations

from pathlib import Path
from uuid import UUID

from pydantic import BaseModel, ConfigDict

from counterfoil.console.settings import ConsoleSettings
from counterfoil.ledger.settings import LedgerSettings
from counterfoil.queue.settings import QueueSettings


class ConsoleTask(BaseModel):
    """Show the state of a server."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    data_dir: Path
    ledger_id: UUID | None
    """None when it is lost."""
    metrics_dir: Path
    console: ConsoleSettings
    ledger: LedgerSettings
    queue: QueueSettings
    readyz_url: str | None
    """The gateway's /readyz; None when the gateway runs apart."""
    source_names: tuple[str, ...]
    destination_names: tuple[str, ...]
