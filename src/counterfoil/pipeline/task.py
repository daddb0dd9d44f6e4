"""What the pipeline's process is told to do. Apart from what it is done with, so that telling costs no start-up."""

from __future__ import annotations

from pathlib import Path
from uuid import UUID

from pydantic import BaseModel, ConfigDict

from counterfoil.destinations.settings import DestinationSettings
from counterfoil.ledger.settings import LedgerSettings
from counterfoil.pipeline.settings import PipelineSettings
from counterfoil.queue.settings import QueueSettings


class PipelineTask(BaseModel):
    """Settle, and deliver to these destinations."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    data_dir: Path
    ledger_id: UUID | None
    """None when it is lost."""
    metrics_dir: Path
    ledger: LedgerSettings
    pipeline: PipelineSettings
    queue: QueueSettings
    destinations: tuple[DestinationSettings, ...]
