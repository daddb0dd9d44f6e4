"""Senders: what is known of a source, and which source a token belongs to."""

from __future__ import annotations

from typing import Annotated

from pydantic import BaseModel, ConfigDict, Field

SOURCE_NAME = r"^[a-z0-9][a-z0-9_-]{0,62}$"
Sha256Hex = Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")]


class AllowedEvent(BaseModel):
    """An entry of an allowlist (contract.md section 9)."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    event: Annotated[str, Field(min_length=1, max_length=1000)] = Field(description="The event's name.")
    destinations: tuple[str, ...] | None = Field(
        None, description="Destinations it is for; absent: all of them; empty: none."
    )


class SourceSettings(BaseModel):
    """A sender of events."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    name: Annotated[str, Field(pattern=SOURCE_NAME)] = Field(
        description="The source's name, which is its identity: lower-case letters, digits, - and _."
    )
    token_sha256: tuple[Sha256Hex, ...] = Field(
        default=(), description="SHA-256 of each token that is valid, in hex; more than one while one is rotated."
    )
    test_token_sha256: tuple[Sha256Hex, ...] = Field(
        default=(), description="The same of tokens whose rows are kept and never delivered."
    )
    max_age_days: Annotated[int, Field(ge=0)] | None = Field(
        None, description="Days that a row's time may lie back; 0 is without end; absent: limits.age_days_max."
    )
    allowed_events: tuple[str | AllowedEvent, ...] | None = Field(
        None, description="Events that are delivered; absent: every event, everywhere."
    )
    rows_per_second_max: Annotated[int, Field(ge=0)] = Field(0, description="Rows a second; 0 is without limit.")
