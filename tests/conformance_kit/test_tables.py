"""The word lists of section 4 are the tables that our server goes by: a field in one and not in the other is a slip."""

import pytest

from counterfoil.conformance.cases import shipped_sections
from counterfoil.contract.fields import DEFAULT_PROPERTIES, USER_PROPERTIES, Field, Table

WORDS = next(section.words for section in shipped_sections() if section.section == "4")


def is_text(field: Field) -> bool:
    return field.type == "string"


@pytest.mark.parametrize(("prefix", "table"), [("default", DEFAULT_PROPERTIES), ("user", USER_PROPERTIES)])
def test_the_lists_are_the_tables(prefix: str, table: Table) -> None:
    """Each list holds exactly the properties that its name says."""
    fields = table.values()
    expected = {
        "all": fields,
        "text": [f for f in fields if is_text(f)],
        "only_text": [f for f in fields if is_text(f) and not f.to_text],
        "to_text": [f for f in fields if f.to_text],
        "text_2000": [f for f in fields if f.max_length == 2000],
        "text_5000": [f for f in fields if f.max_length == 5000],
        "unbounded_text": [f for f in fields if is_text(f) and f.max_length is None],
        "number": [f for f in fields if f.type == "number"],
        "boolean": [f for f in fields if f.type == "boolean"],
        "any": [f for f in fields if f.type == "any"],
        "map": [f for f in fields if f.type == "map"],
    }
    names = {name: sorted(f.name for f in found) for name, found in expected.items()}
    if names["only_text"] == names["text"]:
        del names["only_text"]
    lists = {name.removeprefix(f"{prefix}_"): sorted(words) for name, words in WORDS.items() if name.startswith(prefix)}
    assert lists == {name: found for name, found in names.items() if found}


def test_what_is_trimmed_before_it_is_counted_has_a_length() -> None:
    """The cases of 2,000 characters with space around them go through every property of that length."""
    for table in (DEFAULT_PROPERTIES, USER_PROPERTIES):
        assert all(field.trim for field in table.values() if field.max_length == 2000)
