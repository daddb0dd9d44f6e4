"""What a gateway worker's process is told to do. Apart from what it is done with, so that telling costs no start-up."""

from __future__ import annotations

from pathlib import Path

from pydantic import BaseModel, ConfigDict

from counterfoil.contract.limits import Limits
from counterfoil.gateway.settings import GatewaySettings
from counterfoil.queue.settings import QueueSettings
from counterfoil.sources import SourceSettings


class GatewayTask(BaseModel):
    """Be a gateway worker; as news while it runs: with these sources and limits from then on."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    name: str
    """Of this worker, as no other has it."""
    data_dir: Path
    metrics_dir: Path
    gateway: GatewaySettings
    limits: Limits
    queue: QueueSettings
    sources: tuple[SourceSettings, ...]
