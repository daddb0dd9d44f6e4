"""The configuration: found, read, checked whole, and refused in one line."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from counterfoil.config import Settings, load_settings, read_settings
from counterfoil.destinations.settings import DeltaSettings
from counterfoil.errors import SettingsInvalid

HASH = "a" * 64
OTHER_HASH = "b" * 64
SOURCE = f'[[sources]]\nname = "website"\ntoken_sha256 = ["{HASH}"]\n'
FILE = Path("/etc/counterfoil/counterfoil.toml")


@pytest.fixture(autouse=True)
def _empty_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in os.environ:
        if name.upper().startswith("COUNTERFOIL_"):
            monkeypatch.delenv(name)


def refusal(text: str) -> str:
    """The one line with which a configuration is refused."""
    with pytest.raises(SettingsInvalid) as caught:
        read_settings(text, FILE)
    line = str(caught.value)
    assert "\n" not in line
    return line


def table_paths(settings: Settings) -> list[str]:
    """Where the Delta tables among the destinations lie."""
    return [one.path for one in settings.destinations if isinstance(one, DeltaSettings)]


def test_one_source_is_all_that_must_be_set() -> None:
    """The smallest configuration has a source, the documented defaults and one Delta table in the data directory."""
    settings = read_settings(SOURCE, FILE)
    assert settings.gateway.port == 8080
    assert settings.data_dir == FILE.parent / "data"
    assert table_paths(settings) == [str(FILE.parent / "data" / "lake")]
    assert settings.destinations[0].name == "lake"


def test_the_table_lies_in_the_data_directory_unless_it_has_a_path() -> None:
    """A destination without a path follows data_dir; one with a path is found from the file."""
    text = 'data_dir = "/srv/cf"\n' + SOURCE
    two = "".join(
        f'[[destinations]]\nname = "{name}"\n{path}\n' for name, path in [("a", ""), ("b", 'path = "tables/b"')]
    )
    assert table_paths(read_settings(text + two, FILE)) == [
        "/srv/cf/lake",
        str(FILE.parent / "tables/b"),
    ]


def test_paths_are_found_from_the_file() -> None:
    """A relative path means the file's directory, wherever the command is called."""
    text = SOURCE + '[gateway]\ntls_cert = "tls/cert.pem"\ntls_key = "/keys/key.pem"\n'
    gateway = read_settings(text, FILE).gateway
    assert gateway.tls_cert == FILE.parent / "tls/cert.pem"
    assert gateway.tls_key == Path("/keys/key.pem")


def test_an_empty_tls_cert_is_none() -> None:
    """`tls_cert = ""`, as it stands in examples, means no TLS."""
    assert read_settings(SOURCE + '[gateway]\ntls_cert = ""\n', FILE).gateway.tls_cert is None


def test_settings_survive_the_way_to_another_process(monkeypatch: pytest.MonkeyPatch) -> None:
    """What was read is the same after it went through JSON, and the environment is not asked a second time."""
    settings = read_settings(SOURCE + 'allowed_events = ["A", {event = "B", destinations = ["lake"]}]\n', FILE)
    monkeypatch.setenv("COUNTERFOIL_GATEWAY__PORT", "9999")
    assert Settings.model_validate_json(settings.model_dump_json()) == settings


