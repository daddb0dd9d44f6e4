"""The ledger's settings."""

from __future__ import annotations

from typing import Annotated

from pydantic import BaseModel, ConfigDict, Field

MIB = 1024 * 1024


class LedgerSettings(BaseModel):
    """How the ledger keeps what it knows."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    horizon_days: Annotated[int, Field(ge=1, le=3650)] = Field(
        30, description="Days from a key's first row within which a repeat of it is known as one."
    )
    cache_bytes: Annotated[int, Field(ge=8 * MIB)] = Field(
        128 * MIB, description="Bytes of memory for cached blocks, indexes and filters."
    )
    write_buffer_bytes: Annotated[int, Field(ge=4 * MIB)] = Field(
        64 * MIB, description="Bytes of memory for what is written and not yet sorted into files."
    )
