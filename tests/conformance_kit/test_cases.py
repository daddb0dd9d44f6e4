"""The case files that are shipped can be read, sent and believed."""

import re
from collections import Counter
from pathlib import Path

import pytest

from counterfoil.conformance.cases import Case, CaseFileInvalid, Section, read_section, shipped_sections
from counterfoil.conformance.expressions import evaluate, holds
from counterfoil.conformance.judging import judge
from counterfoil.conformance.requests import Prepared, prepare
from counterfoil.conformance.suite import DEFAULT_LIMITS, UNITS
from counterfoil.conformance.templates import Values, render_text
from counterfoil.conformance.wire import Answer

SECTIONS = shipped_sections()
CASES = [(section, case) for section in SECTIONS for case in section.case]
LIMITS = {**DEFAULT_LIMITS, "row_bytes_max": 4 * 1024 * 1024, **UNITS, "now": 1_790_000_000_000}
"""The contract's limits, but with room in a row for a free-form object that is too large."""
TEXTS = {
    "token": "T",
    "test_token": "T2",
    "unknown_token": "an unknown token",
    "secret": "S",
    "host": "h",
    "base": "/api/v1",
}


def each_of(cases: list[tuple[Section, Case]]) -> pytest.MarkDecorator:
    """A test for each of these cases, named after it."""
    return pytest.mark.parametrize(
        ("section", "case"), cases, ids=[f"{section.section}: {case.name}" for section, case in cases]
    )


all_cases = each_of(CASES)
SENDABLE = [(section, case) for section, case in CASES if not any("bomb" in name for name in case.parts)]
"""Without those of some gigabytes, which the suite alone sends."""


def values_of(case: Case) -> Values:
    """What the placeholders of a case stand for."""
    return Values(TEXTS, LIMITS, "cf-00000000-9-99", case.parts)


def test_every_section_of_the_contract_has_its_file() -> None:
    """One file a section, in the contract's order, each with cases."""
    assert [section.section for section in SECTIONS] == list("123456789")
    assert all(section.case for section in SECTIONS)


def test_no_two_cases_of_a_section_have_the_same_name() -> None:
    """A name says which case is meant."""
    names = Counter((section.section, case.name) for section, case in CASES)
    assert [name for name, count in names.items() if count > 1] == []


@all_cases
def test_a_case_says_its_rule_and_expects_something(section: Section, case: Case) -> None:
    """Every case states a rule in a sentence, and each of its steps can fail."""
    assert case.rule.endswith(".")
    assert len(case.name) <= 70
    for expected in (case.expect, *(step.expect for step in case.then)):
        assert expected.status or expected.rows or expected.every or expected.success
        assert judge(expected, Answer(500, (), b"", 0.1), values_of(case), each=section.words_of(case))


@each_of(SENDABLE)
def test_a_case_can_be_sent(section: Section, case: Case) -> None:
    """Its templates name nothing that nobody knows, and it is within an HTTP client's reach."""
    for request in (case.send, *(step.send for step in case.then if step.send)):
        prepared = prepare(request, values_of(case), section.words_of(case))
        if isinstance(prepared, Prepared):
            assert prepared.path.startswith("/")
            assert all(value.isascii() for _, value in prepared.headers)


@all_cases
def test_what_a_case_needs_is_known(section: Section, case: Case) -> None:
    """Conditions and sums name limits that exist."""
    for need in case.needs:
        if need not in ("test_token", "limits", "slow"):
            holds(need, LIMITS)
    for expected in (case.expect, *(step.expect for step in case.then)):
        evaluate(expected.count or 0, LIMITS)
        evaluate(expected.limit or 0, LIMITS)
        for template in expected.hides:
            assert len(render_text(template, values_of(case))) >= 5
    assert section.words_of(case) or not case.each


@all_cases
def test_as_many_results_are_expected_as_rows_are_sent(section: Section, case: Case) -> None:
    """A slip in counting would blame the server."""
    if case.send.rows is not None and case.expect.rows is not None:
        assert len(case.send.rows) == len(case.expect.rows)
    if case.expect.every is not None and case.expect.count is None:
        assert case.send.row is not None
        assert section.words_of(case)


def test_every_word_list_is_used() -> None:
    """A list that no case goes through is a rule that nobody tests."""
    for section in SECTIONS:
        assert section.words.keys() == {case.each for case in section.case if isinstance(case.each, str)}


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("section = ", "broken.toml"),
        ('section = "1"\ntitle = "t"\n[[case]]\nname = "n"', "rule"),
        ('section = "1"\ntitle = "t"\ncase = []\nmore = 1', "more"),
        ('section = "1"\ntitle = "t"\n[[case]]\nname = "n"\nrule = "r"\nsend.row = 5\nexpect.status = 1', "send.row"),
    ],
)
def test_a_broken_file_says_where(text: str, told: str) -> None:
    """Who writes cases is told the file, the place and what was expected."""
    with pytest.raises(CaseFileInvalid, match=re.escape(told)) as raised:
        read_section(text, "broken.toml")
    assert str(raised.value).startswith("broken.toml: ")


def test_words_that_are_not_there_are_told() -> None:
    """A case that names a list of another file is refused."""
    text = (
        'section = "1"\ntitle = "t"\n[[case]]\nname = "n"\nrule = "r"\nsend.row = "{}"\neach = "x"\nexpect.status = 1'
    )
    section = read_section(text, "one.toml")
    with pytest.raises(CaseFileInvalid, match="no words of the name x"):
        section.words_of(section.case[0])


def test_the_page_names_every_key_and_placeholder() -> None:
    """Who writes cases by docs/conformance.md alone misses nothing."""
    page = Path("docs/conformance.md").read_text(encoding="utf-8")
    from counterfoil.conformance import cases, templates

    structs = (cases.Section, cases.Case, cases.Request, cases.Raw, cases.Part, cases.Step, cases.Expectation)
    for name in {field for struct in structs for field in struct.__struct_fields__}:
        assert f"`{name}`" in page, name
    for placeholder in re.findall(r"\{\{[^{}]*\}\}", templates.__doc__ or ""):
        assert placeholder in page, placeholder
    for name in DEFAULT_LIMITS:
        assert f"`{name}`" in page, name
