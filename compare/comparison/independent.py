"""What differs by itself: every part of every step starts from the torch side's values."""

import dataclasses
from collections.abc import Iterator

from compare.alignment.optimizer_state import jax_state
from compare.comparison.runs import Runs
from compare.step.observation import Observation, to_numpy
from compare.verdict.first_difference import Found, independent_divergences
from compare.verdict.following import Followed
from compare.weights.links import to_jax


def independent(runs: Runs, followed: Followed, first: Found) -> list[Found]:
    """List all that differs by itself, what the first divergence is about at the front."""
    steps = _steps_from_torch(runs, followed)
    found = independent_divergences(followed, steps, lambda pairing: pairing.stage in ("gradient", "parameters"))
    # An optimizer's difference shows in every parameter: one of them is enough.
    updates = [each for each in found if each.pairing.stage == "update"]
    others = [each for each in found if each.pairing.stage != "update"] + updates[:1]
    return sorted(others, key=lambda each: each.pairing is not first.pairing)


def _steps_from_torch(runs: Runs, followed: Followed) -> Iterator[tuple[Observation, Observation]]:
    """Take the steps of both sides in float64, each part of the JAX side's from what torch has there."""
    pair, torch, jax = runs.pair, runs.torch_run("float64"), runs.pair.jax_run("float64")
    forward = [pairing for pairing in followed.pairings if pairing.ports and pairing.to_jax]
    slots = [each for each in followed.pairings if each.stage == "update" and each.operands is None]
    stream = runs.stepper.whole(torch)
    for number in range(len(followed.quantities[0].error64)):
        before = Observation(optimizer=torch.optimizer_state())
        kept = jax.state_arrays()  # of an unknown optimizer it is right as well: it saw torch's gradients
        jax.load(to_jax(pair.links, torch.arrays(), jax.arrays()))
        if number:
            jax.load_state(jax_state(slots, before, kept))
        seen = next(stream)
        given = {p.ports[1]: p.to_jax(p.torch_array(seen)) for p in forward if p.ports and p.to_jax}
        gradients = {name: to_numpy(gradient) for name, gradient in seen.gradients.items()}
        shared = [dataclasses.replace(link, adds=False) for link in pair.links if link.torch in gradients]
        given_gradients = to_jax(shared, gradients, jax.arrays())
        batch = pair.batches[number % len(pair.batches)]
        yield seen, jax.step(batch, runs.stepper.draws[number], (given, given_gradients))
