"""Frames: the cuts of a request, and the facts that go with each row."""

from hypothesis import given
from hypothesis import strategies as st

from counterfoil.contract.facts import RowFlag
from counterfoil.contract.limits import Limits
from counterfoil.contract.rows import JudgedRows
from counterfoil.gateway.frames import DraftedFrame, Frames, Receipt
from counterfoil.positions import DirectoryId, FramePosition, SegmentNumber
from counterfoil.queue.frame import Frame, parse_frame, seal_frame
from counterfoil.queue.settings import QueueSettings
from counterfoil.sources import AllowedEvent, Sender, Sources, SourceSettings, token_sha256

POSITION = FramePosition(DirectoryId(b"12345678"), SegmentNumber(1), 0)
ALLOWED = (AllowedEvent(event="a", destinations=("x",)), "b", AllowedEvent(event="c", destinations=()))


def sender(*, is_test: bool = False, allowed_events: tuple[str | AllowedEvent, ...] | None = None) -> Sender:
    tokens = {"test_token_sha256" if is_test else "token_sha256": (token_sha256("t"),)}
    settings = SourceSettings.model_validate({"name": "website", "allowed_events": allowed_events, **tokens})
    found = Sources([settings], Limits()).find("t")
    assert found is not None
    return found


def judged(bodies: list[bytes], events: list[str], has_version: list[bool]) -> JudgedRows:
    count = len(bodies)
    hashes = [index.to_bytes(8, "little") for index in range(count)]
    return JudgedRows(
        count, list(range(count)), bodies, [str(i) for i in range(count)], events, hashes, has_version, {}
    )


def receipt(of: Sender, version: str | None = None) -> Receipt:
    return Receipt(of, version, 1_750_000_000_000, bytes(16))


def read_back(drafted: DraftedFrame) -> Frame:
    return parse_frame(b"".join(seal_frame(drafted.draft, POSITION, 0)), 0, POSITION)


@given(
    st.lists(st.integers(1, 5000).map(lambda size: b"x" * size), max_size=60),
    st.integers(1, 20),
)
def test_frames_hold_every_row_once_in_order_and_within_bounds(bodies: list[bytes], rows_max: int) -> None:
    """Each frame begins where the one before ended; it takes another row only while it is below its bytes."""
    bytes_max = 64 * 1024
    frames = Frames(QueueSettings(frame_rows_max=rows_max, frame_bytes_max=bytes_max))
    count = len(bodies)
    drafted = frames.draft(judged(bodies, ["a"] * count, [False] * count), receipt(sender()))
    assert [frame.start for frame in drafted] == [0, *(frame.end for frame in drafted)][: len(drafted)]
    assert (drafted[-1].end if drafted else 0) == count
    for frame in drafted:
        assert 0 < frame.end - frame.start <= rows_max
        assert sum(map(len, bodies[frame.start : frame.end - 1])) < bytes_max
        back = read_back(frame)
        assert [back.row(index) for index in range(back.facts.row_count)] == bodies[frame.start : frame.end]
        assert list(back.facts.content_hashes) == list(range(frame.start, frame.end))


@given(
    st.lists(st.tuples(st.sampled_from(["a", "A ", "b", "c", "d"]), st.booleans()), min_size=1, max_size=30),
    st.booleans(),
    st.booleans(),
    st.sampled_from([None, "ingest-sdk-python/2.1.0"]),
    st.integers(1, 10),
)
def test_each_row_has_its_own_facts(
    rows: list[tuple[str, bool]], is_test: bool, is_listed: bool, version: str | None, rows_max: int
) -> None:
    """Flags and destinations are those of the row's own event and version, however the request was cut."""
    whose = sender(is_test=is_test, allowed_events=ALLOWED if is_listed else None)
    events, has_version = [event for event, _ in rows], [has for _, has in rows]
    drafted = Frames(QueueSettings(frame_rows_max=rows_max)).draft(
        judged([b"{}"] * len(rows), events, has_version), receipt(whose, version)
    )
    found = [
        (RowFlag(int(facts.flags[index])), facts.destinations_of(int(facts.destination_set[index])))
        for facts in (read_back(frame).facts for frame in drafted)
        for index in range(facts.row_count)
    ]
    for (event, has), (flags, destinations) in zip(rows, found, strict=True):
        route = whose.route(event)
        expected = RowFlag(0)
        if is_test:
            expected |= RowFlag.TEST
        if not route.is_allowed:
            expected |= RowFlag.BLOCKED
        if version is not None and not has:
            expected |= RowFlag.VERSION_FROM_HEADERS
        assert (flags, destinations) == (expected, route.destinations)


@given(
    st.sampled_from(["a", "A ", "b", "c", "d"]),
    st.booleans(),
    st.booleans(),
    st.booleans(),
    st.sampled_from([None, "ingest-sdk-python/2.1.0"]),
    st.sampled_from(["none", "zstd"]),
    st.binary(min_size=1, max_size=100),
)
def test_the_frame_of_one_row_is_the_same_either_way(
    event: str, has_version: bool, is_test: bool, is_listed: bool, version: str | None, compression: str, body: bytes
) -> None:
    """The short way of a /track gives byte for byte what the way of many rows gives."""
    frames = Frames(QueueSettings.model_validate({"compression": compression}))
    whose = receipt(sender(is_test=is_test, allowed_events=ALLOWED if is_listed else None), version)
    rows = judged([body], [event], [has_version])
    (drafted,) = frames.draft(rows, whose)
    assert frames.draft_row(rows, whose) == drafted.draft


def test_origins_that_senders_make_up_do_not_heap_up() -> None:
    """What is remembered of senders' versions stays small, however many there are."""
    frames = Frames(QueueSettings())
    for index in range(5000):
        (drafted,) = frames.draft(judged([b"{}"], ["a"], [False]), receipt(sender(), f"ingest-sdk-x/{index}"))
    assert read_back(drafted).sender_version == "ingest-sdk-x/4999"
    assert len(frames._origins) <= 1024
