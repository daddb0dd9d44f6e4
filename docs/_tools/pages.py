"""The pages that are made from the code: settings, metrics, commands, the API, its fields, and the index of decisions.

What they say is written once, where it is defined; a page that is behind it fails the checks.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from pathlib import Path

import typer

from counterfoil.cli.application import make_application
from counterfoil.config import PREFIX, Settings
from counterfoil.contract import fields as contract
from counterfoil.contract.fields import Field, Table
from counterfoil.settings_tree import Section, Setting, sections, toml_value
from counterfoil.telemetry.metrics import METRICS, Spec
from docs._tools.api import api_page

ROOT = Path(__file__).parent.parent.parent
DECISIONS = ROOT / "docs" / "decisions"

MADE = "<!-- Made from the code by `make docs`; change it there. -->\n"


def configuration_page() -> str:
    """docs/reference/configuration.md"""
    parts = [_CONFIGURATION]
    for section in sections(Settings):
        parts.append(_heading(section))
        if section.help and section.name:
            parts.append(f"{section.help}\n")
        parts.append("| key | must be | default | what it is |\n|---|---|---|---|")
        parts.append("\n".join(_setting_row(setting) for setting in section.settings) + "\n")
    return "\n".join([MADE, *parts])


_CONFIGURATION = f"""\
# Configuration

One TOML file: the one at `--config`, else at `$COUNTERFOIL_CONFIG`, else `./counterfoil.toml`. `counterfoil init`
writes one with every key and its default, and `counterfoil check` says whether it can be used.

The environment stands over the file: `{PREFIX}GATEWAY__PORT=9000` sets `port` in `[gateway]`. A list or a table is
given as JSON: `{PREFIX}SOURCES='[{{"name": "website", "token_sha256": ["…"]}}]'`. With the sources in the environment
no file is needed.

Relative paths are found from the directory of the file. A key that is not known, a value of the wrong kind, or a name
in the environment that begins with `{PREFIX}` and is no setting stops the start with one line, exit status 2:

    counterfoil: gateway.port = 80000 (from counterfoil.toml): expected a whole number from 1 to 65535

No such line repeats a text of the file, because it may be a token in the wrong place.
"""


def _heading(section: Section) -> str:
    if not section.name:
        return "## At the top of the file\n"
    brackets = f"`[[{section.name}]]`" if section.is_list else f"`[{section.name}]`"
    return f"## {brackets}{f' with type {section.type}' if section.type else ''}\n"


def _setting_row(setting: Setting) -> str:
    default = "required" if setting.is_required else _default(setting)
    return f"| `{setting.key}` | {_cell(setting.kind)} | {default} | {_cell(setting.help)} |"


def _default(setting: Setting) -> str:
    if setting.default is None:
        return ""
    return f"`{toml_value(setting.default)}`"


def metrics_page() -> str:
    """docs/reference/metrics.md"""
    return "\n".join(
        [
            MADE,
            _METRICS,
            "## Measured by the processes\n",
            _metrics_table(spec for spec in METRICS if not spec.is_booked),
            "## Booked in the ledger\n",
            _metrics_table(spec for spec in METRICS if spec.is_booked),
        ]
    )


_METRICS = """\
# Metrics

The console serves them at `/metrics` in Prometheus's text format. Measured ones are counted by each process and added
up; a process that is started again goes on counting, and the whole server begins at 0. Booked ones are read from the
ledger when the page is asked for: they are the books themselves and survive everything.

No label holds anything that a sender sent: sources, destinations and processes are names of the configuration, and a
path that the API doesn't have counts as `other`. What to watch stands in [operations](../operations.md#what-to-watch).
"""


def _metrics_table(specs: Iterator[Spec]) -> str:
    rows = [f"| `{spec.name}` | {spec.kind} | {_labels(spec)} | {_cell(spec.help)} |" for spec in specs]
    return "\n".join(["| name | kind | labels | what it is |\n|---|---|---|---|", *rows, ""])


def _labels(spec: Spec) -> str:
    return ", ".join(f"`{label}`" for label in spec.labels)


def cli_page() -> str:
    """docs/reference/cli.md"""
    parts = [MADE, _CLI]
    for words, help_text in helps():
        parts.append(f"## `{' '.join(words)}`\n\n```\n{help_text}\n```\n")
    return "\n".join(parts)


_CLI = """\
# The command line

