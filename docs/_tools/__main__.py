"""`python -m docs._tools write` makes the pages; `check` says what is behind and which links lead nowhere."""

from __future__ import annotations

import sys

from docs._tools.links import broken_links, pages, unreachable_pages
from docs._tools.pages import ROOT, behind, misnumbered_decisions, write


def check() -> int:
    """The exit status: 1 when a page is behind the code or hidden, or a link leads nowhere."""
    problems = [f"{path.relative_to(ROOT)}: behind the code; `make docs` makes it anew" for path in behind()]
    problems += [f"{path.name}: expected a title of the form `# 0123: What is so`" for path in misnumbered_decisions()]
    problems += [str(link) for link in broken_links(ROOT)]
    problems += [f"{page}: no way leads there from README.md; link it" for page in unreachable_pages(ROOT)]
    for problem in problems:
        sys.stdout.write(f"docs: {problem}\n")
    if not problems:
        sys.stdout.write(f"docs links: all of {len(pages(ROOT))} pages lead somewhere\n")
    return 1 if problems else 0


if __name__ == "__main__":
    if sys.argv[1:] == ["write"]:
        write()
    else:
        sys.exit(check())
