"""What differs by itself: every part of every step starts from the torch side's values."""

import dataclasses
from collections.abc import Iterator, Mapping, Sequence

import numpy as np

from compare.alignment.optimizer_state import jax_state
from compare.comparison.runs import Runs
from compare.step.batch import Batch
from compare.step.draws import Draw
from compare.step.observation import Observation, Port, to_numpy
from compare.verdict.first_difference import Found, independent_divergences
from compare.verdict.following import Followed
from compare.weights.links import to_jax


class FromTorch:
    """A float64 run of the JAX side of which each part starts from what torch has there."""

    def __init__(self, runs: Runs, followed: Followed) -> None:
        self.pair, self.run = runs.pair, runs.pair.jax_run("float64")
        self._forward = [pairing for pairing in followed.pairings if pairing.ports and pairing.to_jax]

    @property
    def ports(self) -> frozenset[Port]:
        """Torch's inputs and outputs of modules at which this run has torch's values."""
        return frozenset(pairing.ports[0] for pairing in self._forward if pairing.ports)

    def load(self, arrays: Mapping[str, np.ndarray]) -> None:
        """Give it torch's parameters and buffers."""
        self.run.load(to_jax(self.pair.links, arrays, self.run.arrays()))

    def step(self, seen: Observation, batch: Batch, draws: Sequence[Draw]) -> Observation:
        """Take one step, from the values that torch has `seen` in the same step."""
        given = {p.ports[1]: p.to_jax(p.torch_array(seen)) for p in self._forward if p.ports and p.to_jax}
        gradients = {name: to_numpy(gradient) for name, gradient in seen.gradients.items()}
        shared = [dataclasses.replace(link, adds=False) for link in self.pair.links if link.torch in gradients]
        return self.run.step(batch, draws, (given, to_jax(shared, gradients, self.run.arrays())))


def independent(runs: Runs, followed: Followed, first: Found, from_torch: FromTorch) -> list[Found]:
    """List all that differs by itself, what the first divergence is about at the front."""
    steps = _steps(runs, followed, from_torch)
    found = independent_divergences(followed, steps, lambda pairing: pairing.stage in ("gradient", "parameters"))
    # An optimizer's difference shows in every parameter: one of them is enough.
    updates = [each for each in found if each.pairing.stage == "update"]
    others = [each for each in found if each.pairing.stage != "update"] + updates[:1]
    return sorted(others, key=lambda each: each.pairing is not first.pairing)


def _steps(runs: Runs, followed: Followed, jax: FromTorch) -> Iterator[tuple[Observation, Observation]]:
    """Take the steps of both sides in float64, each part of the JAX side's from what torch has there."""
    pair, torch = runs.pair, runs.torch_run("float64")
    slots = [each for each in followed.pairings if each.stage == "update" and each.operands is None]
    stream = runs.stepper.whole(torch)
    for number in range(len(followed.quantities[0].error64)):
        before = Observation(optimizer=torch.optimizer_state())
        kept = jax.run.state_arrays()  # of an unknown optimizer it is right as well: it saw torch's gradients
        jax.load(torch.arrays())
        if number:
            jax.run.load_state(jax_state(slots, before, kept))
        seen = next(stream)
        yield seen, jax.step(seen, pair.batches[number % len(pair.batches)], runs.stepper.draws[number])
