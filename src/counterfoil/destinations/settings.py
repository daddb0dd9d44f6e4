"""The destinations' settings: one model for each kind."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Discriminator, Field, Tag

MIB = 1024 * 1024

STORE_SCHEMES = ("s3", "s3a", "gs", "az", "abfs", "abfss")
"""Of the URLs at which a Delta table may lie."""

DESTINATION_NAME = r"^[a-z0-9][a-z0-9_-]{0,62}$"
WEBHOOK_SECRET = r"^(whsec_)?([A-Za-z0-9+/]{4})+([A-Za-z0-9+/]{2}==|[A-Za-z0-9+/]{3}=)?$"  # noqa: S105


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
    start: Literal["now", "oldest"] = Field(
        "now",
        description="Where a destination begins whose name is new: with the rows settled from now on, "
        "or with the oldest row that is kept.",
    )


class DeltaSettings(DeliverySettings):
    """A Delta Lake table."""

    type: Literal["delta"] = Field("delta", description="What kind of destination it is.")
    path: str = Field(
        "data/lake",
        description="The table's directory, relative to the configuration file; or a prefix in an object store, as "
        "s3://bucket/prefix (also gs://, az://, abfss://).",
    )
    # Not SecretStr: the supervisor hands the settings on to its children as JSON.
    storage_options: dict[str, str] = Field(
        default_factory=dict,
        repr=False,
        description="How the object store is reached, by deltalake's names; the environment's AWS_… (GOOGLE_…, "
        "AZURE_…) add what it leaves out.",
    )
    merge_commits: Annotated[int, Field(ge=2, le=100)] = Field(
        50, description="Commits after which small files are merged and the log is cleaned."
    )
    file_bytes: Annotated[int, Field(ge=MIB)] = Field(
        128 * MIB, description="Bytes of a file above which it is not merged any further."
    )
    keep_hours: Annotated[float, Field(ge=0)] = Field(
        1.0, description="Hours that files and log entries stay after something took their place, for readers."
    )


class PostgresSettings(DeliverySettings):
    """A PostgreSQL table."""

    type: Literal["postgres"] = Field("postgres", description="What kind of destination it is.")
    # Not a SecretStr: the supervisor hands the settings on to its children as JSON.
    dsn: str = Field(
        repr=False,
        description="Connection string, as postgresql://user@host/database; PG… variables add what it leaves out.",
        examples=["postgresql://counterfoil@localhost/events"],
    )
    schema_name: Annotated[str, Field(min_length=1, max_length=63)] = Field(
        "public", description="Schema of the tables; it must be there."
    )
    table: Annotated[str, Field(min_length=1, max_length=50)] = Field(
        "events", description="The table; its cursors lie in a second one, <table>_cursors. Both are made when missing."
    )
    connect_seconds: Annotated[int, Field(ge=1, le=300)] = Field(
        10, description="Seconds after which a connection attempt is given up."
    )


class WebhookSettings(DeliverySettings):
    """An HTTP receiver, by Standard Webhooks."""

    type: Literal["webhook"] = Field("webhook", description="What kind of destination it is.")
    url: Annotated[str, Field(pattern=r"^https?://[^\s/]+")] = Field(
        description="Where rows are posted to.", examples=["https://example.org/events"]
    )
    secret: Annotated[str, Field(pattern=WEBHOOK_SECRET)] = Field(
        repr=False, description="Standard Webhooks secret: whsec_ and the key in base64.", examples=["whsec_…"]
    )
    request_rows: Annotated[int, Field(ge=1, le=10_000)] = Field(
        500, description="Rows a request at most; 1: a request for each row."
    )
    timeout_seconds: Annotated[float, Field(ge=0.1, le=600)] = Field(
        30.0, description="Seconds after which a request without an answer counts as failed."
    )


def is_store_url(path: str) -> bool:
    """Whether the path of a Delta table is a URL and no directory."""
    return "://" in path


def _type_of(settings: object) -> str | None:
    """The `type` of a destination that is still a table of the configuration, or is one of the models already."""
    kind = settings.get("type", "delta") if isinstance(settings, dict) else getattr(settings, "type", None)
    return kind if isinstance(kind, str) else None


DestinationSettings = Annotated[
    Annotated[DeltaSettings, Tag("delta")]
    | Annotated[PostgresSettings, Tag("postgres")]
    | Annotated[WebhookSettings, Tag("webhook")],
    Discriminator(_type_of),
]
"""Any of them, told apart by `type`; without one it is a Delta Lake table."""
