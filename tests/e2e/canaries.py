"""Values of a sender's that must be seen nowhere but where rows lie, and the search for them (promise P6).

Whatever a campaign sends with `CANARY` or `CANARY_NUMBER` in it is found again by `find_canaries` in what the server
says: its log, its metrics, its pages, its answers, its commands, and the files beside the rows.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from pathlib import Path

import httpx

from tests.e2e.server import TEST_TOKEN, TOKEN, Server

CANARY = "zq7canary"
CANARY_NUMBER = 743091175
CONTEXT_CHARS = 60
_SOUGHT = re.compile("|".join((CANARY, str(CANARY_NUMBER), re.escape(TOKEN), re.escape(TEST_TOKEN))), re.IGNORECASE)

ROW_FILES = (
    "queue/*/*.seg", "lake/**/*.parquet", "ledger/*.sst", "ledger/*.log",
    "quarantine/*.bytes", "quarantine/ledger-*/*.sst", "quarantine/ledger-*/*.log",
)  # fmt: skip
"""Where rows, and keys made of them, may lie."""


def find_canaries(texts: Mapping[str, str]) -> list[str]:
    """Each text in which a canary or a token stands, by its name, with what stands around it."""
    return [
        f"{name}: …{text[max(0, found.start() - CONTEXT_CHARS) : found.end() + CONTEXT_CHARS]!r}"
        for name, text in texts.items()
        if (found := _SOUGHT.search(text)) is not None
    ]


def what_a_server_says(server: Server) -> dict[str, str]:
    """All that a running server shows of itself to operators, by where it stands."""
    said = {"log": server.log_path.read_text(), "audit": server.run("audit", "--json")}
    for path in ("/", "/api/status", "/metrics", "/readyz"):
        said[f"console {path}"] = httpx.get(
            f"http://127.0.0.1:{server.console_port}{path}", trust_env=False, timeout=60
        ).text
    for pid in server.pids():
        for kind in ("cmdline", "environ"):
            said[f"process {pid} {kind}"] = Path(f"/proc/{pid}/{kind}").read_bytes().decode(errors="replace")
    return said | dict(files_beside_rows(server.directory / "data"))


def files_beside_rows(data_dir: Path) -> Iterator[tuple[str, str]]:
    """The content of each file that should hold no row: notes, logs of libraries, metrics, cursors, the table's log.

    Of the table's log the statistics of columns are left out: smallest and largest values are part of the table.
    """
    of_rows = {path for pattern in ROW_FILES for path in data_dir.glob(pattern)}
    for path in sorted(data_dir.rglob("*")):
        if path.is_file() and path not in of_rows and "_delta_log" not in path.parts:
            yield str(path.relative_to(data_dir)), path.read_bytes().decode(errors="replace")
