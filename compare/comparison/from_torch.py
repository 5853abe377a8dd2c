"""A run of the JAX side in which each part of a step starts from torch's values."""

import dataclasses
from collections.abc import Mapping, Sequence

import numpy as np

from compare.alignment.pairings import shown
from compare.comparison.common_runs import CommonRuns
from compare.jax_side.given import Given
from compare.step.batch import Batch
from compare.step.draws import Draw
from compare.step.observation import Observation, Port, to_numpy
from compare.step.stage import Stage
from compare.verdict.following import Followed
from compare.verdict.ratio import FACTOR
from compare.weights.links import to_jax


class FromTorch:
    """A float64 run of the JAX side in which each module, the loss and the optimizer start from torch's values.

    A difference then shows only in the part that causes it, and not in everything that is computed from it.
    """

    def __init__(self, runs: CommonRuns, followed: Followed) -> None:
        self.pair, self.run = runs.pair, runs.pair.jax_run("float64").taking_values()
        self.forward = [pairing for pairing in followed.pairings if pairing.ports and pairing.to_jax]
        self.gradients = [pairing for pairing in followed.pairings if pairing.stage == Stage.GRADIENT]
        pairs = zip(followed.pairings, followed.quantities, strict=True)
        effects = (max(quantity.tables, default=0.0) for pairing, quantity in pairs if pairing.ports)
        self.tables = FACTOR * max(effects, default=0.0)
        """How far the rounding of tables in float32 may move the model's outputs, with the safety factor."""
        self.accumulated = False
        """Whether its optimizers are given gradients as torch's backward pass leaves them, such as before clipping."""
        self.left_out: set[Port] = set()
        """Where the JAX side differs and corrects it later: torch's values would be wrong there."""
        self.onward: set[Port] = set()
        """Where the JAX side differs, and all that uses the same variable later has torch's value too."""

    @property
    def ports(self) -> frozenset[Port]:
        """Torch's inputs and outputs of modules at which this run has torch's values."""
        ports = [pairing.ports for pairing in self.forward if pairing.ports]
        return frozenset(torch for torch, jax in ports if jax not in self.left_out)

    def load(self, arrays: Mapping[str, np.ndarray]) -> None:
        """Give it torch's parameters and buffers."""
        self.run.load(to_jax(self.pair.links, arrays, self.run.arrays()))

    def given(self, seen: Observation) -> Given:
        """Return what torch has `seen` in a step, as the JAX side has it."""
        ports = {
            pairing.ports[1]: pairing.to_jax(value)
            for pairing in self.forward
            if pairing.ports and pairing.to_jax and (value := shown(pairing.torch_array, seen)) is not None
        }
        read = {**seen.gradients, **(seen.accumulated if self.accumulated else {})}
        gradients = {name: to_numpy(gradient) for name, gradient in read.items()}
        # Gradients do not add up as values do: see `align_tensors`.
        shared = [dataclasses.replace(link, adds=False) for link in self.pair.links if link.torch in gradients]
        made = to_jax(shared, gradients, {name: np.zeros_like(array) for name, array in self.run.arrays().items()})
        # What torch does not train has no gradient there: the optimizer gets the JAX side's own.
        own = made.keys() - {link.jax for link in shared}
        return Given(ports, made, ports.keys() - self.left_out, own)

    def step(self, seen: Observation, batch: Batch, draws: Sequence[Draw]) -> Observation:
        """Take one step, from the values that torch has `seen` in the same step."""
        given = self.given(seen)._replace(onward=frozenset(self.onward))
        return self.run.step(batch, draws, given)


class Repeated:
    """One step of such a run, taken as often as wanted from where the run is now, with other values given."""

    def __init__(self, jax: FromTorch, batch: Batch, draws: Sequence[Draw], seen: Observation) -> None:
        self.run, self._batch, self._draws = jax.run, batch, draws
        self.given = jax.given(seen)
        self._values = list(self.run.values)

    def __call__(self, given: Given) -> Observation:
        """Take the step."""
        self.run.values = list(self._values)
        return self.run.step(self._batch, self._draws, given)
