"""Templates: how the texts of the case files become bytes.

    {{token}} {{test_token}} {{unknown_token}}   tokens, escaped for a JSON string
    {{host}} {{base}}                            the server's authority; what its paths begin with, `/api/v1` included
    {{id}} {{id.2}} …                            distinctIds, fresh for each run and case
    {{secret}}                                   a text that must not come back in any answer
    {{each}}                                     the word of a case's `each` that this row is for, as it stands
    {{n}}                                        in a repeated part: which repetition, from 0
    {{= sum}}                                    a number (`expressions.py`)
    {{hex c3 28}}                                these bytes
    {{name}}                                     a part of the case

Rendering is lazy: a body that is a gigabyte before it is compressed is never held whole.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping

import msgspec

from counterfoil.conformance.cases import Part
from counterfoil.conformance.expressions import evaluate

_PLACEHOLDER = re.compile(r"\{\{(?!\{)([^{}]*)\}\}")
_BLOCK_BYTES = 256 * 1024


class TemplateInvalid(ValueError):
    """A template with a placeholder that nobody knows."""


class Values(msgspec.Struct, frozen=True):
    """What placeholders stand for in one case of one run."""

    texts: Mapping[str, str]
    """`token`, `test_token`, `unknown_token`, `secret`, and what else has a fixed value."""
    numbers: Mapping[str, int]
    """Limits, `now` (ms since the epoch) and the units of time in ms."""
    ids: str
    """What the case's distinctIds begin with."""
    parts: Mapping[str, Part]
    verbatim: Mapping[str, str] = {}
    """`each`, `n` and `pad`, put in as they stand."""

    def with_verbatim(self, **texts: str) -> Values:
        return msgspec.structs.replace(self, verbatim={**self.verbatim, **texts})

    def with_numbers(self, **numbers: int) -> Values:
        return msgspec.structs.replace(self, numbers={**self.numbers, **numbers})


def render(template: str, values: Values) -> Iterator[bytes]:
    """The bytes of a template, in blocks."""
    for index, piece in enumerate(_PLACEHOLDER.split(template)):
        if index % 2:
            yield from _placeholder(piece.strip(), values)
        elif piece:
            yield piece.encode()


def render_text(template: str, values: Values) -> str:
    """The same as text, for what is short."""
    return b"".join(render(template, values)).decode()


def _placeholder(name: str, values: Values) -> Iterator[bytes]:
    if name in values.verbatim:
        yield values.verbatim[name].encode()
    elif name in values.texts:
        yield json.dumps(values.texts[name], ensure_ascii=False)[1:-1].encode()
    elif name in values.parts:
        yield from _part(values.parts[name], values)
    elif name == "id" or name.startswith("id."):
        yield f"{values.ids}-{name[3:] or 1}".encode()
    elif name.startswith("="):
        yield str(evaluate(name[1:], values.numbers)).encode()
    elif name.startswith("hex "):
        yield bytes.fromhex(name[4:])
    else:
        raise TemplateInvalid(f"{{{{{name}}}}}: nobody knows this placeholder")


def _part(part: Part, values: Values) -> Iterator[bytes]:
    times = evaluate(part.times, values.numbers)
    if part.repeat is not None:
        return _repeat(part.repeat, part.between, times, values)
    if part.nest is not None:
        return _nest(part, times, values)
    if part.pad is not None:
        return _pad(part.pad, part.fill, evaluate(part.to, values.numbers), values)
    raise TemplateInvalid("a part has one of repeat, nest and pad")


def _repeat(template: str, between: str, times: int, values: Values) -> Iterator[bytes]:
    if not _counts(template, values.parts):
        yield from _blocks(b"".join(render(template, values)), between.encode(), times)
        return
    for n in range(times):
        if n and between:
            yield between.encode()
        yield from render(template, values.with_verbatim(n=str(n)))


def _nest(part: Part, times: int, values: Values) -> Iterator[bytes]:
    yield from _blocks(part.open.encode(), b"", times)
    yield from render(part.nest or "", values)
    yield from _blocks(part.close.encode(), b"", times)


def _pad(template: str, fill: str, to: int, values: Values) -> Iterator[bytes]:
    bare_bytes = sum(map(len, render(template, values.with_verbatim(pad=""))))
    if bare_bytes > to or (to - bare_bytes) % len(fill.encode()):
        raise TemplateInvalid(f"a text of {bare_bytes} bytes can't be padded to {to}")
    before, _, behind = template.partition("{{pad}}")
    yield from render(before, values)
    yield from _blocks(fill.encode(), b"", (to - bare_bytes) // len(fill.encode()))
    yield from render(behind, values)


def _blocks(text: bytes, between: bytes, times: int) -> Iterator[bytes]:
    """`text` so many times, in blocks, with `between` between them."""
    if times < 1 or not text + between:
        return
    link = text + between
    links_a_block = max(1, _BLOCK_BYTES // len(link))
    block = link * min(links_a_block, times)
    whole_blocks, rest = divmod(times - 1, links_a_block)
    for _ in range(whole_blocks):
        yield block
    if rest:
        yield link * rest
    yield text


def _counts(template: str, parts: Mapping[str, Part]) -> bool:
    """Whether a template says `{{n}}`, itself or through its parts, and so differs from repetition to repetition."""
    names = {name.strip() for name in _PLACEHOLDER.findall(template)}
    texts = [parts[name].nest or parts[name].pad or "" for name in names if name in parts]
    return "n" in names or any(_counts(text, parts) for text in texts)
