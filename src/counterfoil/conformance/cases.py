"""The form of a case file, as types; docs/conformance.md says the same for a reader.

A file is a `Section`, its cases are `Case`s. A case sends one request and expects one answer; `then` holds what
follows. Texts of requests are templates (`templates.py`), sizes and counts are sums (`expressions.py`).
"""

from __future__ import annotations

import tomllib
from importlib import resources
from typing import Literal

import msgspec

Coding = Literal["gzip", "deflate", "zstd", "br"]
Mark = Literal["doc", "sdk", "old", "plat", "tried", "ours"]
Count = int | str


class CaseFileInvalid(ValueError):
    """A case file that doesn't have the form this kit reads."""


class Part(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """A piece of a template that has a name because it is long, written as what makes it. One of three kinds."""

    repeat: str | None = None
    """This text, `times` over, `between` in between; `{{n}}` in it counts from 0."""
    between: str = ""
    nest: str | None = None
    """This text with `open` before it and `close` behind it, each `times` over."""
    open: str = "["
    close: str = "]"
    times: Count = 1
    pad: str | None = None
    """This text, with as many `fill` in the place of `{{pad}}` as it needs to be `to` bytes long."""
    to: Count = 0
    fill: str = "x"


class Raw(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """A request written onto the socket as it stands, for what an HTTP client would not send."""

    head: list[str]
    """The request line and the headers; `{{length}}` is the number of bytes of the pieces."""
    pieces: list[str] = []
    """The body, in as many writes."""
    chunked: bool = False
    """Each piece is sent as a chunk, and the last chunk after them."""
    cut: bool = False
    """The writing half of the connection is closed where the pieces end, before the body is whole."""
    open_head: bool = False
    """The empty line that ends the headers is not sent."""
    drip_seconds: Count = 0
    """After the pieces, one space a second for so long, or until the server answers or closes."""
    copies: int = 1
    """The request is written so many times at once on one connection, and each copy is answered."""


class Request(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """What is sent. `row`, `rows`, `track` and `identify` are short for the body and path that carry them."""

    rows: list[str] | None = None
    """POST /api/v1/batch with the token and these rows."""
    row: str | None = None
    """The same with this row alone, or, in a case with `each`, once for each of its words."""
    track: str | None = None
    """POST /api/v1/track with this object, the token put in as its first member."""
    identify: str | None = None
    """POST /api/v1/identify with this object, the token put in as its first member."""
    body: str | None = None
    """The body as it stands."""
    method: str = "POST"
    path: str | None = None
    headers: dict[str, str | Literal[False]] = {}
    """Headers over the usual ones; false: none of this name."""
    test_token: bool = False
    """`row`, `rows`, `track` and `identify` carry the source's test token."""
    compress: Coding | None = None
    """The body is compressed so, and Content-Encoding names it unless `headers` does."""
    level: int | None = None
    """The coding's own level; absent: a fast one."""
    damage: Literal["cut", "flip", "tail"] | None = None
    """The compressed body lacks its last quarter, or one byte in its middle is turned over, or three more follow it."""
    raw: Raw | None = None


class Expectation(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """What must come. Everything that is named must hold; what must hold of every answer is in `judging.py`."""

    status: int | list[int] | None = None
    rows: list[str] | None = None
    """One word a row: `accepted`, `invalid`, `invalid: <path in the row>` or `any`; status and counts follow."""
    every: str | None = None
    """The same word for each of `count` rows, or for each word of `each`."""
    count: Count | None = None
    success: bool = False
    """200 and exactly `{"success": true}`."""
    error: str | None = None
    """The error body of section 3, and `error` holds this text (with any case)."""
    limit: Count | None = None
    """The error body holds `limit` with this value."""
    body: str | None = None
    """A JSON pattern (`judging.py`) that the body matches."""
    says: list[str] = []
    """Texts that stand in the answer's messages, each alternative with `|` between."""
    hides: list[str] = []
    """Texts that stand nowhere in the answer."""
    headers: dict[str, str] = {}
    """Conditions: `is X`, `contains X`, `one of X, Y`, `absent`, `present`, `integer A to B`."""
    foreign_body: bool = False
    """Nothing is asked of the body: what answers here may be the HTTP layer below the API."""
    closing_is_fine: bool = False
    """A connection that is closed without an answer does as well."""
    seconds_max: int | None = None


class Step(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """What follows a case's first answer."""

    expect: Expectation
    send: Request | None = None
    """Absent: the same bytes again."""
    pause_seconds: Count = 0


class Case(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """One rule of the contract, and how it shows over HTTP."""

    name: str
    rule: str
    send: Request
    expect: Expectation
    mark: Mark = "ours"
    """Where the rule comes from, as the contract marks it."""
    needs: list[str] = []
    """What must be there for the case to be tried: `test_token`, `limits` (told over HTTP), `slow` (a run that has the
    time), or a comparison of limits."""
    each: list[str] | str = []
    """Words, or the name of a list of the file's `words`: `row` is sent once for each of them in the same request, with
    the word in the place of `{{each}}`."""
    parts: dict[str, Part] = {}
    then: list[Step] = []


class Section(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """A case file."""

    section: str
    title: str
    case: list[Case]
    words: dict[str, list[str]] = {}
    """Lists that several cases go through."""

    def words_of(self, case: Case) -> tuple[str, ...]:
        """The words that a case goes through. Raises CaseFileInvalid when it names a list that isn't there."""
        if not isinstance(case.each, str):
            return tuple(case.each)
        if case.each not in self.words:
            raise CaseFileInvalid(f"{case.name}: no words of the name {case.each}")
        return tuple(self.words[case.each])


def read_section(text: str, file_name: str) -> Section:
    """A case file's section. Raises CaseFileInvalid with the file, the place and what was expected."""
    try:
        return msgspec.convert(tomllib.loads(text), Section)
    except (tomllib.TOMLDecodeError, msgspec.ValidationError) as error:
        raise CaseFileInvalid(f"{file_name}: {error}") from error


def shipped_sections() -> list[Section]:
    """The sections that come with this kit, in the contract's order."""
    folder = resources.files(__package__).joinpath("cases")
    files = sorted((file for file in folder.iterdir() if file.name.endswith(".toml")), key=lambda file: file.name)
    return [read_section(file.read_text(encoding="utf-8"), file.name) for file in files]
