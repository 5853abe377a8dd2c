"""The first place at which two sides differ, and the independent differences."""

import dataclasses
from collections.abc import Callable, Collection, Sequence
from typing import NamedTuple

import numpy as np

from compare.alignment.pairings import Pairing, shown
from compare.numerics.distance import distance, norm
from compare.step.observation import Observation
from compare.verdict.between import place_name
from compare.verdict.divergence import Divergence
from compare.verdict.following import Followed
from compare.verdict.ratio import FACTOR, Quantity

COARSE = 1e-4
"""The largest relative difference that a cause may leave, however much rounding there is."""


class Found(NamedTuple):
    """A divergence, with what is needed to explain it."""

    divergence: Divergence
    pairing: Pairing
    before: Pairing | None
    """The last thing that did not differ."""
    limit: float
    """The float64 difference that rounding would explain, with the safety factor, but for that of tables in float32."""
    target: np.ndarray | None = None
    """What the JAX side gives from the torch side's values, in torch's layout."""
    known: bool = False
    """Whether the divergence has its cause already."""
    outside: bool = False
    """Whether its cause is looked for in all that the step does before it outside of modules."""
    carried: np.ndarray | None = None
    """What the JAX side gives where its modules alone have torch's values, and a sum past them has its own."""
    follows: bool = False
    """Whether it differs only because such a sum carries an earlier difference there."""


def first_divergence(followed: Followed, independent: Collection[Found] | None = None) -> Found | None:
    """The first difference beyond rounding, in order of computation; None if nothing that decides differs.

    Args:
        followed: What following both sides has found.
        independent: The independent differences, where they are known. What happens inside the model then comes first
            only if it is among these. Without it, it does if it is the first to differ.

    """
    wrong = [quantity.ratio > FACTOR for quantity in followed.quantities]
    deciding = [int(np.argmax(w)) for p, w in zip(followed.pairings, wrong, strict=True) if p.decides and w.any()]
    if not deciding:
        return None
    # The step is that of what decides. Inside the model, a difference at an earlier step was undone by
    # the end of it.
    step = min(deciding)
    before: Pairing | None = None
    each_one = enumerate(zip(followed.pairings, followed.quantities, wrong, strict=True))
    for number, (pairing, quantity, w) in each_one:
        may_be = pairing.decides or independent is None or any(each.pairing is pairing for each in independent)
        if w[step] and may_be and not pairing.accepted:
            return found_at(step, number, pairing, quantity, before)
        before = before if step in quantity.missing else pairing
    return None


def together(found: Found, pairings: Sequence[Pairing], seen: Observation) -> Found:
    """Read several quantities as one vector, in place of the one that differs.

    Args:
        found: The difference.
        pairings: Of the quantities; both sides have them all.
        seen: A step of the JAX side from torch's weights.

    """

    def of_torch(observation: Observation) -> np.ndarray:
        return np.concatenate([np.ravel(each.torch_array(observation)) for each in pairings])

    def of_jax(observation: Observation) -> np.ndarray:
        return np.concatenate([np.ravel(each.jax_array(observation)) for each in pairings])

    pairing = found.pairing._replace(torch_array=of_torch, jax_array=of_jax)
    return found._replace(pairing=pairing, target=of_jax(seen))


def found_at(
    step: int,
    number: int,
    pairing: Pairing,
    quantity: Quantity,
    before: Pairing | None,
    target: np.ndarray | None = None,
) -> Found:
    """Describe a difference at a step, with its number; `before` is the last thing that did not differ."""
    place, error32 = _place(pairing, before), float(quantity.rounding[step])
    opinion = ""
    if (lost := quantity.lost_by(step)) is not None:
        opinion = f"in float32 the {lost} side alone is not finite there. Are its numbers too large for float32?"
    expected64 = float(quantity.expected[step])
    divergence = Divergence(step, pairing.stage, *place, quantity.error64[step], error32, expected64, opinion=opinion)
    divergence = dataclasses.replace(divergence, modules=_modules(pairing, before), number=number)
    # A cause must explain the difference down to float64's rounding. The larger allowance for float32 tables would let
    # any cause pass that comes near, and so would rounding that is as large as differences are.
    limit = min(FACTOR * float(quantity.expected_alone[step]), COARSE)
    return Found(divergence, pairing, before, limit, target)


class StepDifferences:
    """Weighs steps of the JAX side in which each part starts from torch's values.

    Args:
        followed: What following both sides has found: torch's rounding.
        skipped: What these steps do not show.

    """

    def __init__(self, followed: Followed, skipped: Callable[[Pairing], bool]) -> None:
        self._pairings, self._skipped = followed.pairings, skipped
        self._quantities = [dataclasses.replace(quantity, error64=[]) for quantity in followed.quantities]
        self._excused = [quantity.excused for quantity in followed.quantities]
        self._found: dict[int, Found] = {}

    def at(self, torch: Observation, jax: Observation) -> list[int]:
        """Give the numbers of what differs at the next step."""
        step = len(self._quantities[0].error64)
        return [
            number
            for number, (pairing, quantity) in enumerate(zip(self._pairings, self._quantities, strict=True))
            if not self._skipped(pairing) and self._differs(number, quantity, step, _apart(pairing, torch, jax))
        ]

    def _differs(self, number: int, quantity: Quantity, step: int, apart: float) -> bool:
        """Tell whether a difference is more than rounding, and than what float64 alone makes different there."""
        return quantity.differs(step, apart) and not apart <= 2 * self._excused[number][step]

    def add(self, torch: Observation, jax: Observation, inner: Collection[int]) -> None:
        """Weigh the next step, where inside the model only what has one of these numbers counts."""
        before: Pairing | None = None
        for number, (pairing, quantity) in enumerate(zip(self._pairings, self._quantities, strict=True)):
            step = len(quantity.error64)
            quantity.error64.append(0.0 if self._skipped(pairing) else _apart(pairing, torch, jax))
            counts = pairing.decides or number in inner
            apart = quantity.error64[step]
            if counts and number not in self._found and self._differs(number, quantity, step, apart):
                target = np.array(pairing.jax_array(jax))
                self._found[number] = found_at(step, number, pairing, quantity, before, target)
            before = before if self._skipped(pairing) or step in quantity.missing else pairing

    def found(self) -> list[Found]:
        """Give all independent differences, in order of computation."""
        return [self._found[number] for number in sorted(self._found)]


def _apart(pairing: Pairing, torch: Observation, jax: Observation) -> float:
    """Give how far a quantity is apart; 0 where one side does not compute it at this step."""
    ours, theirs = shown(pairing.torch_array, torch), shown(pairing.jax_array, jax)
    if ours is None or theirs is None:
        return 0.0
    return distance(theirs, ours, 0.0 if pairing.operands is None else norm(pairing.operands(torch)))


def _place(pairing: Pairing, before: Pairing | None) -> tuple[str, str]:
    """Name a place on both sides: a tensor, a module, or what is computed between two modules."""
    if pairing.ports is None:
        return pairing.torch, pairing.jax
    starts = before.ports if before and before.ports else pairing.ports
    ours, theirs = (place_name(*ends) for ends in zip(starts, pairing.ports, strict=True))
    return ours, theirs


def _modules(pairing: Pairing, before: Pairing | None) -> tuple[str, str] | None:
    """Give the paths of the module that differs, if what comes before it is its own input, or part of the same call."""
    if pairing.ports is None:
        return None
    starts = before.ports if before and before.ports else pairing.ports
    if any(start[:2] != port[:2] for start, port in zip(starts, pairing.ports, strict=True)):
        return None
    return pairing.ports[0].path, pairing.ports[1].path
