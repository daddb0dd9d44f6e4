"""The limits of contract.md section 6: one place, from which settings, checks and `GET /api/v1/limits` are made."""

from __future__ import annotations

from typing import Annotated

from pydantic import BaseModel, ConfigDict, Field

MIB = 1024 * 1024


class Limits(BaseModel):
    """What a request and a row may be at most; the defaults are the contract's."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    body_bytes_max: Annotated[int, Field(ge=1024, le=256 * MIB)] = Field(
        16 * MIB, description="Bytes of a request's body, compressed and decompressed."
    )
    rows_max: Annotated[int, Field(ge=1, le=65_535)] = Field(10_000, description="Rows of a request.")
    row_bytes_max: Annotated[int, Field(ge=1024, le=16 * MIB)] = Field(MIB, description="Bytes of a row's JSON.")
    row_depth_max: Annotated[int, Field(ge=8, le=256)] = Field(64, description="Levels of nesting anywhere in a row.")
    token_chars_max: Annotated[int, Field(ge=1, le=10_000)] = Field(
        250, description="Characters of a token after trimming."
    )
    object_keys_max: Annotated[int, Field(ge=1)] = Field(
        200, description="Keys of a free-form object, at its top level."
    )
    object_levels_max: Annotated[int, Field(ge=1)] = Field(
        5, description="Object levels of a free-form object, itself the first."
    )
    array_entries_max: Annotated[int, Field(ge=1)] = Field(
        250, description="Entries of an array in a free-form object; the rest is cut."
    )
    object_units_max: Annotated[int, Field(ge=1)] = Field(
        1_048_576, description="UTF-16 code units of a free-form object's JSON, which must be shorter."
    )
    age_days_max: Annotated[int, Field(ge=0)] = Field(
        7, description="Days that a row's time may lie back, where its source sets nothing; 0 is without end."
    )
    ahead_seconds_max: Annotated[int, Field(ge=0)] = Field(
        300, description="Seconds that a row's time may lie ahead of the server's clock."
    )
    request_seconds_max: Annotated[int, Field(ge=1, le=3600)] = Field(
        30, description="Seconds within which a request must have arrived."
    )
