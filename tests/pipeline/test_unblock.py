"""What was blocked goes through the queue once more, for today's destinations, and is judged like any row."""

from __future__ import annotations

from counterfoil.contract.facts import RowFlag, Verdict
from counterfoil.ledger import Group, Ledger, RoutedCount
from counterfoil.pipeline.replay import ReplayFilter
from counterfoil.pipeline.settings import PipelineSettings
from counterfoil.pipeline.settle import Settler
from counterfoil.pipeline.unblock import Unblocking
from counterfoil.positions import DirectoryId, FramePosition, SegmentNumber
from counterfoil.queue.frame import FrameDraft, parse_frame, seal_frame
from counterfoil.sources import EVERYWHERE, Route, SourceSettings, router
from tests.pipeline.frames import HEADER_BYTES, MemoryQueue, Row

WRITER, ANEW = DirectoryId(b"writer-1"), DirectoryId(b"writer-2")
BLOCKED = RowFlag.BLOCKED


def append(queue: MemoryQueue, draft: FrameDraft) -> None:
    start = queue.ends.get(ANEW, FramePosition(ANEW, SegmentNumber(1), HEADER_BYTES))
    frame = parse_frame(b"".join(seal_frame(draft, start, 0)), 0, start)
    queue.frames.setdefault(ANEW, []).append(frame)
    queue.ends[ANEW] = start._replace(offset=start.offset + frame.frame_bytes)


def settle(queue: MemoryQueue, ledger: Ledger) -> None:
    settler = Settler(queue, ledger, PipelineSettings(), lambda: 1_000)
    while settler.step():
        pass


def verdicts(ledger: Ledger, number: int) -> list[Verdict]:
    group = ledger.group(number)
    assert isinstance(group, Group)
    return [Verdict(each) for each in group.verdicts]


def searched(
    ledger: Ledger, queue: MemoryQueue, destination: str = "lake", route: Route = EVERYWHERE, source: str | None = None
) -> tuple[Unblocking, list[FrameDraft]]:
    routing = {"web": route}
    search = Unblocking(ledger, queue, destination, lambda of, event: routing.get(of), ReplayFilter(source=source))
    return search, list(search.drafts())


def test_blocked_rows_are_judged_anew_in_their_order(ledger: Ledger, queue: MemoryQueue) -> None:
    """New, duplicate, conflict by the same judge; what came again since, or of a source that is no more, stays."""
    queue.append(
        WRITER, "web", [Row("a", 1, BLOCKED), Row("b", flags=BLOCKED | RowFlag.VERSION_FROM_HEADERS), Row("c")]
    )
    queue.append(WRITER, "web", [Row("a", 1, BLOCKED), Row("a", 2, BLOCKED), Row("d", flags=BLOCKED)])
    queue.append(WRITER, "old", [Row("a", flags=BLOCKED)])
    queue.append(WRITER, "web", [Row("d"), Row("t", flags=BLOCKED | RowFlag.TEST)])
    ledger.register_destination("lake")
    settle(queue, ledger)
    search, drafts = searched(ledger, queue)
    assert (search.blocked, search.known, search.allowed["web"], search.unreadable) == (6, 1, 4, 0)
    for draft in drafts:
        append(queue, draft)
    settle(queue, ledger)
    assert verdicts(ledger, 2) == [Verdict.NEW, Verdict.NEW, Verdict.DUPLICATE, Verdict.CONFLICT]
    frame = queue.frames[ANEW][0]
    assert frame.facts.flags.tolist() == [0, RowFlag.VERSION_FROM_HEADERS]
    assert (frame.received_at_ms, frame.request_id) == (1, bytes(16))
    assert searched(ledger, queue)[1] == []


def test_they_go_where_the_allowlist_says_today(ledger: Ledger, queue: MemoryQueue) -> None:
    """To its destinations alone; a destination that it does not name is told there is nothing."""
    queue.append(WRITER, "web", [Row("a", flags=BLOCKED), Row("b", flags=BLOCKED)])
    ledger.register_destination("lake")
    settle(queue, ledger)
    route = Route(is_allowed=True, destinations=("hook", "lake"))
    assert searched(ledger, queue, "pond", route)[1] == []
    assert searched(ledger, queue, "lake", route, source="app")[1] == []
    assert searched(ledger, queue, "lake", Route(is_allowed=False, destinations=None))[1] == []
    for draft in searched(ledger, queue, "lake", route)[1]:
        append(queue, draft)
    settle(queue, ledger)
    group = ledger.group(2)
    assert isinstance(group, Group)
    assert group.routed == (RoutedCount("web", ("hook", "lake"), 2),)


def test_a_frame_that_can_not_be_read_is_counted(ledger: Ledger, queue: MemoryQueue) -> None:
    """Its rows stay blocked; those of the next are settled anew."""
    first = queue.append(WRITER, "web", [Row("a", flags=BLOCKED)])
    queue.append(WRITER, "web", [Row("b", flags=BLOCKED)])
    settle(queue, ledger)
    queue.damaged.add(first.position)
    search, drafts = searched(ledger, queue)
    assert (search.unreadable, len(drafts)) == (1, 1)


def test_routes_are_those_of_the_settings() -> None:
    """Without an allowlist everything passes; with one, by name without regard to case."""
    assert router(SourceSettings(name="web"))("Any") == EVERYWHERE
    route = router(SourceSettings(name="web", allowed_events=("Sign Up",)))
    assert route(" sign up ").is_allowed
    assert not route("Purchase").is_allowed
