"""`counterfoil selftest`: whether rows get lost on this disk and machine, tried."""

from __future__ import annotations

import contextlib
import secrets
import shutil
import signal
import sys
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Annotated, NoReturn

import typer

from counterfoil.cli import DONE, NO, WRONG, complain
from counterfoil.cli.options import JsonOption
from counterfoil.cli.printing import print_json, print_line

FREE_BYTES_MIN = 1 << 30
REAL_DIRECTORY = "counterfoil-selftest-power-loss"
TO_STANDARD_OUTPUT = "-"


def selftest(
    data_dir: Annotated[
        Path, typer.Option("--data-dir", metavar="D", help="A directory on the disk to be tested.", show_default="here")
    ] = Path(),
    minutes: Annotated[float, typer.Option(min=0.0, metavar="N", help="How long to try, about.")] = 2.0,
    power_loss: Annotated[
        bool, typer.Option("--power-loss", help="Also cut the power: simulated, on a disk in memory (needs FUSE).")
    ] = False,
    real: Annotated[
        bool, typer.Option("--real", help="With --power-loss: send rows until you cut the machine's power.")
    ] = False,
    resume: Annotated[
        bool, typer.Option("--resume", help="With --power-loss: judge by the journal after a real cut.")
    ] = False,
    journal: Annotated[
        Path | None,
        typer.Option(
            metavar="FILE", help="Of --real and --resume: on another disk or machine; - is standard output or input."
        ),
    ] = None,
    seed: Annotated[int | None, typer.Option(help="What chance decides, to be repeated.", show_default=False)] = None,
    as_json: JsonOption = False,
) -> None:
    """Try to lose rows on this disk and machine.

    A server of its own, in a directory of its own below D, takes rows while its processes are killed and frozen at
    random times; a checker that knows nothing of the server's inside judges what became of each row. It also measures
    how long a flush takes, and says whether this disk is likely to keep what was flushed. Exit status: 0 nothing was
    lost, 1 something was, or the disk flushes nothing, 2 it could not be tried.
    """
    if (real or resume) != (journal is not None) or (real and resume) or ((real or resume) and not power_loss):
        _refuse("--real or --resume goes with --power-loss and --journal FILE")
    if not data_dir.is_dir():
        _refuse(f"{data_dir}: expected a directory")
    free_bytes = shutil.disk_usage(data_dir).free
    if free_bytes < FREE_BYTES_MIN:
        _refuse(f"{data_dir}: expected 1 GiB of free space, found {free_bytes / FREE_BYTES_MIN:.1f}")
    with _unwound_by_sigterm():
        if journal is not None and real:
            _send_until_the_end(data_dir / REAL_DIRECTORY, journal)
        elif journal is not None:
            _judge_afterwards(data_dir / REAL_DIRECTORY, journal, as_json)
        else:
            _try(data_dir, minutes * 60, secrets.randbits(32) if seed is None else seed, power_loss, as_json)


@contextlib.contextmanager
def _unwound_by_sigterm() -> Iterator[None]:
    """Inside, SIGTERM ends what was started here as well, as Ctrl-C does."""
    before = signal.signal(signal.SIGTERM, lambda *_: sys.exit(NO))
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


def _try(data_dir: Path, seconds: float, seed: int, with_power_cuts: bool, as_json: bool) -> NoReturn:
    from counterfoil.selftest import disk
    from counterfoil.selftest.report import SelftestReport
    from counterfoil.selftest.trials import try_kills, try_power_cuts

    try:
        directory = Path(tempfile.mkdtemp(prefix="counterfoil-selftest-", dir=data_dir))
        examined = disk.examine(directory)
    except OSError as error:
        _refuse(f"{data_dir}: can't be written: {error.strerror}")
    if with_power_cuts:
        seconds /= 2
    _say(f"seed {seed}; {seconds:.0f} s of kills in {directory}")
    kills = try_kills(directory, seed, seconds, _saying("kills"))
    cuts = try_power_cuts(directory, seed, seconds, _saying("power cuts")) if with_power_cuts else None
    report = SelftestReport(str(data_dir), examined, kills, cuts)
    if kills.is_good and (cuts is None or cuts.is_good):
        shutil.rmtree(directory)
    else:
        _say(f"{directory} stays, for whoever looks into it")
    if as_json:
        print_json(report.document())
    else:
        for line in report.lines():
            print_line(line)
    raise typer.Exit(DONE if report.is_good else NO)


def _send_until_the_end(directory: Path, journal: Path) -> NoReturn:
    from counterfoil.selftest.plug import file_recorder, send_until_the_end
    from counterfoil.selftest.server import ServerFailed

    if directory.exists():
        _refuse(f"{directory}: is there already: judge it with --resume, or remove it")
    try:
        directory.mkdir(mode=0o700)
        record = _print_at_once if str(journal) == TO_STANDARD_OUTPUT else file_recorder(journal)
    except OSError as error:
        _refuse(f"{error.filename}: can't be written: {error.strerror}")
    if str(journal) != TO_STANDARD_OUTPUT and journal.stat().st_dev == directory.stat().st_dev:
        _say("the journal lies on the disk that is tested: one that flushes nothing may lose rows and journal together")
    _say("rows are being sent; cut the power now: the plug, not `reboot`")
    _say(f"afterwards: counterfoil selftest --power-loss --resume --data-dir {directory.parent} --journal FILE")
    try:
        send_until_the_end(directory, record, lambda: True)
    except ServerFailed as failure:
        complain(failure)
    except OSError as error:
        # An answer that can't be written down proves nothing, so the clients have ended.
        complain(OSError(f"the journal can't be written: {error.strerror}"))
    except KeyboardInterrupt:
        _say("ended without a cut; --resume judges it all the same")
    raise typer.Exit(NO)


def _judge_afterwards(directory: Path, journal: Path, as_json: bool) -> NoReturn:
    from counterfoil.selftest.journal import JournalUnreadable
    from counterfoil.selftest.plug import judge_afterwards
    from counterfoil.selftest.server import ServerFailed

    if not directory.is_dir():
        _refuse(f"{directory}: not there: --real begins the test")
    try:
        data = sys.stdin.buffer.read() if str(journal) == TO_STANDARD_OUTPUT else journal.read_bytes()
        told = judge_afterwards(directory, data)
    except JournalUnreadable as error:
        _refuse(str(error))
    except OSError as error:
        _refuse(f"{error.filename}: can't be read: {error.strerror}")
    except ServerFailed as failure:
        complain(failure)
        raise typer.Exit(NO) from None
    if as_json:
        print_json({"is_good": told.is_clean, "judgement": told})
    else:
        for line in told.lines():
            print_line(line)
        print_line("Nothing was lost." if told.is_clean else "NOT GOOD: see above.")
    if told.is_clean:
        shutil.rmtree(directory)
    else:
        _say(f"{directory} stays, for whoever looks into it")
    raise typer.Exit(DONE if told.is_clean else NO)


def _print_at_once(line: str) -> None:
    sys.stdout.write(line)
    sys.stdout.flush()


def _saying(what: str) -> Callable[[str], None]:
    return lambda text: _say(f"{what}: {text}")


def _say(text: str) -> None:
    """For whoever watches; the report alone goes to standard output."""
    sys.stderr.write(f"selftest: {text}\n")
    sys.stderr.flush()


def _refuse(why: str) -> NoReturn:
    complain(ValueError(why))
    raise typer.Exit(WRONG)