Exit status: 0 done, 1 the answer is no (or it can't be done now), 2 used or configured wrongly. What is wrong is one
line on standard error. Commands that read work while the server runs and while it doesn't.
"""


def helps() -> Iterator[tuple[tuple[str, ...], str]]:
    """Each command's words and what its --help prints."""
    yield from _helps(typer.main.get_command(make_application()), ("counterfoil",), None)


def _helps(
    command: typer._click.Command, words: tuple[str, ...], above: typer._click.Context | None
) -> Iterator[tuple[tuple[str, ...], str]]:
    context = command.make_context(words[-1], [], parent=above, resilient_parsing=True, terminal_width=80)
    context.info_name = words[-1]
    yield words, command.get_help(context).rstrip()
    for name, inner in getattr(command, "commands", {}).items():
        yield from _helps(inner, (*words, name), context)


def fields_page() -> str:
    """docs/reference/fields.md"""
    parts = [MADE, _FIELDS]
    for title, text, table in _FIELD_TABLES:
        parts.append(f"## {title}\n\n{text}\n")
        parts.append("| field | type | at most | before the check |\n|---|---|---|---|")
        parts.append("\n".join(_field_row(field) for field in table.values()) + "\n")
    return "\n".join(parts)


_FIELDS = """\
# Fields

Every field that the API knows, what it may hold, and what happens to it before it is checked. Lengths are UTF-16 code
units, as JavaScript counts them (an emoji is 2). Trimmed means: whitespace, line ends, the byte order mark and the
no-break space are taken off both ends. Unknown fields are no error: they are kept and delivered, in `extra` or beside
the known properties.

A row that breaks a rule is answered `invalid_event`, with a message that names the field's path, what was expected and
what kind of thing was found, never its value. The document at `GET /api/v1/openapi` says the same for programs.
"""

_FIELD_TABLES: tuple[tuple[str, str, Table], ...] = (
    (
        "A row",
        "Of `/batch`. In `/track` a `distinctId` is made when it is absent or null, and numbers and booleans become"
        " text in it. In `/identify` the first two, `time` and `eventProperties` are unknown fields, and"
        " `userProperties` is required. Null is the same as absent. An identifier that is empty after trimming counts"
        " as absent.",
        contract.BATCH_ROW,
    ),
    (
        "`userProperties`",
        "Null is allowed everywhere and clears the visitor's property; an empty string leaves it as it was.",
        contract.USER_PROPERTIES,
    ),
    (
        "`defaultProperties`",
        "Null is allowed everywhere. `received_at` is set by the server over what was sent; `version` is set from the"
        " SDK's headers when it is absent.",
        contract.DEFAULT_PROPERTIES,
    ),
    (
        "`identityContext`",
        "The network context of the visitor, for calls that a server makes.",
        contract.IDENTITY_CONTEXT,
    ),
)


def _field_row(field: Field) -> str:
    steps = ["numbers and booleans become text"] * field.to_text + ["trimmed"] * field.trim
    if field.type == "map":
        steps.append("normalised")
    length = "" if field.max_length is None else str(field.max_length)
    return f"| `{field.name}` | {_field_type(field)} | {length} | {', then '.join(steps)} |"


def _field_type(field: Field) -> str:
    kind = {"map": "free-form object", "any": "any JSON value", "time": "number, ms since 1970"}.get(
        field.type, field.type
    )
    return f"{kind}, required" if field.is_required else kind


def decisions_page() -> str:
    """docs/decisions/README.md"""
    lines = [f"- [{title}]({path.name})" for path, title in decisions()]
    return "\n".join([MADE, _DECISIONS, *lines, ""])


_DECISIONS = """\
# Decisions

A choice where the design is silent: question, choice, why, what else was weighed; a page at most. A decision is
superseded by a later one, not edited. Numbers begin with the part they belong to: 01 contract, 02 queue, 03 ledger and
settle, 04 destinations and deliver, 05 gateway and sources, 06 configuration, command line and docs, 07 supervisor and
console, 08 conformance kit, 09 backfill, 10 proofs of durability.
"""


def decisions() -> list[tuple[Path, str]]:
    """Every decision with its title, in the order of their numbers."""
    found = sorted(path for path in DECISIONS.glob("*.md") if path.name != "README.md")
    return [(path, path.read_text().partition("\n")[0].removeprefix("# ").strip()) for path in found]


def misnumbered_decisions() -> list[Path]:
    """Decisions whose title does not begin with the number of their file, or whose number another one has."""
    numbers: dict[str, Path] = {}
    wrong = []
    for path, title in decisions():
        number = path.name[:4]
        if not re.match(rf"{number}: \S", title) or numbers.setdefault(number, path) != path:
            wrong.append(path)
    return wrong


def _cell(text: str) -> str:
    """A text as a cell of a table takes it."""
    return re.sub(r"(\^\S+\$)", r"`\1`", text).replace("|", "\\|").replace("<", "\\<")


PAGES: dict[Path, Callable[[], str]] = {
    ROOT / "docs" / "reference" / "api.md": lambda: f"{MADE}\n{api_page()}",
    ROOT / "docs" / "reference" / "configuration.md": configuration_page,
    ROOT / "docs" / "reference" / "metrics.md": metrics_page,
    ROOT / "docs" / "reference" / "cli.md": cli_page,
    ROOT / "docs" / "reference" / "fields.md": fields_page,
    DECISIONS / "README.md": decisions_page,
}


def behind() -> list[Path]:
    """The pages that don't say what the code says."""
    return [path for path, make in PAGES.items() if not path.exists() or path.read_text() != make()]


def write() -> None:
    """Make every page anew."""
    for path, make in PAGES.items():
        path.write_text(make())
