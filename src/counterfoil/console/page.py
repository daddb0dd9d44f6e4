"""The operator's page: the state of the server as tables, in one answer without anything to load beside it."""

from __future__ import annotations

import base64
import hashlib
from collections.abc import Iterable, Sequence
from datetime import UTC, datetime
from html import escape

from counterfoil.children import HELD, ChildState
from counterfoil.console.disk import DiskFacts
from counterfoil.console.status import DestinationStatus, Status

REFRESH_MS = 2000
LATE_SECONDS = 300
"""A row that waits longer for a destination is bad news."""

STYLE = """
:root { color-scheme: light dark; --line: color-mix(in srgb, currentColor 18%, transparent); }
body { font: 15px/1.5 system-ui, sans-serif; margin: 2rem auto; max-width: 62rem; padding: 0 1rem; }
header { display: flex; align-items: baseline; gap: 1rem; flex-wrap: wrap; }
h1 { font-size: 1.4rem; margin: 0; }
h2 { font-size: 1rem; margin: 2rem 0 .4rem; }
table { border-collapse: collapse; width: 100%; font-variant-numeric: tabular-nums; }
th, td { padding: .3rem .6rem; border-bottom: 1px solid var(--line); text-align: left; }
th { font-weight: 600; opacity: .7; font-size: .85rem; }
.number { text-align: right; }
.good { color: light-dark(#14713d, #5fd68f); }
.bad { color: light-dark(#b3261e, #ff8a80); font-weight: 600; }
.quiet { opacity: .65; font-size: .85rem; }
.lost header::after { content: "no answer; the state below is old"; color: light-dark(#b3261e, #ff8a80); }
"""

SCRIPT = f"""
setInterval(async () => {{
  try {{
    const answer = await fetch(location.href);
    const page = new DOMParser().parseFromString(await answer.text(), "text/html");
    document.querySelector("main").replaceWith(page.querySelector("main"));
    document.body.classList.remove("lost");
  }} catch {{
    document.body.classList.add("lost");
  }}
}}, {REFRESH_MS});
"""


def _digest(text: str) -> str:
    return "'sha256-" + base64.b64encode(hashlib.sha256(text.encode()).digest()).decode() + "'"


CONTENT_SECURITY_POLICY = (
    f"default-src 'none'; style-src {_digest(STYLE)}; script-src {_digest(SCRIPT)}; connect-src 'self'; "
    "base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
)


def status_page(status: Status) -> str:
    """The page as HTML; it fetches itself again every REFRESH_MS."""
    return f"""<!doctype html>
<html lang="en">
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>Counterfoil</title>
<style>{STYLE}</style>
<body>
<header><h1>Counterfoil</h1></header>
<main>
{_main(status)}
</main>
<script>{SCRIPT}</script>
</body>
</html>
"""


def _main(status: Status) -> str:
    parts = [_head(status)]
    if status.ledger is not None:
        parts.append(f'<p class="bad">The counts are missing: {escape(status.ledger)}</p>')
    for process in status.processes:
        if process.state is ChildState.HELD:
            parts.append(f'<p class="bad">{escape(process.name)} is held: {escape(process.conditions[HELD])}</p>')
    parts.append(
        _table(
            "Sources",
            ("Source", "Accepted", "New", "Duplicate", "Conflict", "Blocked", "Test"),
            [(s.name, s.accepted, s.new, s.duplicate, s.conflict, s.blocked, s.test) for s in status.sources],
            "No row has been settled yet.",
        )
    )
    parts.append(
        _table(
            "Destinations",
            ("Destination", "State", "Routed", "Delivered", "Pending", "Oldest", "Dead", "Skipped", "Erased", "Cursor"),
            [_destination(destination) for destination in status.destinations],
            "There is no destination; rows are kept in the queue.",
        )
    )
    parts.append(
        _table(
            "Writers",
            ("Writer", "Directory", "Durable up to", "Settled up to"),
            [(f"queue/{w.number}", w.directory, w.written, w.settled or "nothing") for w in status.writers],
            "No gateway worker has written yet.",
        )
    )
    if status.disk is not None:
        parts.append(_disk(status.disk))
    parts.append(
        _table(
            "Processes",
            ("Process", "State", "Since", "Process id", "Starts", "Last end"),
            [
                (
                    p.name,
                    _Flag(p.state, p.state == "ready"),
                    _clock(p.since_ms),
                    str(p.pid or ""),
                    p.start_count,
                    p.last_end or "",
                )
                for p in status.processes
            ],
            "No supervisor watches this console.",
        )
    )
    return "\n".join(parts)


