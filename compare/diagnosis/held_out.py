"""Decides whether a hypothesis is a cause: it must also hold at steps to which it was not fitted.

A number that is fitted to one number always fits: at a scalar any factor, slope or smoothing can be solved for. So each
hypothesis is tried at other steps, which differ from the first by their weights and batches. Write f for the count of
its free numbers. A hypothesis is a cause if

- no held-out step contradicts it: it explains the difference there too, and where the sides agree it leaves them so;
- the equations that it satisfies, those to which it was fitted and one for each held-out step, exceed its free numbers
  by f + 1 or more: as many confirmations as free numbers, plus one.

At the place itself an array counts as one equation if it is only scaled or shifted: one number then explains any size.
"""

from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple

import numpy as np

from compare.diagnosis.rewriting import Repeatable
from compare.numerics.distance import distance
from compare.step.draws import Draw

MARGIN = 16.0
"""How much more rounding may be at a held-out step, whose weights are others."""

EXPLAINED = 1e-6
"""What a cause may leave of a difference to which it was not fitted: it explains all but a millionth."""

EXACTLY = 1e-9
"""What one with a number that nobody writes, such as 0.0277779, may leave: 1/36 and a small term fit it nearly."""

STEPS = 6
"""Held-out steps at most."""

TRIED = 3
"""Held-out steps that must not contradict a cause: the one before, one with other weights, and one that comes later."""

ENOUGH = 4
"""Equations that an array counts for at most."""


class HeldOut(NamedTuple):
    """A step of both sides from the same values, to which no hypothesis was fitted."""

    run: Repeatable
    """The torch side before the step."""
    batch: Any
    draws: Sequence[Draw]
    target: np.ndarray
    """What the JAX side gives there, in torch's layout."""


class Fit(NamedTuple):
    """How well a hypothesis explains the place to which it was fitted."""

    before: float
    """How far the sides are apart without it, relatively."""
    after: float
    """How far they are apart with it."""
    equations: int
    """How many equations it satisfies there."""
    free: int
    """How many of its numbers were fitted."""
    explained: float = EXPLAINED
    """What it may leave of a difference to which it was not fitted."""


class Evidence:
    """Held-out steps, made one by one as they are asked for; each is used for every hypothesis.

    Args:
        steps: Each gives the distance of torch from the JAX side at a held-out step, for a hypothesis or for none.
        limit: The distance that rounding would explain at the place itself.

    """

    def __init__(self, steps: Iterator[Callable[[object], float | None]], limit: float) -> None:
        self._steps, self._limit = steps, limit
        self._made: list[tuple[Callable[[object], float | None], float]] = []

    def confirms(self, hypothesis: object, fit: Fit) -> bool:
        """Tell whether a hypothesis is a cause."""
        surplus = fit.equations - fit.free
        # A number is known only as well as it was determined; elsewhere it explains no larger share.
        # A number that leaves 1e-9 of the difference here is known to about 1e-9, and can leave as much
        # elsewhere.
        share = max(fit.explained, MARGIN * max(fit.after, self._limit) / fit.before) if fit.before else 1.0
        least = TRIED if fit.equations > 1 else STEPS  # of a single number, each step confirms little
        for tried, (measure, before) in enumerate(self._all()):
            if surplus > fit.free and tried >= least:
                break
            after = measure(hypothesis)
            near = max(MARGIN * self._limit, share * before)
            if after is None or after > near:
                return False
            surplus += before > MARGIN * near  # where the sides agree, nothing is confirmed
        return surplus > fit.free

    def _all(self) -> Iterator[tuple[Callable[[object], float | None], float]]:
        yield from self._made
        for measure in self._steps:
            before = measure(None)
            if before is not None and np.isfinite(before):
                self._made.append((measure, before))
                yield self._made[-1]


def equations(ours: np.ndarray, theirs: np.ndarray, limit: float) -> int:
    """Count the equations of an array: 1 if the two arrays are equal up to a factor and an offset.

    Args:
        ours: Torch's array.
        theirs: The JAX side's.
        limit: The distance that rounding would explain.

    """
    if ours.shape != theirs.shape or ours.size < ENOUGH or not (np.isfinite(ours).all() and np.isfinite(theirs).all()):
        return 1
    # If theirs = a · ours + b exactly, every change that scales or shifts the array fits it with one
    # number, and its thousand elements are one or two equations. If not, a single number that fits all
    # elements is confirmed by them.
    design = np.stack([ours.ravel(), np.ones(ours.size)], axis=1)
    straight = design @ np.linalg.lstsq(design, theirs.ravel(), rcond=None)[0]
    left = distance(straight.reshape(theirs.shape), theirs)
    return ENOUGH if left > max(MARGIN * limit, EXPLAINED * distance(ours, theirs)) else 1
