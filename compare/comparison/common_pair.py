"""A torch side and its port with their weights mapped: models or programs."""

import abc
import copy
from collections.abc import Mapping, Sequence
from typing import Any, Self

import numpy as np

from compare.alignment.optimizer_state import Settings
from compare.alignment.pairings import Alignment
from compare.comparison.elsewhere import moved_inputs, perturbed
from compare.comparison.own_values import OwnValues, other_own_values
from compare.comparison.selection import Selection
from compare.numerics.distance import EPSILON32, ULPS, distance
from compare.step.batch import Batch
from compare.step.draws import NO_HINTS, Hints
from compare.step.observation import Observation, Port, to_numpy
from compare.torch_side.layers import is_statistic
from compare.verdict.following import Followed
from compare.verdict.ratio import FACTOR
from compare.weights.links import WeightMap, to_jax


class CommonPair(abc.ABC):
    """Both sides, their batches, and which tensor of one is which of the other: runs of either side start from it.

    Args:
        torch: The original.
        jax: The port.
        batches: The steps' batches, at least one, each as a step takes it.
        device: "cpu" or "cuda".
        selection: What is compared, and what is accepted.

    """

    links: WeightMap
    kinds: tuple[Mapping[str, str], Mapping[str, str]]
    """The class of each module that ran, by path: torch's, and the JAX side's."""
    start: Mapping[str, np.ndarray]
    """The torch side's values at the start, by name."""
    given: dict[str, np.ndarray]
    """The arrays that the port came with."""
    parameters: dict[str, bool]
    """Whether each of torch's parameters may be trained, by name."""
    unsaved: frozenset[str]
    """The names of torch's buffers with `persistent=False`."""
    buffers: frozenset[str]
    """The names of what the port keeps beside its parameters."""
    size: int
    """The number of elements that are trained, or kept in the state."""
    overwritten: frozenset[Port] = frozenset()
    """What the torch side overwrites in place, and a record must copy."""
    hints: Hints = NO_HINTS
    """What is known of the layouts of the JAX side's draws and weights."""
    moved = False
    """Whether the torch side starts from other values than its own."""

    def __init__(self, torch: Any, jax: Any, batches: list[Any], device: str, selection: Selection | None) -> None:
        self.torch, self.jax, self.batches, self.device = torch, jax, batches, device
        self.selection = selection or Selection()
        self.nondeterministic: list[str] = []
        """How two runs of the torch side differ, as text."""

    @abc.abstractmethod
    def torch_run(self, dtype: str) -> Any:
        """Start a run of the torch side."""

    @abc.abstractmethod
    def jax_run(self, dtype: str) -> Any:
        """Start a run of the JAX side from the torch side's values."""

    @abc.abstractmethod
    def align(self, torch: Observation, jax: Observation, settings: Mapping[str, Settings]) -> Alignment:
        """Pair everything that a step of both sides shows; `settings` are torch's optimizers', by parameter."""

    @property
    def examples(self) -> list[Batch]:
        """The batches, with their targets where a loss takes them apart."""
        return self.batches

    def _as_taken(self, batches: Sequence[Batch]) -> list[Any]:
        """Give batches as a step takes them."""
        return list(batches)

    def movable(self, name: str) -> bool:
        """Return whether a tensor may have any value: a parameter or a statistic, but no table and no counter."""
        return name in self.parameters or is_statistic(name)

    def moved_batches(self, draw: int, epsilon: float) -> list[Any]:
        """Return the batches with their real inputs moved by rounding; draw 0 is as they are."""
        return self._as_taken([moved_inputs(batch, draw, epsilon) for batch in self.examples])

    def elsewhere(self, start: Mapping[str, np.ndarray]) -> Self:
        """Return the same pair with other values of torch's to start from, and on other batches of the same shapes."""
        other = copy.copy(self)
        other.start, other.moved, other.batches = start, True, self._as_taken(perturbed(self.examples))
        return other

    def load(self, run: Any) -> None:
        """Start a run of the JAX side again, from the torch side's values."""
        run.restart()
        run.load(to_jax(self.links, self.start, run.arrays()))

    def other_own_values(self, followed: Followed) -> OwnValues:
        """Find the tables of which the port came with other values than torch's."""
        return other_own_values(
            self.links, followed, self.start, self.given, self.parameters, self.buffers, self.unsaved
        )

    def _note_nondeterminism(self, what: str, name: str, values: tuple[Any, Any | None]) -> bool:
        """Note that two runs of torch with the same random numbers differ, if they do, and return whether they do.

        With these, dropout repeats. What still differs comes from elsewhere, such as NumPy's generator, a counter in
        the model, or atomic additions on a GPU.
        """
        one, two = values
        apart = np.inf if two is None else distance(to_numpy(two), to_numpy(one))
        if apart > FACTOR * ULPS * EPSILON32:
            self.nondeterministic.append(
                f"the torch {what} is not deterministic: with the same batch and the same torch random "
                f"numbers, two runs gave {name} with values {apart:.0e} apart. Does it draw from numpy or "
                "random, or keep state between calls?"
            )
            return True
        return False
