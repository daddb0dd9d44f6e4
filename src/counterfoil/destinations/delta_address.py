"""Where a Delta table lies: a directory of this machine, or a prefix in an object store.

An object store is named by its URL, and reached by what deltalake makes of `storage_options` and the environment (its
own names: `AWS_…`, `GOOGLE_…`, `AZURE_…`). Some of those options are secrets: an address shows nothing of them.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path

from deltalake import DeltaTable

from counterfoil.destinations.settings import DeltaSettings, is_store_url

_WAITS = {"max_retries": "3", "retry_timeout": "30s", "connect_timeout": "10s", "timeout": "60s"}
"""Unless the operator says otherwise: deltalake's own would hold on to a dead store for minutes."""

_UNSAFE_RENAME = "aws_s3_allow_unsafe_rename"
_CONDITIONAL_PUT = "aws_conditional_put"


class TableAddress:
    """Where a table lies, and how it is reached."""

    def __init__(self, path: Path | None, url: str, storage_options: Mapping[str, str] | None = None) -> None:
        """A directory of this machine, or with no `path` a prefix in an object store."""
        self.path = path
        self.uri = url if path is None else path.absolute().as_uri()
        self._shown = url if path is None else str(path)
        self.storage_options: dict[str, str] | None = None
        if path is None:
            given = dict(storage_options or {})
            named = {name.lower() for name in given}
            self.storage_options = {**{name: text for name, text in _WAITS.items() if name not in named}, **given}

    def __str__(self) -> str:
        return self._shown

    def load(self) -> DeltaTable:
        """The table as it is now; raises what deltalake raises."""
        return DeltaTable(self.uri, storage_options=self.storage_options)

    def faults(self) -> list[str]:
        """Why no table can lie there whatever is there, one line each."""
        if self.path is not None:
            # deltalake 1.6 takes it for an escape twice over, and then looks in another directory than it writes to.
            return (
                [f"{self}: a path with % in it can't be used: give the destination another"] if "%" in str(self) else []
            )
        options = {name.lower(): text.lower() for name, text in (*os.environ.items(), *self._given())}
        if options.get(_UNSAFE_RENAME) in ("true", "1") or options.get(_CONDITIONAL_PUT) == "disabled":
            return [
                f"{self}: commits without a conditional put can overwrite one another: "
                f"leave {_UNSAFE_RENAME} out, and {_CONDITIONAL_PUT} as it is"
            ]
        return []

    def _given(self) -> list[tuple[str, str]]:
        return list((self.storage_options or {}).items())


def table_address(settings: DeltaSettings, base: Path) -> TableAddress:
    """Where the table of a destination lies; a path is relative to `base`."""
    if is_store_url(settings.path):
        return TableAddress(None, settings.path.rstrip("/"), settings.storage_options)
    return TableAddress(base / settings.path, "")
