"""The docs say what is there: every setting, metric, command and decision, and every link leads somewhere."""

from __future__ import annotations

import inspect
import json
import re
from pathlib import Path

from hypothesis import given

from counterfoil.config import Settings
from counterfoil.contract import rejections, unavailability
from counterfoil.contract.facts import Verdict
from counterfoil.pipeline.trace import DeliveryState
from counterfoil.settings_tree import sections
from counterfoil.telemetry.metrics import METRICS
from docs._tools.api import EXPECTATIONS, FOUND, expected_in, found_in, message_of
from docs._tools.links import broken_links, unreachable_pages
from docs._tools.pages import DECISIONS, ROOT, behind, decisions, helps, misnumbered_decisions
from tests.contract.judging import judged
from tests.contract.test_row_rules import broken_texts

REFERENCE = ROOT / "docs" / "reference"


def test_the_pages_made_from_the_code_say_what_it_says() -> None:
    """A change of a setting, metric, command or decision that is not in the docs fails here; `make docs` mends it."""
    assert [path.name for path in behind()] == []


def test_every_setting_is_in_the_reference() -> None:
    """Each key stands under its table, with a word of what it is."""
    page = (REFERENCE / "configuration.md").read_text()
    for section in sections(Settings):
        for setting in section.settings:
            assert f"| `{setting.key}` |" in page, (section.name, setting.key)
            assert setting.help, (section.name, setting.key)


def test_every_metric_is_in_the_reference() -> None:
    """Each metric stands there with its labels and a word of what it is."""
    page = (REFERENCE / "metrics.md").read_text()
    assert [spec.name for spec in METRICS if f"| `{spec.name}` |" not in page or not spec.help] == []


def test_every_metric_that_operations_names_is_there() -> None:
    """What an operator is told to watch exists."""
    named = set(re.findall(r"counterfoil_[a-z_]+", (ROOT / "docs" / "operations.md").read_text()))
    assert named <= {spec.name for spec in METRICS}


def test_every_command_is_in_the_reference() -> None:
    """Each command has a heading, and below it what its --help prints."""
    page = (REFERENCE / "cli.md").read_text()
    for words, text in helps():
        assert f"## `{' '.join(words)}`\n\n```\n{text}\n```" in page


def test_every_reason_of_a_refused_request_is_on_the_page_of_the_api() -> None:
    """A new one that nobody explains fails here; an invalid row's own message is explained elsewhere on the page."""
    source = (ROOT / "docs" / "_tools" / "api.py").read_text()
    made = {name for name, _ in inspect.getmembers(rejections, inspect.isfunction)} - {"row_invalid"}
    assert {name for name in made if f"rejections.{name}" not in source} == set()
    page = (REFERENCE / "api.md").read_text()
    for make in (unavailability.disk_full, unavailability.row_uncertain):
        assert f"`{json.loads(make().body)['error']}`" in page


@given(broken_texts)
def test_every_message_of_a_row_is_on_the_page_of_the_api(text: bytes) -> None:
    """Whatever is wrong with a row, the page explains what was expected and what was found."""
    for message in judged(text).faults.values():
        assert expected_in(message) in EXPLAINED
        assert found_in(message) in {re.sub(r"\d+", "N", said) for said in FOUND}


EXPLAINED = {expected_in(message_of(expectation)) for expectation in EXPECTATIONS}


def test_the_page_of_the_api_explains_no_message_twice() -> None:
    """Each example shows another expectation, and what it found is explained, too."""
    assert len(EXPLAINED) == len(EXPECTATIONS)
    found = {found_in(message_of(expectation)) for expectation in EXPECTATIONS}
    assert found <= {re.sub(r"\d+", "N", said) for said in FOUND}


def test_every_decision_is_in_the_index_under_a_number_of_its_own() -> None:
    """A decision's title begins with the number that its file has, and no two have the same."""
    index = (DECISIONS / "README.md").read_text()
    assert [path.name for path, title in decisions() if f"- [{title}]({path.name})" not in index] == []
    assert misnumbered_decisions() == []


def test_the_glossary_has_the_words_that_commands_print() -> None:
    """Verdicts are explained, and the words stand in the order of the alphabet."""
    words = re.findall(r"^\| ([^|]+) \|", (ROOT / "docs" / "glossary.md").read_text(), re.MULTILINE)[1:]
    assert words == sorted(words, key=str.lower)
    assert {verdict.name.lower() for verdict in Verdict} <= set(words)
    assert {DeliveryState.PENDING.value} <= set(words)


def test_every_link_leads_somewhere() -> None:
    """Relative links lead to files, and anchors to headings."""
    assert [str(link) for link in broken_links(ROOT)] == []


def test_every_page_is_found_from_the_readme() -> None:
    """Nobody has to know a page's name to find it."""
    assert unreachable_pages(ROOT) == []


def test_a_link_that_leads_nowhere_is_found(tmp_path: Path) -> None:
    """The check of links sees a missing file and a missing heading, and leaves code and other sites alone."""
    (tmp_path / "README.md").write_text(
        "# A page\n[a](b.md) [b](c.md#two-words) [c](c.md#none) [d](#a-page) [e](https://x.org/none) `[f](none)`\n"
        "```\n[g](none.md)\n# No heading\n```\n[h](#no-heading)"
    )
    (tmp_path / "c.md").write_text("## Two *words*\n")
    (tmp_path / "hidden.md").touch()
    assert [(link.target, link.why) for link in broken_links(tmp_path)] == [
        ("b.md", "no such file"),
        ("c.md#none", "no such heading"),
        ("#no-heading", "no such heading"),
    ]
    assert unreachable_pages(tmp_path) == [Path("hidden.md")]
