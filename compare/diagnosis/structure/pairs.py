"""Two edits at a time with which torch gives what the JAX side gives: where no single one does."""

import itertools
from collections.abc import Iterable, Iterator, Sequence
from typing import NamedTuple

from compare.diagnosis.structure.budget import Budget
from compare.diagnosis.structure.edit import Edit, Kind
from compare.diagnosis.structure.step import Step


class Tried(NamedTuple):
    """An edit, and how far it leaves torch from the JAX side: 1 is near enough."""

    edit: Edit
    apart: float


SAME = 1e-9
"""Two edits whose results are nearer than this compute the same."""

TABLES = 60
"""So many edits of tables are tried in all pairs."""

NEAREST = 60
"""So many edits, those that bring torch nearest, are tried with one another, and then with every other."""

FIRST = 8
"""So many of these are tried with every other before the usual edits are."""

USUAL = 300
"""Of the usual edits, so many are tried in all pairs."""

_USUAL = set(Kind) - {Kind.OPERAND, Kind.ADDED, Kind.SCALE, Kind.TWICE}


def fitting_pairs(here: Step, tried: Sequence[Tried], budget: Budget) -> Iterator[Iterator[list[Edit]]]:
    """Find pairs of edits that leave only rounding, of one sort after another.

    Of n edits there are n²/2 pairs, with n in the thousands. Where two mistakes do not interact, as in two branches of
    a sum, correcting one of them already removes part of the difference. So only an edit that brings torch nearer is
    tried with every other. The likelier sorts come first.

    Args:
        here: The step.
        tried: Single edits, the likeliest first.
        budget: What the search may cost.

    """
    before = here.leaves([])
    # What changes nothing alone, such as a factor of weights that are normalized, is seen only together with another
    # edit, which it turns into a third: no fault of its own.
    tried = [each for each in tried if abs(each.apart - before) > SAME * before]
    # A place that no parameter goes into is a table itself: with the JAX side's own, any second edit would fit.
    if not any(number in here.context.from_parameters for _, number in here.context.nodes[-1].inputs):
        tried = [each for each in tried if each.edit.kind not in (Kind.TABLE, Kind.NUMBERS)]
    every = [each.edit for each in tried]
    of_tables = [edit for edit in every if edit.kind in (Kind.TABLE, Kind.NUMBERS)][:TABLES]
    usual = [edit for edit in every if edit.kind in _USUAL][:USUAL]
    nearer = sorted((each for each in tried if each.apart < before), key=lambda each: each.apart)[:NEAREST]
    near = [each.edit for each in nearer]
    left = ((first, every) for first in near)
    stages = (
        (_among(of_tables), 0.75),  # of sines and cosines, of means and deviations
        (_among(near), 0.75),
        (itertools.islice(left, FIRST), 0.5),
        (_among(usual), 0.75),
        (left, 1.0),
    )
    for pairs, share in stages:
        yield _fitting(here, pairs, budget, share)


def _fitting(
    here: Step, pairs: Iterable[tuple[Edit, Sequence[Edit]]], budget: Budget, share: float
) -> Iterator[list[Edit]]:
    """Try each first edit with its others, while a share of the budget is left."""
    for first, others in pairs:
        yield from ([first, second] for second in _with(here, first, others, budget, share))
        if not budget.left(share):
            return


def _among(edits: Sequence[Edit]) -> Iterator[tuple[Edit, Sequence[Edit]]]:
    """Return each edit with those after it."""
    return ((edit, edits[number + 1 :]) for number, edit in enumerate(edits))


def _with(here: Step, first: Edit, others: Iterable[Edit], budget: Budget, share: float) -> Iterator[Edit]:
    """Return the other edits that fit together with the first, while a share of the budget is left."""
    having = here.having(first)  # what it changes is computed once, for all of the others
    for second in others:
        if not budget.left(share):
            return
        # Alone the first may fail, by a shape that the second makes fit.
        if (
            _elsewhere(first, second)
            and not (first.kind == second.kind == Kind.ADDED and _may_undo(first, second))
            and (here.leaves([first, second]) if having is None else having.leaves([second])) <= 1
        ):
            yield second


def _may_undo(one: Edit, other: Edit) -> bool:
    """Return whether one added operation may undo the other, so that both say something of what lies between them.

    x / 4 + x / 4 is what a port with x / 2 computes. Queries shifted, and scores shifted back, have another mask.
    """
    return one.factor or other.factor or (one.order and other.order)


def _elsewhere(one: Edit, other: Edit) -> bool:
    """Return whether two edits are of different operations."""
    return {number for number, _ in one.at}.isdisjoint(number for number, _ in other.at)
