"""`counterfoil init`: a commented configuration with one source, and its token."""

from __future__ import annotations

import os
import textwrap
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from counterfoil.cli.options import ConfigOption
from counterfoil.cli.printing import print_line

if TYPE_CHECKING:
    from counterfoil.settings_tree import Section, Setting

TOKEN_FILE_NAME = "counterfoil.token"  # noqa: S105 (a file's name)

HEAD = """\
# The configuration of Counterfoil. Every key is here with its default; one that is not commented out is set.
# The environment stands over it: COUNTERFOIL_GATEWAY__PORT=9000. `counterfoil check` says whether it can be used.
"""


def init(
    config: ConfigOption = None,
    source: Annotated[str, typer.Option(metavar="NAME", help="Name of the first source.")] = "website",
) -> None:
    """Write a commented configuration with one source.

    Its token is printed this once, and kept in counterfoil.token beside the file, readable by you alone; the
    configuration holds its hash. Nothing that is there is overwritten.
    """
    from counterfoil.cli.tokens import make_token
    from counterfoil.config import FILE_NAME, find_file, read_settings
    from counterfoil.errors import StartRefused
    from counterfoil.sources import token_sha256

    file = find_file(config) or Path(FILE_NAME)
    token_file = file.parent / TOKEN_FILE_NAME
    for path in (file, token_file):
        if path.exists():
            raise StartRefused(f"{path}: is there already; nothing was changed")
    token = make_token()
    text = starter_text(source, token_sha256(token))
    # Before anything is written: a name that can't be used is refused here.
    read_settings(text, file)
    try:
        _write_new(token_file, token + "\n")
        _write_new(file, text)
    except OSError as error:
        raise StartRefused(f"{error.filename}: can't be written: {error.strerror}") from None
    print_line(f"{file}: a configuration with the source {source}")
    print_line(f"{token_file}: its token, for you alone: {token}")
    print_line("The token is not printed again; the configuration holds its hash. Next: counterfoil serve")


def starter_text(source: str, token_hash: str) -> str:
    """The configuration that `init` writes, from the settings' own descriptions."""
    from counterfoil.config import DEFAULT_DESTINATION, Settings
    from counterfoil.settings_tree import sections

    set_keys: dict[tuple[str, str | None], dict[str, Any]] = {
        ("sources", None): {"name": source, "token_sha256": [token_hash]},
        ("destinations", "delta"): {"name": DEFAULT_DESTINATION, "type": "delta"},
    }
    texts = [_section_text(section, set_keys.get((section.name, section.type), {})) for section in sections(Settings)]
    return "\n".join([HEAD, *texts])


def _section_text(section: Section, set_keys: dict[str, Any]) -> str:
    lines = []
    if section.name:
        brackets = f"[[{section.name}]]" if section.is_list else f"[{section.name}]"
        mark = "" if set_keys or not section.is_list else "# "
        # Behind the brackets: a comment above them would belong to the section before, for whoever edits the file.
        lines.append(f"{mark}{brackets}  # {section.help}")
    for setting in section.settings:
        lines += textwrap.wrap(setting.help, 100, initial_indent="# ", subsequent_indent="# ")
        lines.append(_setting_line(setting, set_keys.get(setting.key)))
    return "\n".join(lines) + "\n"


def _setting_line(setting: Setting, value: Any) -> str:
    from counterfoil.settings_tree import toml_value

    if value is not None:
        return f"{setting.key} = {toml_value(value)}"
    return f"# {setting.key} = {toml_value(setting.example)}"


def _write_new(path: Path, text: str) -> None:
    descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
    with os.fdopen(descriptor, "w") as file:
        file.write(text)
