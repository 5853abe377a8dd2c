"""Puts the layers of two models side by side by their kinds, in order of execution."""

import dataclasses
import math
from collections.abc import Iterator, Sequence
from itertools import accumulate, product, takewhile

from compare.report.shapes import Call, Row, alike
from compare.weights.layers import KINDS

WHOLE = "the model"
"""The name of what no layer is."""

Calls = Sequence[Call]
"""All calls of one layer."""

RECURRENT = ("lstm", "gru", "rnn")

_PAIR = 1_000_000
"""What a pair counts: more than all agreements of shapes and names together."""


def rows(ours: Sequence[Calls], theirs: Sequence[Calls]) -> list[Row]:
    """Put partners side by side: layers of the same kind, in the same order."""
    aligned = list(_aligned(ours, theirs))
    return [
        dataclasses.replace(row, not_comparable="one layer for several") if _fused(aligned, number) else row
        for number, row in enumerate(aligned)
    ]


def _fused(rows: Sequence[Row], number: int) -> bool:
    """Whether one side has one layer for several of the other, such as query, key and value: their sizes add up."""
    row = rows[number]
    if not row.differs or row.torch is None or row.jax is None:
        return False
    for alone, whole in ((row.torch, row.jax), (row.jax, row.torch)):
        on_torch = alone is row.torch
        before = _lonely(rows[:number][::-1], alone, on_torch=on_torch)
        after = _lonely(rows[number + 1 :], alone, on_torch=on_torch)
        # Any of the parts may be the one that was paired.
        sums = {b + a for b in (0, *accumulate(before)) for a in (0, *accumulate(after))}
        if _size(whole) - _size(alone) in sums - {0}:
            return True
    return False


def _lonely(rows: Sequence[Row], like: Call, *, on_torch: bool) -> Iterator[int]:
    """Yield the sizes of the next layers without a partner that are of the same kind."""
    for row in takewhile(lambda row: row.torch is None or row.jax is None, rows):
        call = row.torch if on_torch else row.jax
        if call is not None and call.shape is not None and _kind(call) == _kind(like):
            yield _size(call)


def _size(call: Call) -> int:
    return math.prod(call.shape or ())


def _aligned(ours: Sequence[Calls], theirs: Sequence[Calls]) -> Iterator[Row]:
    ahead = iter(_pairs(ours, theirs))
    i = j = 0
    for a, b in (*ahead, (len(ours), len(theirs))):
        yield from (Row(_merged(calls), None) for calls in ours[i:a])
        yield from (Row(None, _merged(calls)) for calls in theirs[j:b])
        if a < len(ours) and b < len(theirs):
            yield from _partners(ours[a], theirs[b])
        i, j = a + 1, b + 1


def _pairs(ours: Sequence[Calls], theirs: Sequence[Calls]) -> list[tuple[int, int]]:
    """Find the longest common subsequence of kinds; of several, the one with the most equal shapes and names.

    A layer that one side lacks shifts nothing. Shapes only break ties: if they counted for more, a layer of another
    size would get the next layer as its partner, and the difference would not show.
    """
    n, m = len(ours), len(theirs)
    best = [[0] * (m + 1) for _ in range(n + 1)]
    for i, j in product(reversed(range(n)), reversed(range(m))):
        best[i][j] = max(best[i + 1][j], best[i][j + 1], _score(ours[i], theirs[j]) + best[i + 1][j + 1])
    pairs, i, j = [], 0, 0
    while i < n and j < m:
        # A scanned layer stands for many of torch. What comes after it belongs to the last of equally good partners,
        # what comes before it to the first.
        late = best[i][j] == best[i + 1][j] and any(calls[0].inside for calls in theirs[:j])
        if not late and best[i][j] == _score(ours[i], theirs[j]) + best[i + 1][j + 1]:
            pairs.append((i, j))
            i, j = i + 1, j + 1
        elif best[i][j] == best[i + 1][j]:
            i += 1
        else:
            j += 1
    return pairs


def _score(ours: Calls, theirs: Calls) -> int:
    a, b = ours[0], theirs[0]
    if _kind(a) != _kind(b):
        return -_PAIR
    same_shape = a.shape is not None and b.shape is not None and alike(a.shape, b.shape)
    return _PAIR + same_shape + (a.name.replace(".", "/") == b.name)


def _partners(ours: Calls, theirs: Calls) -> Iterator[Row]:
    """Yield a row for each call; one row where one side calls the layer more often, so that no call has a partner."""
    a, b = _merged(ours), _merged(theirs)
    failed = any(call.raised for call in (*ours, *theirs))
    if b.inside or (len(ours) != len(theirs) and not failed):
        yield Row(a, b, _reason(a, b))
    else:
        pairs = zip(ours, theirs, strict=False)
        yield from (Row(*pair) for pair in pairs)
        shared = min(len(ours), len(theirs))
        yield from (Row(call, None) for call in ours[shared:])
        yield from (Row(None, call) for call in theirs[shared:])


def _merged(calls: Calls) -> Call:
    """Make one of all calls of a layer; it has their shape, if that is the same."""
    shape = calls[0].shape if len({call.shape for call in calls}) == 1 else None
    raised = any(call.raised for call in calls)
    return dataclasses.replace(calls[0], shape=shape, times=len(calls), raised=raised)


def _reason(a: Call, b: Call) -> str:
    """Say why calls have no shapes to compare."""
    once = a.times == 1 or b.times == 1
    if _kind(a) in RECURRENT and once:
        return "once per time step"
    return "inside scan, vmap or checkpoint" if b.inside else f"{a.times} and {b.times} calls"


def _kind(call: Call) -> str:
    return call.name if call.name == WHOLE else KINDS.get(call.kind, call.kind)
