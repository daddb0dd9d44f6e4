"""The pipeline's settings."""

from __future__ import annotations

from typing import Annotated

from pydantic import BaseModel, ConfigDict, Field

MIB = 1024 * 1024


class PipelineSettings(BaseModel):
    """How settle and deliver take their steps."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    poll_ms: Annotated[int, Field(ge=1, le=10_000)] = Field(
        20, description="Milliseconds after which settle looks again for new frames when there were none."
    )
    group_rows: Annotated[int, Field(ge=1, le=65_536)] = Field(
        16_384, description="Rows after which settle closes a group; a group holds whole frames."
    )
    group_bytes: Annotated[int, Field(ge=MIB)] = Field(
        16 * MIB, description="Bytes of frames after which settle closes a group."
    )
