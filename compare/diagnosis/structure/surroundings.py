"""What is known around a divergence."""

from collections.abc import Callable, Collection, Iterable, Sequence
from typing import NamedTuple

import numpy as np

from compare.alignment.pairings import Read
from compare.alignment.pairings import shown as value_of
from compare.diagnosis.held_out import MARGIN, HeldOut
from compare.diagnosis.structure.budget import Budget
from compare.diagnosis.structure.step import apart
from compare.jax_side.from_data import FromData
from compare.step.batch import Batch
from compare.step.observation import Observation, Port
from compare.verdict.first_difference import Found


class Gradients(NamedTuple):
    """All gradients of the step at which one of them differs, and of others."""

    found: Found
    """Its pairing reads them as one vector."""
    held_out: Iterable[HeldOut]


class Surroundings(NamedTuple):
    """What is known around a divergence."""

    given: Collection[Port]
    """Torch's inputs and outputs of modules at which the JAX side has torch's values."""
    budget: Budget
    """What the search may cost."""
    outputs: Callable[[], list[tuple[Port, np.ndarray]]] = list
    """Gives what the JAX side's whole model gives by itself, in torch's layout, by torch's ports."""
    gradients: Gradients | None = None
    """Where a gradient differs first."""
    theirs: Callable[[Batch], FromData] = lambda batch: FromData()
    """Gives what the JAX side's program computes of a batch."""
    shown: Sequence["Shown"] = ()
    """What else the JAX side's step shows."""
    tables: float = 0.0
    """How far tables in float32 may move what the model gives, on either side."""
    later: Sequence["Shown"] = ()
    """What the JAX side has later in the step, such as the gradients of a loss. Where torch agrees, a cause must leave
    it so."""
    others: Sequence[tuple[Port, np.ndarray]] = ()
    """Where else in the model the two differ, each from torch's values, and what the JAX side gives there."""


class Shown(NamedTuple):
    """A value of the steps of both sides, such as one term of a loss, or a gradient."""

    read: Read
    """Reads it in a step of torch's."""
    theirs: np.ndarray
    limit: float
    """The distance that rounding explains."""

    def agrees(self, seen: Observation) -> bool:
        """Tell whether a step of torch's shows what the JAX side's does; an update that is not due shows nothing."""
        ours = value_of(self.read, seen)
        return ours is not None and apart(np.asarray(ours, np.float64), self.theirs) <= MARGIN * self.limit
