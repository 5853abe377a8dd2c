"""Decides which differences inside a model affect the verdict, and which the rest of the step undoes.

A port may add an axis that broadcasting takes away again, apply a factor later than torch does, or return from a
container at another place. Inside the model the two sides then differ, and yet compute the same. Such differences are
found by experiment. Call a place wrong if the JAX side computes something else there from torch's values. With torch's
values at all wrong places, the rest of the step is right. Then the JAX side's own value is put back at one of them:

- If nothing changes that decides, and nothing at another wrong place, the difference does not last. What differs there
  is not used, or is the same once it is broadcast.
- If another wrong place becomes right, the two cancel, and neither lasts. So does a factor that one side applies
  before a sum and the other side after it.
- Otherwise it lasts.

The second rule tells what is undone from what is only hidden behind a later wrong place: there, the JAX side still
computes something wrong, and not the same as before.

The same numbers in another order, as of heads before positions, are an exception: behind them, torch's order is wrong
in a port that has its own throughout. Such a difference lasts only if something is right with torch's order.
"""

import itertools
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import NamedTuple

import numpy as np

from compare.numerics.distance import distance

RUNS = 60
"""Of the JAX side's step, at most, to tell what lasts at one step."""

PAIRED = 8
"""The largest number of places of which any two are also put back together: they may cancel only jointly."""


class Outcome(NamedTuple):
    """What a step shows with torch's values at some places. Places and quantities are known by number."""

    values: Mapping[int, np.ndarray]
    """What the JAX side computes at the wrong places, and as outputs and loss."""
    wrong: frozenset[int]
    """What is farther from torch than rounding explains, of these and of all else that decides."""


Reordered = Callable[[int, np.ndarray], bool]
"""Tells whether a value at a place has torch's numbers in another order."""

Experiment = Callable[[frozenset[int]], Outcome]
"""Takes the step with torch's values at some of the wrong places."""


def _in_order(_place: int, _value: np.ndarray) -> bool:
    return False


def lasting(
    places: Sequence[int], step: Experiment, limits: Mapping[int, float], reordered: Reordered = _in_order
) -> list[int]:
    """Return those of the wrong places whose difference lasts.

    Args:
        places: In the order of computation.
        step: Takes the step. With torch's values at all `places`, the rest of it is right.
        limits: For each of an outcome's values, the distance that rounding explains.
        reordered: Tells which values are torch's in another order.

    """
    experiments = _Experiments(step, limits, reordered)
    kept = list(places)
    while undone := next(experiments.undone(kept), None):
        kept = [place for place in kept if place not in undone]
    return kept


class _Experiments:
    """Puts the JAX side's own values back, and remembers every outcome."""

    def __init__(self, step: Experiment, limits: Mapping[int, float], reordered: Reordered) -> None:
        self.step, self.limits, self.reordered = step, limits, reordered
        self.known: dict[frozenset[int], Outcome] = {}

    def undone(self, kept: Sequence[int]) -> Iterator[frozenset[int]]:
        """Yield sets of places that do not last, where torch's values are at all that are `kept`."""
        given = frozenset(kept)
        tried = [frozenset([place]) for place in kept]
        # Two transposes that undo each other are wrong singly. Pairs are tried up to 8 places: 28 runs, and
        # each is a step.
        if len(kept) <= PAIRED:
            tried += map(frozenset, itertools.combinations(kept, 2))
        for removed in tried:
            if len(self.known) >= RUNS:
                return
            if found := self._undone_with(removed, given):
                yield found

    def _undone_with(self, removed: frozenset[int], given: frozenset[int]) -> frozenset[int]:
        """Return the places that need no value of torch's once those `removed` have none; nothing if these last."""
        before, after = self._outcome(given), self._outcome(given - removed)
        # A place is reached if the JAX side's value there changes with what was put back before it.
        reached = frozenset(
            place
            for place in before.values.keys() - removed
            if distance(after.values[place], before.values[place]) > self.limits[place]
        )
        # It lasts if what it reaches is wrong now, or if anything that decides has become wrong.
        wrong = reached & after.wrong
        if wrong <= before.wrong and all(self.reordered(place, after.values[place]) for place in removed):
            wrong = frozenset()
        if wrong or (after.wrong - before.wrong) - given:
            return frozenset()
        undone = removed | ((reached & given) - after.wrong)
        # What was reached and became right must also be right without torch's values: the two cancel only
        # together.
        if undone != removed and self._outcome(given - undone).wrong - before.wrong - given:
            return frozenset()
        return undone

    def _outcome(self, given: frozenset[int]) -> Outcome:
        if given not in self.known:
            self.known[given] = self.step(given)
        return self.known[given]
