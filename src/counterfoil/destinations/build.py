"""From settings to destinations: the one place that knows every kind.

A kind is loaded when there is one of it: a pipeline that writes a table needs no database's client, and starts sooner.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from uuid import UUID

from counterfoil.destinations.interface import Destination
from counterfoil.destinations.settings import DeltaSettings, DestinationSettings, PostgresSettings, WebhookSettings
from counterfoil.files import Files


def build_destination(
    settings: DestinationSettings,
    *,
    ledger_id: UUID,
    base: Path,
    files: Files,
    quarantine: Path,
    clock_ms: Callable[[], int],
) -> Destination:
    """The destination that a configuration names, not opened yet; its paths are relative to `base`."""
    match settings:
        case DeltaSettings():
            from counterfoil.destinations.delta import DeltaDestination
            from counterfoil.destinations.delta_address import table_address

            return DeltaDestination(
                settings,
                address=table_address(settings, base),
                ledger_id=ledger_id,
                files=files,
                quarantine=quarantine,
                clock_ms=clock_ms,
            )
        case PostgresSettings():
            from counterfoil.destinations.postgres import PostgresDestination

            return PostgresDestination(settings, ledger_id)
        case WebhookSettings():
            from counterfoil.destinations.webhook import WebhookDestination

            return WebhookDestination(settings, ledger_id, clock_ms)
