"""The gateway's settings."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Annotated

from pydantic import BaseModel, ConfigDict, Field

MIB = 1024 * 1024


class GatewaySettings(BaseModel):
    """Where the gateway listens and how much it takes at once."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    host: str = Field("127.0.0.1", description="Address to listen on.")
    port: Annotated[int, Field(ge=1, le=65_535)] = Field(8080, description="Port to listen on.")
    workers: Annotated[int, Field(ge=1, le=256)] = Field(
        default_factory=lambda: os.cpu_count() or 1,
        description="Worker processes; by default one a core.",
        examples=[2],
    )
    tls_cert: Path | None = Field(
        None, description="File of the certificate chain (PEM); with tls_key: HTTPS.", examples=[""]
    )
    tls_key: Path | None = Field(None, description="File of the certificate's key (PEM).")
    connections_max: Annotated[int, Field(ge=16)] = Field(16_384, description="Open connections a worker.")
    bodies_bytes_max: Annotated[int, Field(ge=MIB)] = Field(
        34 * MIB, description="Bytes of bodies, before and after inflating, that a worker holds at once."
    )
    cors_origins: tuple[Annotated[str, Field(pattern=r"^(\*|https?://[^/\s]+)$")], ...] = Field(
        default=(), description="Origins whose pages may send, as https://example.org; * is every one; empty: none."
    )
