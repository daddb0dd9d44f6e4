"""`counterfoil source`: senders and their tokens, kept in the configuration file with its comments."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from counterfoil.cli.options import ConfigOption, JsonOption
from counterfoil.cli.printing import print_json, print_line, print_table

if TYPE_CHECKING:
    from tomlkit import TOMLDocument

NameArgument = Annotated[str, typer.Argument(metavar="NAME", help="The source's name.", show_default=False)]
TestOption = Annotated[bool, typer.Option("--test", help="The test token, whose rows are kept and never delivered.")]

TAKES_EFFECT = "A server that runs takes it in when it is started again."


def make_application() -> typer.Typer:
    """The sub-commands of `source`."""
    application = typer.Typer(help="Senders and their tokens.", no_args_is_help=True, rich_markup_mode=None)
    application.command("add")(add)
    application.command("rotate")(rotate)
    application.command("list")(list_sources)
    return application


def add(
    name: NameArgument,
    config: ConfigOption = None,
    with_test_token: Annotated[bool, typer.Option("--with-test-token", help="Make a test token as well.")] = False,
    max_age_days: Annotated[
        int | None, typer.Option(metavar="DAYS", help="How far a row's time may lie back; 0: without end.")
    ] = None,
    as_json: JsonOption = False,
) -> None:
    """Add a source, and print its token this once."""
    import tomlkit
    from tomlkit.items import AoT

    from counterfoil.cli.tokens import make_token
    from counterfoil.errors import StartRefused
    from counterfoil.sources import token_sha256

    edited = _Edited(config)
    if name in edited.names():
        raise StartRefused(f"source {name}: is there already; `counterfoil source rotate {name}` gives it a new token")
    tokens = {"token": make_token()} | ({"test_token": make_token()} if with_test_token else {})
    table = tomlkit.table()
    table["name"] = name
    for kind, token in tokens.items():
        table[f"{kind}_sha256"] = _list_of([token_sha256(token)])
    if max_age_days is not None:
        table["max_age_days"] = max_age_days
    table.add(tomlkit.nl())
    if "sources" not in edited.document:
        edited.document["sources"] = tomlkit.aot()
    sources = edited.document["sources"]
    if not isinstance(sources, AoT):
        raise StartRefused(
            f"{edited.file}: sources is written in one line; write it as [[sources]] to let it be edited"
        )
    sources.append(table)
    edited.write()
    _say_tokens(name, tokens, as_json)


def rotate(
    name: NameArgument,
    config: ConfigOption = None,
    test: TestOption = False,
    drop_old: Annotated[
        bool, typer.Option("--drop-old", help="Make no token, and drop all of it but the newest.")
    ] = False,
    as_json: JsonOption = False,
) -> None:
    """Give a source a new token beside the old one.

    The old one stays valid until it is dropped. When every sender has the new one: `counterfoil source rotate NAME
    --drop-old`.
    """
    from counterfoil.cli.tokens import make_token
    from counterfoil.errors import StartRefused
    from counterfoil.sources import token_sha256

    edited = _Edited(config)
    kind = "test_token" if test else "token"
    source = edited.source(name)
    hashes = list(source.get(f"{kind}_sha256", []))
    if drop_old:
        if len(hashes) < 2:
            raise StartRefused(f"source {name}: has no older {kind.replace('_', ' ')} to drop")
        source[f"{kind}_sha256"] = _list_of(hashes[-1:])
        edited.write()
        _say_dropped(name, len(hashes) - 1, as_json)
        return
    token = make_token()
    source[f"{kind}_sha256"] = _list_of([*hashes, token_sha256(token)])
    edited.write()
    _say_tokens(name, {kind: token}, as_json)
    if hashes and not as_json:
        option = " --test" if test else ""
        print_line(f"The old one stays valid until: counterfoil source rotate {name}{option} --drop-old")


def list_sources(config: ConfigOption = None, as_json: JsonOption = False) -> None:
    """List the sources.

    How many tokens each has, how far its rows' time may lie back, how many events it allows.
    """
    from counterfoil.config import load_settings

    settings = load_settings(config)
    facts = [
        {
            "name": source.name,
            "tokens": len(source.token_sha256),
            "test_tokens": len(source.test_token_sha256),
            "max_age_days": settings.limits.age_days_max if source.max_age_days is None else source.max_age_days,
            "allowed_events": None if source.allowed_events is None else len(source.allowed_events),
            "rows_per_second_max": source.rows_per_second_max,
        }
        for source in settings.sources
    ]
    if as_json:
        print_json({"sources": facts})
        return
    print_table(
        ("source", "tokens", "test tokens", "days back", "allowed events", "rows a second"),
        [
            (
                fact["name"],
                fact["tokens"],
                fact["test_tokens"],
                fact["max_age_days"] or "any",
                "every" if fact["allowed_events"] is None else fact["allowed_events"],
                fact["rows_per_second_max"] or "any",
            )
            for fact in facts
        ],
    )


class _Edited:
    """A configuration file that is changed with its comments kept, and written only when it can be used."""

    def __init__(self, config: Path | None) -> None:
        import os

        import tomlkit
        from tomlkit.exceptions import TOMLKitError

        from counterfoil.config import FILE_NAME, find_file
        from counterfoil.errors import SettingsInvalid

        if "COUNTERFOIL_SOURCES" in os.environ:
            raise SettingsInvalid(
                "COUNTERFOIL_SOURCES (from the environment): sources of the file don't count beside it"
            )
        file = find_file(config)
        if file is None:
            raise SettingsInvalid(f"{FILE_NAME}: not found here; `counterfoil init` makes one, --config names another")
        self.file = file
        try:
            self.document: TOMLDocument = tomlkit.parse(file.read_bytes())
        except OSError as error:
            raise SettingsInvalid(f"{file}: can't be read: {error.strerror}") from None
        except (TOMLKitError, UnicodeDecodeError) as error:
            raise SettingsInvalid(f"{file}: expected TOML: {error}") from None

    def names(self) -> list[str]:
        return [str(source.get("name")) for source in self._sources()]

    def source(self, name: str) -> Any:
        """The table of a source; raises StartRefused when there is none."""
        from counterfoil.errors import StartRefused

        for source in self._sources():
            if source.get("name") == name:
                return source
        known = ", ".join(self.names()) or "none"
        raise StartRefused(f"source {name}: not in {self.file}; there are: {known}")

    def _sources(self) -> list[Any]:
        sources = self.document.get("sources", [])
        return [source for source in sources if isinstance(source, dict)] if isinstance(sources, list) else []

    def write(self) -> None:
        """Put the changed file in the place of the old one; raises SettingsInvalid when it couldn't be used."""
        import tomlkit

        from counterfoil.config import read_settings
        from counterfoil.errors import StartRefused
        from counterfoil.files import RealFiles

        text = tomlkit.dumps(self.document)
        read_settings(text, self.file)
        # The link's target, so that a linked file stays linked; its mode and owner stay, where they can.
        target = self.file.resolve()
        try:
            mode = target.stat().st_mode
            RealFiles().write_whole(target, text.encode())
            target.chmod(mode)
        except OSError as error:
            raise StartRefused(f"{target}: can't be written: {error.strerror}") from None


def _list_of(hashes: list[str]) -> Any:
    """Hashes as a list with one a line, as a person would write them."""
    import tomlkit

    array = tomlkit.array()
    array.extend(hashes)
    return array.multiline(len(hashes) > 1)


def _say_tokens(name: str, tokens: dict[str, str], as_json: bool) -> None:
    if as_json:
        print_json({"source": name, **tokens})
        return
    for kind, token in tokens.items():
        print_line(f"{kind.replace('_', ' ')} of {name}, printed this once: {token}")
    print_line(TAKES_EFFECT)


def _say_dropped(name: str, count: int, as_json: bool) -> None:
    if as_json:
        print_json({"source": name, "dropped": count})
        return
    print_line(f"{name}: {count} older token{'s' if count > 1 else ''} dropped. {TAKES_EFFECT}")
