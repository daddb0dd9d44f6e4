"""`counterfoil serve`, `gateway` and `pipeline`: the server, whole or by halves."""

from __future__ import annotations

import typer

from counterfoil.cli.options import ConfigOption


def serve(config: ConfigOption = None) -> None:
    """Run the server: gateway workers, pipeline and console, until SIGTERM or Ctrl-C.

    Prints where it listens. Logs go to standard error: one JSON object a line, readable on a terminal.
    """
    from counterfoil import supervisor
    from counterfoil.config import load_settings

    raise typer.Exit(supervisor.serve(load_settings(config)))


def gateway(config: ConfigOption = None) -> None:
    """Run the gateway workers alone: rows are taken and made durable.

    `counterfoil pipeline` settles and delivers them, now or later.
    """
    from counterfoil import supervisor
    from counterfoil.config import load_settings

    raise typer.Exit(supervisor.run_gateway(load_settings(config)))


def pipeline(config: ConfigOption = None) -> None:
    """Run the pipeline and the console alone: what is durable is settled and delivered."""
    from counterfoil import supervisor
    from counterfoil.config import load_settings

    raise typer.Exit(supervisor.run_pipeline(load_settings(config)))