def _destination(d: DestinationStatus) -> tuple[str | int, ...]:
    return (
        d.name,
        _Flag(d.state, d.state == "running"),
        d.routed,
        d.delivered,
        d.pending,
        _Flag(_age(d.oldest_pending_seconds), d.oldest_pending_seconds < LATE_SECONDS) if d.pending else "",
        _Bad(d.dead) if d.dead else 0,
        _Bad(d.skipped) if d.skipped else 0,
        d.erased,
        d.cursor,
    )


def _disk(disk: DiskFacts) -> str:
    is_good = disk.free_bytes >= 2 * disk.reserve_bytes
    return _table(
        "Disk",
        ("Free", "Of", "Reserve", *(name.capitalize() for name in disk.used_bytes)),
        [
            (
                _Flag(_size(disk.free_bytes), is_good),
                _size(disk.total_bytes),
                _size(disk.reserve_bytes),
                *map(_size, disk.used_bytes.values()),
            )
        ],
        "",
    )


class _Bad(int):
    """A number that is bad news."""


class _Flag(str):
    """A text that is good or bad news."""

    is_good: bool

    def __new__(cls, text: str, is_good: bool) -> _Flag:
        made = super().__new__(cls, text)
        made.is_good = is_good
        return made


def _head(status: Status) -> str:
    if status.not_ready is None:
        news = '<b class="good">Ready: rows can be taken now.</b>'
    else:
        news = f'<b class="bad">Not ready: {escape(status.not_ready)}</b>'
    damage = f' <span class="bad">{status.damaged_frames:,} damaged frames.</span>' if status.damaged_frames else ""
    return (
        f"<p>{news}{damage}</p>\n"
        f'<p class="quiet">Version {escape(status.version)}; last group {status.last_group:,}, '
        f"kept from {status.oldest_group:,}{_since(status.oldest_kept_ms)} on; {_clock(status.at_ms)} UTC</p>"
    )


def _table(title: str, heads: Sequence[str], rows: Iterable[Sequence[str | int]], nothing: str) -> str:
    body = "".join(f"<tr>{''.join(map(_cell, row))}</tr>\n" for row in rows)
    if not body:
        return f'<h2>{title}</h2>\n<p class="quiet">{nothing}</p>'
    first = next(iter(rows))
    head = "".join(
        f'<th scope="col"{_number_class(value)}>{name}</th>' for name, value in zip(heads, first, strict=True)
    )
    return f"<h2>{title}</h2>\n<table>\n<thead><tr>{head}</tr></thead>\n<tbody>\n{body}</tbody>\n</table>"


def _cell(value: str | int) -> str:
    if isinstance(value, int):
        return f'<td class="number{" bad" if isinstance(value, _Bad) else ""}">{value:,}</td>'
    if isinstance(value, _Flag):
        return f'<td class="{"good" if value.is_good else "bad"}">{escape(value)}</td>'
    return f"<td>{escape(value)}</td>"


def _number_class(value: str | int) -> str:
    return ' class="number"' if isinstance(value, int) else ""


def _since(at_ms: int | None) -> str:
    return "" if at_ms is None else f" ({_clock(at_ms)})"


def _age(seconds: float) -> str:
    """About how long: 12 s, 3 min, 5 h, 2 d."""
    for unit, length in (("d", 86_400), ("h", 3_600), ("min", 60)):
        if seconds >= 2 * length:
            return f"{seconds / length:,.0f} {unit}"
    return f"{seconds:,.0f} s"


def _size(count: int) -> str:
    """Bytes as 12.3 GiB, 4.5 MiB or 67 KiB."""
    for unit, length in (("GiB", 2**30), ("MiB", 2**20)):
        if count >= length:
            return f"{count / length:,.1f} {unit}"
    return f"{count / 2**10:,.0f} KiB"


def _clock(at_ms: int) -> str:
    return datetime.fromtimestamp(at_ms / 1000, UTC).strftime("%Y-%m-%d %H:%M:%S")
