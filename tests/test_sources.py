"""Senders: tokens find their source, allowlists say where an event goes, and what can't be is refused."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from counterfoil.contract.limits import Limits
from counterfoil.contract.text import WHITESPACE
from counterfoil.errors import SettingsInvalid
from counterfoil.sources import (
    AllowedEvent,
    Route,
    Sources,
    SourceSettings,
    compared,
    token_sha256,
)

LIMITS = Limits()


def source(name: str = "website", **settings: object) -> SourceSettings:
    return SourceSettings.model_validate({"name": name, **settings})


def allowing(*events: str | AllowedEvent, destinations: set[str] | None = None) -> Sources:
    return Sources([source(token_sha256=(token_sha256("t"),), allowed_events=events)], LIMITS, destinations)


def route(sources: Sources, event: str) -> Route:
    sender = sources.find("t")
    assert sender is not None
    return sender.route(event)


def test_a_token_finds_its_source() -> None:
    """Live and test tokens find the same source and are told apart; any other token finds none."""
    sources = Sources(
        [
            source("website", token_sha256=(token_sha256("live"),), test_token_sha256=(token_sha256("test"),)),
            source("shop", token_sha256=(token_sha256("other"),)),
        ],
        LIMITS,
    )
    live, test, other = (sources.find(token) for token in ("live", "test", "other"))
    assert live is not None
    assert (live.source, live.is_test) == ("website", False)
    assert test is not None
    assert (test.source, test.is_test) == ("website", True)
    assert other is not None
    assert other.source == "shop"
    assert sources.find("unknown") is None
    assert sources.find("\ud800") is None


def test_every_token_of_a_source_is_valid_while_it_is_rotated() -> None:
    """The old token and the new one both find the source, until the old one is taken away."""
    both = source(token_sha256=(token_sha256("old"), token_sha256("new")))
    sources = Sources([both], LIMITS)
    assert sources.find("old") == sources.find("new") != None  # noqa: E711
    sources.replace([source(token_sha256=(token_sha256("new"),))], LIMITS)
    assert sources.find("old") is None
    assert sources.find("new") is not None


def test_settings_that_are_refused_leave_the_old_ones_in_place() -> None:
    """When the new settings can't be used, every token goes on to find what it found."""
    sources = Sources([source(token_sha256=(token_sha256("t"),))], LIMITS)
    with pytest.raises(SettingsInvalid):
        sources.replace([source("a"), source("a")], LIMITS)
    assert sources.find("t") is not None


def test_a_name_stands_for_one_source() -> None:
    """Two sources of one name are refused, and the message names the second."""
    with pytest.raises(SettingsInvalid, match=r"^sources\[1\]\.name: expected a name that no other source"):
        Sources([source(), source()], LIMITS)


@pytest.mark.parametrize(
    "second",
    [
        {"token_sha256": (token_sha256("t"),)},
        {"test_token_sha256": (token_sha256("t"),)},
        {"test_token_sha256": (token_sha256("x"), token_sha256("x"))},
    ],
)
def test_a_token_stands_for_one_sender(second: dict[str, object]) -> None:
    """A token of two sources, or live and test at once, is refused without being named."""
    with pytest.raises(SettingsInvalid, match=r"^sources\[1\]\.(test_)?token_sha256\[\d\]: expected a token") as caught:
        Sources([source(token_sha256=(token_sha256("t"),)), source("shop", **second)], LIMITS)
    assert token_sha256("t") not in str(caught.value)


def test_a_source_without_an_allowlist_lets_everything_pass() -> None:
    """Every event goes everywhere, names of the system too."""
    sources = Sources([source(token_sha256=(token_sha256("t"),))], LIMITS)
    assert route(sources, "$anything") == Route(is_allowed=True, destinations=None)


def test_an_empty_allowlist_blocks_everything() -> None:
    """A list without entries allows no event, which is not the same as no list."""
    assert not route(allowing(), "Purchase").is_allowed


@given(
    st.sampled_from(["Sign Up", "sign up", "SIGN UP"]),
    st.text(WHITESPACE, max_size=3),
    st.text(WHITESPACE, max_size=3),
)
def test_events_are_compared_trimmed_and_without_case(name: str, before: str, after: str) -> None:
    """White space around a name and its case make no difference, on either side."""
    assert route(allowing("Sign Up"), before + name + after).is_allowed
    assert route(allowing(before + name + after), "sign up").is_allowed
    assert not route(allowing("Sign Up"), "SignUp").is_allowed


def test_white_space_is_javascripts() -> None:
    """A BOM is trimmed; the separators that Python alone calls white space are not."""
    assert compared("\ufeff A\u00a0") == "a"
    assert compared("\x1cA\x85") == "\x1ca\x85"


def test_an_entry_names_the_destinations_it_is_for() -> None:
    """Absent is everywhere, an empty list is allowed and delivered nowhere, names come sorted and once."""
    sources = allowing(
        "A",
        AllowedEvent(event="B", destinations=()),
        AllowedEvent(event="C", destinations=("lake", "crm", "lake")),
        destinations={"lake", "crm"},
    )
    assert route(sources, "a") == Route(is_allowed=True, destinations=None)
    assert route(sources, "b") == Route(is_allowed=True, destinations=())
    assert route(sources, "c") == Route(is_allowed=True, destinations=("crm", "lake"))


def test_of_the_systems_names_only_identify_may_stand_on_an_allowlist() -> None:
    """`$identify` is taken, in any case; any other name with a dollar is refused."""
    assert route(allowing("$identify"), "$identify").is_allowed
    assert route(allowing(" $Identify "), "$identify").is_allowed
    with pytest.raises(SettingsInvalid, match=r"allowed_events\[1\]: expected a name without \$"):
        allowing("A", "$other")


@pytest.mark.parametrize(
    ("events", "message"),
    [
        (("A", " a"), r"allowed_events\[1\]: expected each event once"),
        (("A", AllowedEvent(event="a", destinations=())), r"allowed_events\[1\]: expected each event once"),
        (("\ufeff",), r"allowed_events\[0\]: expected an event's name"),
        (
            (AllowedEvent(event="A", destinations=("lke",)),),
            r"\.destinations: expected names of destinations, found lke",
        ),
    ],
)
def test_an_allowlist_that_can_not_be_meant_is_refused(events: tuple[str | AllowedEvent, ...], message: str) -> None:
    """An event listed twice, an empty name, a destination that isn't there: each is named."""
    with pytest.raises(SettingsInvalid, match=message):
        allowing(*events, destinations={"lake"})


@pytest.mark.parametrize(
    ("source_days", "limit_days", "expected_ms"),
    [(None, 7, 604_800_000), (None, 0, None), (0, 7, None), (30, 7, 2_592_000_000), (1, 0, 86_400_000)],
)
def test_a_source_may_set_its_own_time_window(
    source_days: int | None, limit_days: int, expected_ms: int | None
) -> None:
    """Its days count before the general limit, and 0 is without end in both places."""
    sources = Sources(
        [source(token_sha256=(token_sha256("t"),), max_age_days=source_days)], Limits(age_days_max=limit_days)
    )
    sender = sources.find("t")
    assert sender is not None
    assert sender.rules.age_ms_max == expected_ms


def test_a_token_is_kept_trimmed() -> None:
    """The hash of a token with white space around it is that of the token alone, as requests are looked up."""
    assert token_sha256(" t\n") == token_sha256("t")
