"""The console's settings."""

from __future__ import annotations

from ipaddress import ip_address
from typing import Annotated

from pydantic import BaseModel, ConfigDict, Field


class ConsoleSettings(BaseModel):
    """Where the operator's port listens, and who may read there."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    host: str = Field(
        "127.0.0.1", description="Address to listen on; beyond loopback only with a password (password_sha256)."
    )
    port: Annotated[int, Field(ge=1, le=65_535)] = Field(8081, description="Port to listen on.")
    password_sha256: Annotated[str, Field(pattern=r"^([0-9a-f]{64})?$")] = Field(
        "", description="SHA-256 of the password in hex, as `counterfoil password` makes one; empty: none is asked for."
    )


def is_loopback(host: str) -> bool:
    """Whether nobody but this machine reaches a host; of a name other than localhost nobody knows before it is used."""
    try:
        return ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"
