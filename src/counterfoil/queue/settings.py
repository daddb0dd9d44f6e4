"""The queue's settings."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field

MIB = 1024 * 1024


class QueueSettings(BaseModel):
    """How the queue writes its segments."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    segment_bytes: Annotated[int, Field(ge=MIB, le=16 * 1024 * MIB)] = Field(
        128 * MIB, description="Bytes after which a writer begins a new segment."
    )
    frame_rows_max: Annotated[int, Field(ge=1, le=65_535)] = Field(
        4096, description="Rows of a frame at most; a larger request becomes several frames."
    )
    frame_bytes_max: Annotated[int, Field(ge=64 * 1024, le=32 * MIB)] = Field(
        4 * MIB, description="Bytes of rows after which a request continues in another frame."
    )
    compression: Literal["none", "zstd"] = Field("none", description="How the rows of a frame are compressed.")
    reserve_bytes: Annotated[int, Field(ge=0)] = Field(
        1024 * MIB, description="Free bytes of the disk below which the queue refuses requests."
    )
    reserve_percent: Annotated[float, Field(ge=0, le=90)] = Field(
        5.0, description="The same as percent of the disk; the smaller of the two counts."
    )
    retention_days: Annotated[float, Field(ge=0, le=3650)] = Field(
        7.0,
        description="Days for which rows are kept after they were settled, also when every destination has them; "
        "0: until every destination has them.",
    )
    waiting_bytes_max: Annotated[int, Field(ge=MIB)] = Field(
        64 * MIB, description="Bytes of frames that may wait for a flush; more are refused at once, to be sent again."
    )

    def reserve_of(self, disk_bytes: int) -> int:
        """Free bytes of a disk of this size below which the queue refuses."""
        return min(self.reserve_bytes, int(disk_bytes * self.reserve_percent / 100))
