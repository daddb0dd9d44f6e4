"""The verdicts: the fast path says what `judge` says."""

from __future__ import annotations

import numpy as np
from hypothesis import example, given
from hypothesis import strategies as st

from counterfoil.contract.facts import ERASED_VERDICT_SHIFT, RowFlag, Verdict
from counterfoil.ledger import pack_seen, unpack_seen
from counterfoil.ledger.records import Seq
from counterfoil.pipeline.settle import judge, judge_rows

# Few keys and contents, so that they meet; keys that differ in their first or last half alone.
keys = st.sampled_from([bytes(16), bytes(15) + b"\1", b"\1" + bytes(15), b"\xff" * 16, b"\1" * 16])
contents = st.sampled_from([0, 1, 2**64 - 1])
erased = [RowFlag.ERASED | RowFlag(verdict << ERASED_VERDICT_SHIFT) for verdict in Verdict]
flags = st.sampled_from(
    [RowFlag(0), *RowFlag, RowFlag.TEST | RowFlag.BLOCKED, RowFlag.ERASED | RowFlag.BLOCKED, *erased]
)
rows = st.lists(st.tuples(keys, contents, flags), max_size=30)


def one_by_one(
    group: list[tuple[bytes, int, RowFlag]], index: dict[bytes, int]
) -> tuple[list[Verdict], dict[bytes, int]]:
    """Verdicts and first rows, row by row."""
    firsts = dict(index)
    verdicts = []
    for key, content, flag in group:
        verdict = judge(flag, content, firsts.get(key))
        if verdict is Verdict.NEW and RowFlag.ERASED not in flag:
            firsts[key] = content
        verdicts.append(verdict)
    return verdicts, firsts


@given(rows, st.dictionaries(keys, contents))
@example([], {})
@example([(bytes(16), 1, RowFlag.TEST)], {})
@example([(bytes(16), 0, RowFlag.ERASED), (bytes(16), 0, erased[3]), (bytes(16), 0, RowFlag(0))], {})
@example([(bytes(16), 1, RowFlag(0)), (bytes(16), 2, RowFlag(0)), (bytes(16), 1, RowFlag(0))], {})
def test_rows_are_judged_as_one_by_one(group: list[tuple[bytes, int, RowFlag]], index: dict[bytes, int]) -> None:
    """A group's rows get the verdicts that each would get by itself, in order, and claim the same keys.

    Rows that were erased claim none and are nobody's repeats.
    """
    asked: list[bytes] = []

    def seen(sought: list[bytes]) -> list[bytes | None]:
        asked.extend(sought)
        return [pack_seen(Seq(5), index[key], 9) if key in index else None for key in sought]

    judged = judge_rows(
        np.frombuffer(b"".join(key for key, _, _ in group), np.uint8).reshape(-1, 16),
        np.array([content for _, content, _ in group], "<u8"),
        np.array([flag for _, _, flag in group], np.uint8),
        seen,
    )
    verdicts, firsts = one_by_one(group, index)
    assert judged.verdicts.tolist() == verdicts
    assert {group[row][0]: group[row][1] for row in judged.new_rows} == {
        key: content for key, content in firsts.items() if key not in index
    }
    no_claim = RowFlag.TEST | RowFlag.BLOCKED | RowFlag.ERASED
    assert asked == sorted({key for key, _, flag in group if not flag & no_claim})
    new = [group[row][0] for row in judged.new_rows]
    assert new == sorted(set(new))
    repeats = [(group[row][0], row) for row in judged.repeat_rows]
    assert repeats == sorted(repeats)
    assert sorted([*judged.new_rows.tolist(), *judged.repeat_rows.tolist()]) == [
        row for row, (_, _, flag) in enumerate(group) if RowFlag.ERASED not in flag
    ]


@given(st.integers(0, 2**64 - 1), st.integers(0, 2**64 - 1), st.integers(0, 65_535))
def test_what_the_seen_index_holds_unpacks_to_itself(seq: int, content: int, day: int) -> None:
    """Nothing of a key's first row is lost in 18 bytes."""
    assert unpack_seen(pack_seen(Seq(seq), content, day)) == (seq, content, day)
