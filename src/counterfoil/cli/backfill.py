"""`counterfoil backfill FILE… --to URL`: files of history in, every row accounted for."""

from __future__ import annotations

import asyncio
import signal
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

from counterfoil.cli import DONE, NO
from counterfoil.cli.options import JsonOption
from counterfoil.cli.printing import print_json, print_line, print_table

if TYPE_CHECKING:
    from counterfoil.backfill import DryRun, Mapping, Report
    from counterfoil.backfill.job import Status, Tally
    from counterfoil.backfill.reading import Format

INTERRUPTED = 128 + signal.SIGINT
_PLAIN_SECONDS = 5.0
_CELL_CHARS_MAX = 100


def backfill(
    files: Annotated[
        list[str] | None, typer.Argument(metavar="FILE…", help="Paths, patterns, addresses (s3://…), or - for stdin.")
    ] = None,
    to: Annotated[str, typer.Option(metavar="URL", help="Base URL of the server, with or without /api/v1.")] = "",
    token_file: Annotated[Path | None, typer.Option(metavar="FILE", help="Holds the token of the source.")] = None,
    mapping: Annotated[Path | None, typer.Option(metavar="FILE", help="How columns become rows (TOML).")] = None,
    file_format: Annotated[
        Literal["ndjson", "json", "csv", "tsv", "parquet", "arrow"] | None,
        typer.Option("--format", help="What the files are, where their names do not tell."),
    ] = None,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Judge here what would be sent; send nothing.")] = False,
    sample: Annotated[str, typer.Option(metavar="N", help="Records that a dry run judges: a number, or all.")] = "1000",
    job: Annotated[
        str | None, typer.Option(metavar="NAME", help="The job, whose journal is NAME.backfill; else beside FILE.")
    ] = None,
    status: Annotated[
        str | None, typer.Option(metavar="JOB", help="Say how far a job is: its name, journal or file.")
    ] = None,
    report: Annotated[Path | None, typer.Option(metavar="FILE", help="Write the summary there as JSON.")] = None,
    batch_rows: Annotated[
        int, typer.Option(min=1, metavar="N", help="Rows a request, within the server's limit.")
    ] = 1000,
    in_flight: Annotated[int, typer.Option(min=1, max=64, metavar="N", help="Requests under way at most.")] = 8,
    patience: Annotated[
        float, typer.Option(min=0, metavar="SECONDS", help="How long a server may take nothing before we stop.")
    ] = 900,
    as_json: JsonOption = False,
) -> None:
    """Send files of history through /batch: resumable, every record accepted, or rejected with its reason.

    What is rejected stands in FILE.rejected.ndjson with its line, code, message and original: mend it there and
    backfill that file. Exit status: 0 every record is in, 1 some were rejected or the job stopped, 2 used wrongly.
    """
    from counterfoil.backfill import BackfillError, Stopped, job_status, load_mapping
    from counterfoil.backfill import backfill as send

    if status is not None:
        _print_status(job_status(_journal(status)), as_json)
        return
    if not files:
        raise typer.BadParameter("name a file, or --status JOB")
    chosen = load_mapping(mapping) if mapping is not None else None
    if dry_run:
        _dry_run(files, to, chosen, file_format, sample, as_json)
        return
    if not to or token_file is None:
        raise typer.BadParameter("--to and --token-file are needed; --dry-run needs neither")
    if report is not None and (report.is_dir() or not report.parent.is_dir()):
        raise typer.BadParameter(f"{report}: expected a file in a directory that is there")
    stopped: BackfillError | None = None
    with _progress(files, file_format, as_json) as observe:
        try:
            done = asyncio.run(
                send(
                    files,
                    to=_base_url(to),
                    token=_token(token_file),
                    mapping=chosen,
                    job=_journal(job) if job is not None else None,
                    format_name=file_format,
                    batch_rows=batch_rows,
                    in_flight_max=in_flight,
                    patience_seconds=patience,
                    observe=observe,
                )
            )
        except Stopped as error:
            stopped, done = error, error.report
        except KeyboardInterrupt:
            sys.stderr.write("counterfoil: interrupted; the same command goes on with what is not confirmed\n")
            raise typer.Exit(INTERRUPTED) from None
    _print_report(done, as_json)
    if report is not None:
        import msgspec

        from counterfoil.backfill.errors import writing

        with writing(report):
            report.write_bytes(msgspec.json.format(msgspec.json.encode(done)) + b"\n")
    if stopped is not None:
        raise stopped
    raise typer.Exit(NO if done.rejected else DONE)


def _base_url(url: str) -> str:
    return url.rstrip("/") if url.rstrip("/").endswith("/api/v1") else url.rstrip("/") + "/api/v1"


def _token(file: Path) -> str:
    try:
        token = file.read_text(encoding="utf-8").strip()
    except (OSError, UnicodeDecodeError) as error:
        raise typer.BadParameter(f"{file}: can't be read ({type(error).__name__})") from None
    if not token:
        raise typer.BadParameter(f"{file}: expected a token, found nothing")
    return token


def _journal(name: str) -> Path:
    """The journal of a job by its name, by its own path, or by the file it sends."""
    from counterfoil.backfill.job import JOURNAL_SUFFIX

    return Path(name if name.endswith(JOURNAL_SUFFIX) else name + JOURNAL_SUFFIX)


