"""Weighs steps of both sides anew: with edits of torch's step in force, or from other weights."""

import dataclasses
import itertools
from collections.abc import Iterator

import numpy as np

from compare.alignment.pairings import Pairing, Read
from compare.numerics.distance import distance, norm
from compare.step.observation import Observation
from compare.step.stage import Stage
from compare.verdict.following import Followed
from compare.verdict.ratio import FACTOR, Quantity

FITTED = 1e-9
"""The largest relative difference that a fitted number leaves, if it is the cause."""


class Weighing:
    """What decides, weighed step by step.

    The rounding of the float32 runs and of the moved runs stays as it was measured without edits. An edit changes what
    is computed, and not how well: measuring again would cost six runs for each edit.

    Args:
        followed: What following both sides without edits has found.
        end: The number of the first quantity that is left out; None for none.
        fitted: Whether a number was fitted for an edit. What is left of a difference by its last digits is none.

    """

    def __init__(self, followed: Followed, end: int | None = None, *, fitted: bool = False) -> None:
        self._least = FITTED if fitted else 0.0
        pairs = zip(followed.pairings, followed.quantities, strict=True)
        self._each = [
            (place, pairing, quantity, dataclasses.replace(quantity, error64=[], missing=set()))
            for place, (pairing, quantity) in enumerate(itertools.islice(pairs, end))
            if pairing.decides
        ]
        self._residues = Residues()

    def differing(self, torch: Observation, jax: Observation) -> Iterator[tuple[int, Pairing]]:
        """Yield what differs at the next step, in order of computation, each with its number."""
        for place, pairing, base, quantity in self._each:
            ours, theirs = computed(pairing.torch_array, torch), computed(pairing.jax_array, jax)
            step = len(quantity.error64)
            if ours is None or theirs is None:
                quantity.add_absent("error64", differs=(ours is None) != (theirs is None))
            else:
                quantity.error64.append(apart(pairing, torch, ours, theirs))
                if self._residues.has(pairing, base, step, ours, theirs):
                    continue
            if quantity.ratio[-1] > FACTOR and quantity.error64[-1] > self._least:
                yield place, pairing


class Residues:
    """Gradients that an edit makes zero in exact arithmetic, and what an optimizer makes of them.

    As a softmax over queries has no gradient by the queries' bias. Both sides then compute a residue of rounding, and
    two residues have no digit in common. Adam even divides one by its own size.
    """

    def __init__(self) -> None:
        self._parameters: set[str] = set()

    def has(self, pairing: Pairing, base: Quantity, step: int, ours: np.ndarray, theirs: np.ndarray) -> bool:
        """Tell whether both arrays are such a residue at a step, or come from one; `base` was measured without edits.

        What comes from a gradient is asked for after it.
        """
        if pairing.stage in (Stage.UPDATE, Stage.PARAMETERS):
            return not self._parameters.isdisjoint(base.subjects[0])
        size = base.sizes[step][0] if step < len(base.sizes) else 0.0
        zero = max(norm(ours), norm(theirs)) <= FACTOR * float(base.expected[step]) * size
        if pairing.stage == Stage.GRADIENT and zero and size:
            self._parameters.update(base.subjects[0])
        return zero


def apart(pairing: Pairing, torch: Observation, ours: np.ndarray, theirs: np.ndarray) -> float:
    """Give the distance of a quantity of both sides at a step of torch's."""
    return distance(theirs, ours, 0.0 if pairing.operands is None else norm(pairing.operands(torch)))


def computed(reader: Read, seen: Observation) -> np.ndarray | None:
    """Read a tensor; None where a step does not compute it."""
    try:
        array: np.ndarray = reader(seen)
    except KeyError:
        return None
    return array
