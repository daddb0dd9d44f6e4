"""The command line: one module a command; it parses, calls and prints.

Exit status: 0 done, 1 the answer is no (or it can't be done now), 2 used wrongly or configured wrongly. What goes wrong
is one line on standard error. Facts go to standard output, with `--json` as one JSON document.

A module imports at its top what parsing needs and no more, so that `counterfoil --help` is there at once: the ledger,
the tables and the server are loaded by the command that uses them.
"""

from __future__ import annotations

import sys

DONE, NO, WRONG = 0, 1, 2


def main() -> None:
    """Run the command line, and end the process with its status."""
    from counterfoil.cli.application import make_application
    from counterfoil.errors import CounterfoilError, SettingsInvalid

    try:
        make_application()()
    except SettingsInvalid as error:
        complain(error)
        sys.exit(WRONG)
    except CounterfoilError as error:
        complain(error)
        sys.exit(NO)
    except OSError as error:
        # A file that this user may not read, a disk that fails; by its name, and nothing of its content.
        complain(OSError(f"{error.filename}: {error.strerror}" if error.filename else error.strerror or str(error)))
        sys.exit(NO)


def complain(error: Exception) -> None:
    """Say what is wrong, in one line."""
    sys.stderr.write(f"counterfoil: {error}\n")