def _dry_run(
    files: list[str], to: str, mapping: Mapping | None, file_format: Format | None, sample: str, as_json: bool
) -> None:
    from counterfoil.backfill import dry_run
    from counterfoil.backfill.dryrun import server_limits

    if sample != "all" and not sample.isdecimal():
        raise typer.BadParameter("--sample takes a number, or all")
    found = dry_run(
        files,
        mapping=mapping,
        format_name=file_format,
        records_max=None if sample == "all" else int(sample),
        limits=asyncio.run(server_limits(_base_url(to))) if to else None,
    )
    if as_json:
        print_json(found)
    else:
        _print_dry_run(found)
    raise typer.Exit(NO if found.faults or found.older_than_window else DONE)


def _print_dry_run(found: DryRun) -> None:
    columns = list(dict.fromkeys(name for row in found.rows for name in row))
    print_table(columns, [[_cell(row.get(name)) for name in columns] for row in found.rows], "As it would be sent")
    print_line()
    if found.faults:
        rows = [
            (fault.count, ", ".join(f"{Path(path).name}:{line}" for path, line in fault.places), fault.message)
            for fault in found.faults
        ]
        print_table(["records", "first at", "what is wrong"], rows)
        print_line()
    reminder = found.window_reminder()
    if reminder:
        print_line(reminder)
    scope = "all records" if found.is_whole else "a sample; --sample all judges every record"
    print_line(
        f"{found.read:,} records judged ({scope}): {found.good:,} good, {found.read - found.good:,} not. None was sent."
    )


def _cell(value: Any) -> str:
    import msgspec

    text = value if isinstance(value, str) else "" if value is None else msgspec.json.encode(value).decode()
    return text if len(text) <= _CELL_CHARS_MAX else text[: _CELL_CHARS_MAX - 1] + "…"


def _print_report(report: Report, as_json: bool) -> None:
    if as_json:
        print_json(report)
        return
    rate = (report.accepted + report.rejected) / report.seconds if report.seconds else 0
    print_line(
        f"read {report.read:,} = accepted {report.accepted:,} + rejected {report.rejected:,} + "
        f"skipped {report.skipped:,} (confirmed by an earlier run)"
        + (f" + unanswered {report.unanswered:,} (the same command goes on with them)" if report.unanswered else "")
    )
    print_line(
        f"{report.repeated:,} rows sent again, {report.retries:,} retries, {report.seconds:.1f} s, {rate:,.0f} rows/s"
    )
    for path in report.rejected_files:
        print_line(f"rejected: {path} (mend the originals there, then backfill that file)")


def _print_status(status: Status, as_json: bool) -> None:
    if as_json:
        print_json(status)
        return
    rate = "" if status.rows_per_second is None else f"{status.rows_per_second:,.0f}"
    print_table(
        ["read", "accepted", "repeated", "rejected", "remaining", "rows/s", "done"],
        [(status.read, status.accepted, status.repeated, status.rejected, status.remaining, rate, status.is_complete)],
        f"{', '.join(status.files)} to {status.to}",
    )


@contextmanager
def _progress(files: list[str], file_format: Format | None, as_json: bool) -> Iterator[Callable[[Tally], None]]:
    """A bar for people; where nobody reads along, a line now and then."""
    if as_json or not sys.stderr.isatty():
        yield _plain_lines()
        return
    from rich.console import Console
    from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn

    columns = (
        BarColumn(),
        TextColumn("{task.fields[rate]} rows/s"),
        TextColumn("{task.fields[accepted]} accepted"),
        TextColumn("{task.fields[rejected]} rejected"),
        TextColumn("{task.fields[retries]} retries"),
        TimeRemainingColumn(),
    )
    began = time.monotonic()
    with Progress(*columns, console=Console(stderr=True)) as bar:
        task = bar.add_task(
            "", total=_total_bytes(files, file_format), rate="0", accepted="0", rejected="0", retries="0"
        )

        def observe(tally: Tally) -> None:
            rate = (tally.accepted + tally.rejected) / max(time.monotonic() - began, 0.001)
            bar.update(
                task,
                completed=tally.read_bytes,
                rate=f"{rate:,.0f}",
                accepted=f"{tally.accepted:,}",
                rejected=f"{tally.rejected:,}",
                retries=f"{tally.retries:,}",
            )

        yield observe


def _plain_lines() -> Callable[[Tally], None]:
    last = began = time.monotonic()

    def observe(tally: Tally) -> None:
        nonlocal last
        now = time.monotonic()
        if now - last >= _PLAIN_SECONDS:
            last = now
            rate = (tally.accepted + tally.rejected) / (now - began)
            sys.stderr.write(
                f"read {tally.read} accepted {tally.accepted} rejected {tally.rejected} skipped {tally.skipped} "
                f"retries {tally.retries} rate {rate:.0f}/s\n"
            )

    return observe


def _total_bytes(files: list[str], file_format: Format | None) -> int | None:
    """The bytes of all files where they are as long as their records: then the bar has an end."""
    from counterfoil.backfill.reading import compression_of, find_inputs

    inputs = find_inputs(files, file_format)
    plain = all(one.format == "ndjson" and one.is_seekable and compression_of(one.path) is None for one in inputs)
    return sum(one.size_bytes for one in inputs) if plain else None