@pytest.mark.parametrize(
    ("text", "line"),
    [
        ("", f"sources (from {FILE}): expected at least one [[sources]]; `counterfoil source add NAME` adds one"),
        (SOURCE + "[gateway]\nprot = 1", f"gateway.prot (from {FILE}): no such key; did you mean port?"),
        (SOURCE + "[gatway]\nport = 1", f"gatway (from {FILE}): no such key; did you mean gateway?"),
        ('token = "hunter2"\n' + SOURCE, f"token (from {FILE}): no such key"),
        (
            SOURCE + "[gateway]\nport = 80000",
            f"gateway.port = 80000 (from {FILE}): expected a whole number from 1 to 65535",
        ),
        (
            SOURCE + "[gateway]\nport = '8080'",
            f"gateway.port (from {FILE}): expected a whole number from 1 to 65535, found a text",
        ),
        (
            SOURCE + "[gateway]\nport = true",
            f"gateway.port = true (from {FILE}): expected a whole number from 1 to 65535",
        ),
        (
            SOURCE + "[gateway]\nport = 80.5",
            f"gateway.port = 80.5 (from {FILE}): expected a whole number from 1 to 65535",
        ),
        (
            SOURCE + "[queue]\nreserve_percent = nan",
            f"queue.reserve_percent = NaN (from {FILE}): expected a number from 0 to 90",
        ),
        (SOURCE + "[queue]\ncompression = 'lz4'", f'queue.compression (from {FILE}): expected "none" or "zstd"'),
        ("data_dir = 2020-01-01\n" + SOURCE, f"data_dir (from {FILE}): expected a path, found something else"),
        (
            SOURCE + "[[destinations]]\nname = 'x'\ntype = 'paper'",
            f'destinations[0].type (from {FILE}): expected "delta" or "postgres" or "webhook", found a text',
        ),
        (
            SOURCE + "[[destinations]]\nname = 'x'\npath = 'ftp://bucket/x'",
            f"destinations[0].path (from {FILE}): expected a directory, or a URL of s3, s3a",
        ),
        (
            SOURCE + "[[destinations]]\nname = 'x'\ntype = 3",
            f'destinations[0].type = 3 (from {FILE}): expected "delta" or "postgres" or "webhook"',
        ),
        (
            SOURCE + "[[destinations]]\nname = 'x'\ndsn = 'host=db password=hunter2'",
            f"destinations[0].dsn (from {FILE}): no such key in a table of this type",
        ),
        (
            SOURCE + "[[destinations]]\nname = 'x'\ntype = 'postgres'\ndns = 'host=db password=hunter2'",
            f"destinations[0].dns (from {FILE}): no such key; did you mean dsn?",
        ),
        (
            SOURCE + "[[destinations]]\nname = 'x'\ntype = 'webhook'\nurl = 'https://u'\nsecret = 12345",
            f"destinations[0].secret (from {FILE}): expected a text like ^(whsec_)",
        ),
        (
            SOURCE + "[[destinations]]\ntype = 'delta'",
            f"destinations[0].name (from {FILE}): expected a text like ^[a-z0-9][a-z0-9_-]{{0,62}}$, found none",
        ),
        (
            SOURCE + "allowed_events = [3]",
            f"sources[0].allowed_events[0] = 3 (from {FILE}): expected a text or a table",
        ),
        (
            SOURCE + "allowed_events = ['a', {evnt = 'b'}]",
            f"sources[0].allowed_events[1].evnt (from {FILE}): no such key; did you mean event?",
        ),
        ("x = = 3", f"{FILE}: expected TOML: Invalid value (at line 1, column 5)"),
        (SOURCE + SOURCE, f"sources[1].name (from {FILE}): expected a name that no other source has"),
        (
            SOURCE + SOURCE.replace("website", "shop"),
            f"sources[1].token_sha256[0] (from {FILE}): expected a token of its own, found one of source website",
        ),
        (
            SOURCE + f"test_token_sha256 = ['{HASH}']",
            f"sources[0].test_token_sha256[0] (from {FILE}): expected a token of its own",
        ),
        (
            SOURCE + "[[destinations]]\nname = 'a'\npath = 'a'\n[[destinations]]\nname = 'a'\npath = 'b'",
            f"destinations[1].name (from {FILE}): expected one of its own, found the one of destinations[0]",
        ),
        (
            SOURCE + "[[destinations]]\nname = 'a'\n[[destinations]]\nname = 'b'",
            f"destinations[1].path (from {FILE}): expected one of its own, found the one of destinations[0]",
        ),
        (
            SOURCE + "allowed_events = [{event = 'a', destinations = ['lake', 'sea']}]",
            f"sources[0].allowed_events[0].destinations (from {FILE}): expected names of destinations, found sea",
        ),
        (
            SOURCE + "[gateway]\ntls_cert = 'a.pem'",
            f"gateway.tls_key (from {FILE}): expected a path, because gateway.tls_cert is set",
        ),
        (
            SOURCE + "[gateway]\ntls_key = 'a.pem'",
            f"gateway.tls_cert (from {FILE}): expected a path, because gateway.tls_key is set",
        ),
        (
            SOURCE + "[console]\nport = 8080",
            f"console.port (from {FILE}): expected another port than gateway.port",
        ),
        (
            SOURCE + "[console]\nhost = '0.0.0.0'\nport = 8080",
            f"console.port (from {FILE}): expected another port than gateway.port",
        ),
        (
            SOURCE + "[limits]\nbody_bytes_max = 200_000_000",
            f"gateway.bodies_bytes_max (from {FILE}): expected at least limits.body_bytes_max",
        ),
    ],
)
def test_a_configuration_that_cannot_be_used_is_refused_in_one_line(text: str, line: str) -> None:
    """The line names file, key and what was expected."""
    assert refusal(text).startswith(line)


