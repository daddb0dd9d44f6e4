"""`counterfoil serve`, `gateway` and `pipeline`: the server, whole or by halves."""

from __future__ import annotations

from functools import partial

import typer

from counterfoil.cli.options import ConfigOption


def serve(config: ConfigOption = None) -> None:
    """Run the server until SIGTERM or Ctrl-C.

    That is the gateway workers, the pipeline and the console. Prints where it listens. Logs go to standard error: one
    JSON object a line, readable on a terminal.
    """
    from counterfoil import supervisor
    from counterfoil.config import load_settings

    raise typer.Exit(supervisor.serve(partial(load_settings, config)))


def gateway(config: ConfigOption = None) -> None:
    """Run the gateway workers alone.

    Rows are taken and made durable; `counterfoil pipeline` settles and delivers them, now or later.
    """
    from counterfoil import supervisor
    from counterfoil.config import load_settings

    raise typer.Exit(supervisor.run_gateway(partial(load_settings, config)))


def pipeline(config: ConfigOption = None) -> None:
    """Run the pipeline and the console alone.

    What is durable is settled and delivered, whether a gateway runs or not.
    """
    from counterfoil import supervisor
    from counterfoil.config import load_settings

    raise typer.Exit(supervisor.run_pipeline(partial(load_settings, config)))
