"""The destinations' settings: one model for each kind."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field

MIB = 1024 * 1024

DESTINATION_NAME = r"^[a-z0-9][a-z0-9_-]{0,62}$"


class DeliverySettings(BaseModel):
    """What every destination has."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    name: Annotated[str, Field(pattern=DESTINATION_NAME)] = Field(
        description="The destination's name, which is its identity: lower-case letters, digits, - and _."
    )
    batch_rows: Annotated[int, Field(ge=1)] = Field(
        65_536, description="Rows after which a delivery is closed; it holds whole groups."
    )
    batch_bytes: Annotated[int, Field(ge=MIB)] = Field(
        64 * MIB, description="Bytes of frames after which a delivery is closed."
    )
    batch_seconds: Annotated[float, Field(ge=0, le=3600)] = Field(
        1.0, description="Seconds that the first row of a delivery waits for more."
    )


class DeltaSettings(DeliverySettings):
    """A Delta Lake table."""

    type: Literal["delta"] = "delta"
    path: str = Field("data/lake", description="The table's directory, relative to the configuration file.")
    merge_commits: Annotated[int, Field(ge=2, le=100)] = Field(
        50, description="Commits after which small files are merged and the log is cleaned."
    )
    file_bytes: Annotated[int, Field(ge=MIB)] = Field(
        128 * MIB, description="Bytes of a file above which it is not merged any further."
    )
    keep_hours: Annotated[float, Field(ge=0)] = Field(
        24.0, description="Hours that files and log entries stay after something took their place, for readers."
    )


DestinationSettings = DeltaSettings
"""Any of them, told apart by `type`."""
