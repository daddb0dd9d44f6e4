"""Whether every relative link of the docs leads to a file that is there, and every anchor to a heading."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

LEFT_OUT = frozenset({".venv", ".sdk", ".git", "node_modules", ".hypothesis"})

_FENCE = re.compile(r"^(```|~~~).*?^\1", re.MULTILINE | re.DOTALL)
_CODE = re.compile(r"`[^`\n]*`")
_LINK = re.compile(r"!?\[[^\]]*\]\(\s*<?([^)\s>]+)>?[^)]*\)")
_HEADING = re.compile(r"^#{1,6} +(.+?) *#*$", re.MULTILINE)


class BrokenLink(NamedTuple):
    """A link that leads nowhere."""

    page: Path
    target: str
    why: str

    def __str__(self) -> str:
        return f"{self.page}: {self.target}: {self.why}"


def pages(root: Path) -> list[Path]:
    """Every Markdown file of a repository."""
    return sorted(path for path in root.rglob("*.md") if LEFT_OUT.isdisjoint(path.relative_to(root).parts))


def broken_links(root: Path) -> Iterator[BrokenLink]:
    """Every link that leads nowhere, page by page; links to other sites are not followed."""
    for page in pages(root):
        for target in targets(page.read_text()):
            why = _why_broken(page, target)
            if why is not None:
                yield BrokenLink(page.relative_to(root), target, why)


def unreachable_pages(root: Path) -> list[Path]:
    """The pages that nobody finds who starts at README.md and follows links."""
    reached: set[Path] = set()
    waiting = [root / "README.md"]
    while waiting:
        page = waiting.pop()
        if page in reached or page.suffix != ".md" or not page.exists():
            continue
        reached.add(page)
        waiting += [(page.parent / target.partition("#")[0]).resolve() for target in targets(page.read_text())]
    return [page.relative_to(root) for page in pages(root) if page.resolve() not in reached]


def targets(text: str) -> list[str]:
    """Where the relative links of a page lead."""
    found = _LINK.findall(_CODE.sub("", _FENCE.sub("", text)))
    return [target for target in found if not re.match(r"[a-z]+:", target)]


def _why_broken(page: Path, target: str) -> str | None:
    name, _, anchor = target.partition("#")
    file = page.parent / name if name else page
    if not file.exists():
        return "no such file"
    if anchor and (file.suffix != ".md" or anchor not in anchors(file.read_text())):
        return "no such heading"
    return None


def anchors(text: str) -> set[str]:
    """The anchors of a page's headings, as GitHub makes them."""
    found: dict[str, int] = {}
    for heading in _HEADING.findall(_FENCE.sub("", text)):
        slug = re.sub(r"[^\w\- ]", "", heading.lower()).strip().replace(" ", "-")
        count = found.get(slug, 0)
        found[slug] = count + 1
        if count:
            found[f"{slug}-{count}"] = 1
    return set(found)