@pytest.mark.parametrize(
    "text",
    [
        SOURCE.replace(HASH, "tok_4711"),
        SOURCE.replace(f'"{HASH}"', "4711"),
        SOURCE + 'test_token_sha256 = "tok_4711"',
        'token = "tok_4711"\n' + SOURCE,
        SOURCE + "token = 4711",
        SOURCE + f'name = "tok_4711"\nname = "{HASH}"',
    ],
    ids=["no hash", "a number", "no list", "unknown key", "unknown number", "key twice"],
)
def test_a_token_in_the_wrong_place_is_never_repeated(text: str) -> None:
    """A token that was pasted where a hash belongs stays out of the error."""
    line = refusal(text)
    assert "4711" not in line
    assert HASH not in line


def test_the_same_port_on_two_addresses_is_no_disagreement() -> None:
    """Gateway and console may share a port when no connection could mean both."""
    text = SOURCE + '[gateway]\nhost = "10.0.0.1"\nport = 8081\n'
    assert read_settings(text, FILE).console.port == 8081


@pytest.mark.parametrize(
    ("name", "value", "section", "key", "expected"),
    [
        ("COUNTERFOIL_GATEWAY__PORT", "9000", "gateway", "port", 9000),
        ("counterfoil_gateway__port", "9000", "gateway", "port", 9000),
        ("COUNTERFOIL_GATEWAY", '{"port": 9000}', "gateway", "port", 9000),
        ("COUNTERFOIL_QUEUE__COMPRESSION", "zstd", "queue", "compression", "zstd"),
        ("COUNTERFOIL_QUEUE__RESERVE_PERCENT", "2.5", "queue", "reserve_percent", 2.5),
        ("COUNTERFOIL_GATEWAY__HOST", "0", "gateway", "host", "0"),
    ],
)
def test_the_environment_stands_over_the_file(
    monkeypatch: pytest.MonkeyPatch, name: str, value: str, section: str, key: str, expected: object
) -> None:
    """A variable replaces the file's value of that key and of no other."""
    monkeypatch.setenv(name, value)
    settings = read_settings(SOURCE + "[gateway]\nport = 7000\nconnections_max = 99\n", FILE)
    assert getattr(getattr(settings, section), key) == expected
    assert settings.gateway.connections_max == 99


@pytest.mark.parametrize(
    ("name", "value", "line"),
    [
        (
            "COUNTERFOIL_GATEWAY__PROT",
            "1",
            "COUNTERFOIL_GATEWAY__PROT (from the environment): no such setting; did you mean COUNTERFOIL_GATEWAY__POR",
        ),
        ("COUNTERFOIL_X", "1", "COUNTERFOIL_X (from the environment): no such setting"),
        ("counterfoil_x", "1", "counterfoil_x (from the environment): no such setting"),
        (
            "COUNTERFOIL_GATEWAY__PORT",
            "eighty",
            "gateway.port (from the environment): expected a whole number from 1 to 65535, found a text",
        ),
        (
            "COUNTERFOIL_GATEWAY__PORT",
            "0",
            "gateway.port = 0 (from the environment): expected a whole number from 1 to 65535",
        ),
        ("COUNTERFOIL_SOURCES", "[{", "COUNTERFOIL_SOURCES (from the environment): expected JSON"),
        (
            "COUNTERFOIL_SOURCES",
            '[{"name": "a", "token_sha256": ["tok_4711"]}]',
            "sources[0].token_sha256[0] (from the environment): expected a text like ^[0-9a-f]{64}$, found another",
        ),
        (
            "COUNTERFOIL_CONSOLE__PORT",
            "8080",
            "console.port (from the environment): expected another port than gateway.port",
        ),
    ],
)
def test_what_the_environment_sets_wrongly_is_refused_in_one_line(
    monkeypatch: pytest.MonkeyPatch, name: str, value: str, line: str
) -> None:
    """A name that is no setting's, or a value of the wrong kind, stops the start; the line says it came from there."""
    monkeypatch.setenv(name, value)
    assert refusal(SOURCE).startswith(line)


