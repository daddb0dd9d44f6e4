"""What a run found: as a table, as JSON, as JUnit's XML."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Sequence
from typing import Any
from xml.etree import ElementTree as Xml

from rich.console import Console
from rich.markup import escape
from rich.table import Table

from counterfoil.conformance.cases import Section
from counterfoil.conformance.suite import Kind, Known, Outcome

_COLOURS = {Kind.PASSED: "green", Kind.FELL_SHORT: "red", Kind.NOT_TRIED: "yellow"}
_FINDINGS_SHOWN = 3
_NOT_XML = re.compile("[^\t\n\r\u0020-\ud7ff\ue000-\ufffd\U00010000-\U0010ffff]")


def counts(outcomes: Sequence[Outcome]) -> Counter[Kind]:
    """How many cases ended in each way."""
    return Counter(outcome.kind for outcome in outcomes)


def is_met(outcomes: Sequence[Outcome]) -> bool:
    """Whether the server did what the cases ask: something was tried and nothing fell short."""
    found = counts(outcomes)
    return found[Kind.FELL_SHORT] == 0 and found[Kind.PASSED] > 0


def print_table(console: Console, url: str, sections: Sequence[Section], outcomes: Sequence[Outcome]) -> None:
    """A table of all cases grouped by section, what fell short in full, and a line that sums up."""
    for section in sections:
        of_section = [outcome for outcome in outcomes if outcome.section == section.section]
        if of_section:
            console.print(_table(section, of_section))
    for outcome in outcomes:
        if outcome.kind is Kind.FELL_SHORT:
            _print_findings(console, outcome)
    console.print(f"{escape(url)}: {summary(outcomes)}", soft_wrap=True, highlight=False)


def summary(outcomes: Sequence[Outcome]) -> str:
    """The counts in one line."""
    found = counts(outcomes)
    return ", ".join(f"{found[kind]} {kind.value}" for kind in Kind)


def _table(section: Section, outcomes: Sequence[Outcome]) -> Table:
    title = f"{section.section}. {escape(section.title)}: {summary(outcomes)}"
    table = Table(title=title, title_justify="left", title_style="bold", expand=True, show_header=False)
    table.add_column("case", ratio=1, no_wrap=True, overflow="ellipsis")
    table.add_column("outcome", width=10)
    table.add_column("why", ratio=1, no_wrap=True, overflow="ellipsis")
    for outcome in outcomes:
        colour = _COLOURS[outcome.kind]
        table.add_row(escape(outcome.case.name), f"[{colour}]{outcome.kind.value}[/]", escape(_why(outcome)))
    return table


def _why(outcome: Outcome) -> str:
    if not outcome.findings:
        return outcome.why
    first = outcome.findings[0]
    return f"expected {first.expected}, came {first.came}"


def _print_findings(console: Console, outcome: Outcome) -> None:
    lines = [f"[bold red]{escape(outcome.case.name)}[/] (section {outcome.section}, {outcome.case.mark})"]
    lines.append(f"  rule      {escape(outcome.case.rule)}")
    lines.append(f"  sent      {escape(outcome.findings[0].request)}")
    for finding in outcome.findings[:_FINDINGS_SHOWN]:
        lines.append(f"  expected  {escape(finding.expected)}")
        lines.append(f"  came      {escape(finding.came)}")
    if len(outcome.findings) > _FINDINGS_SHOWN:
        lines.append(f"  and {len(outcome.findings) - _FINDINGS_SHOWN} more (all of them: --json)")
    console.print("\n".join(lines), soft_wrap=True, highlight=False)
    console.print()


def as_json(url: str, known: Known, outcomes: Sequence[Outcome]) -> dict[str, Any]:
    """The whole of a run as JSON; its members are described in docs/conformance.md."""
    found = counts(outcomes)
    return {
        "url": url,
        "limits": dict(known.limits),
        "limits_offered": known.are_limits_offered,
        "passed": found[Kind.PASSED],
        "fell_short": found[Kind.FELL_SHORT],
        "not_tried": found[Kind.NOT_TRIED],
        "cases": [_case_as_json(outcome) for outcome in outcomes],
    }


def _case_as_json(outcome: Outcome) -> dict[str, Any]:
    return {
        "section": outcome.section,
        "name": outcome.case.name,
        "rule": outcome.case.rule,
        "mark": outcome.case.mark,
        "outcome": outcome.kind.name.lower(),
        "why": outcome.why,
        "seconds": round(outcome.seconds, 3),
        "findings": [{"sent": f.request, "expected": f.expected, "came": f.came} for f in outcome.findings],
    }


def as_junit(sections: Sequence[Section], outcomes: Sequence[Outcome]) -> bytes:
    """The run as JUnit's XML: a suite a section; what was not tried is skipped."""
    root = Xml.Element("testsuites", {"name": "counterfoil conformance", **_junit_counts(outcomes)})
    for section in sections:
        of_section = [outcome for outcome in outcomes if outcome.section == section.section]
        if of_section:
            name = f"{section.section}. {section.title}"
            suite = Xml.SubElement(root, "testsuite", {"name": name, **_junit_counts(of_section)})
            for outcome in of_section:
                _add_junit_case(suite, outcome)
    xml: bytes = Xml.tostring(root, encoding="utf-8", xml_declaration=True)
    return xml


def _junit_counts(outcomes: Sequence[Outcome]) -> dict[str, str]:
    found = counts(outcomes)
    return {
        "tests": str(len(outcomes)),
        "failures": str(found[Kind.FELL_SHORT]),
        "errors": "0",
        "skipped": str(found[Kind.NOT_TRIED]),
        "time": f"{sum(outcome.seconds for outcome in outcomes):.3f}",
    }


def _add_junit_case(suite: Xml.Element, outcome: Outcome) -> None:
    attributes = {"classname": f"section {outcome.section}", "name": outcome.case.name}
    case = Xml.SubElement(suite, "testcase", {**attributes, "time": f"{outcome.seconds:.3f}"})
    if outcome.kind is Kind.NOT_TRIED:
        Xml.SubElement(case, "skipped", message=_clean(outcome.why))
    if outcome.kind is Kind.FELL_SHORT:
        failure = Xml.SubElement(case, "failure", message=_clean(_why(outcome)))
        told = [f"sent: {f.request}\nexpected: {f.expected}\ncame: {f.came}" for f in outcome.findings]
        failure.text = _clean("\n\n".join([outcome.case.rule, *told]))


def _clean(text: str) -> str:
    """Text without the characters that XML can't carry."""
    return _NOT_XML.sub("\N{REPLACEMENT CHARACTER}", text)