def test_names_that_are_no_settings_but_ours_are_known(monkeypatch: pytest.MonkeyPatch) -> None:
    """The variables that name the file and the failpoints are no unknown settings."""
    monkeypatch.setenv("COUNTERFOIL_CONFIG", "elsewhere.toml")
    monkeypatch.setenv("COUNTERFOIL_FAILPOINTS", "")
    read_settings(SOURCE, FILE)


def test_the_file_is_the_argument_else_the_variable_else_the_one_here(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """--config comes before $COUNTERFOIL_CONFIG, and that before ./counterfoil.toml."""
    monkeypatch.chdir(tmp_path)
    for name, port in (("counterfoil.toml", 7001), ("variable.toml", 7002), ("argument.toml", 7003)):
        (tmp_path / name).write_text(f"{SOURCE}[gateway]\nport = {port}\n")
    assert load_settings().gateway.port == 7001
    monkeypatch.setenv("COUNTERFOIL_CONFIG", "variable.toml")
    assert load_settings().gateway.port == 7002
    assert load_settings(Path("argument.toml")).gateway.port == 7003
    assert load_settings(Path("argument.toml")).data_dir == tmp_path / "data"


@pytest.mark.parametrize(
    ("content", "line"),
    [
        (None, "counterfoil.toml: not found here; `counterfoil init` makes one, --config names another"),
        (b"# \xff\xfe", "counterfoil.toml: expected UTF-8"),
    ],
    ids=["none", "no UTF-8"],
)
def test_a_file_that_cannot_be_read_is_one_line(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, content: bytes | None, line: str
) -> None:
    """No file, or one that is no text, says so and what to do."""
    monkeypatch.chdir(tmp_path)
    if content is not None:
        (tmp_path / "counterfoil.toml").write_bytes(content)
    with pytest.raises(SettingsInvalid) as caught:
        load_settings()
    assert str(caught.value) == line


def test_a_named_file_that_is_not_there_is_one_line(tmp_path: Path) -> None:
    """A wrong --config says what the system said."""
    with pytest.raises(SettingsInvalid) as caught:
        load_settings(tmp_path / "none.toml")
    assert str(caught.value) == f"{tmp_path}/none.toml: can't be read: No such file or directory"


def test_the_environment_alone_may_hold_the_configuration(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """A container needs no file: sources as JSON are enough."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("COUNTERFOIL_SOURCES", f'[{{"name": "website", "token_sha256": ["{HASH}"]}}]')
    settings = load_settings()
    assert settings.sources[0].name == "website"
    assert settings.data_dir == tmp_path / "data"


@pytest.mark.parametrize("host", ["0.0.0.0", "::", "192.0.2.1", "metrics.internal", ""])
def test_the_console_leaves_loopback_only_with_a_password(host: str) -> None:
    """A console that others could reach is refused without a password, in one line that names the key."""
    line = refusal(SOURCE + f'[console]\nhost = "{host}"\n')
    assert line == (
        f"console.password_sha256 (from {FILE}): expected a hash, because console.host is not loopback; "
        "`counterfoil password` makes one"
    )
    settings = read_settings(SOURCE + f'[console]\nhost = "{host}"\npassword_sha256 = "{HASH}"\n', FILE)
    assert settings.console.password_sha256 == HASH


@pytest.mark.parametrize("host", ["127.0.0.1", "127.8.9.1", "::1", "localhost"])
def test_on_loopback_the_console_needs_no_password(host: str) -> None:
    """Every address of loopback is one."""
    assert read_settings(SOURCE + f'[console]\nhost = "{host}"\n', FILE).console.password_sha256 == ""


@pytest.mark.parametrize("value", ['"hunter2"', "12345678", f'"{HASH.upper()}"'])
def test_a_password_that_is_no_hash_is_refused_without_being_shown(value: str) -> None:
    """Whoever writes the password itself where its hash belongs is told so, and the line does not repeat it."""
    line = refusal(SOURCE + f"[console]\npassword_sha256 = {value}\n")
    assert line.startswith("console.password_sha256 (from ")
    assert value.strip('"') not in line
