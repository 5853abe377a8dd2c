"""Looks at the gradients of models that differ before: the known causes are in force in torch's steps.

A value that differs changes every gradient. With its cause on the torch side, the two sides agree there, and what still
differs in the gradients, such as a part that the port stops, is another fault.
"""

import copy
import dataclasses
from collections.abc import Sequence
from typing import NamedTuple

from compare.comparison.model_runs import ModelRuns
from compare.comparison.tried_edits import FAILURES
from compare.comparison.weighing import Weighing, apart, computed
from compare.diagnosis.steps.edit import Edit
from compare.errors import Signal
from compare.jax_side.run import JaxRun
from compare.step.stage import COMPUTED, Stage
from compare.torch_side.run import TorchRun
from compare.verdict.first_difference import Found, found_at
from compare.verdict.following import Followed
from compare.weights.links import to_jax


class Behind(NamedTuple):
    """What steps show in which torch's side has the causes that are known."""

    found: Found | None = None
    """The first gradient that differs, if all that comes before it agrees."""
    complete: bool = False
    """Whether there is nothing else to look at: all gradients agree."""


def with_edits(runs: ModelRuns, edits: Sequence[Edit]) -> ModelRuns:
    """Give runs in whose float64 runs of torch the edits are in force."""

    def torch_run(dtype: str) -> TorchRun:
        run = runs.torch_run(dtype)
        run.during += [edit.during for edit in edits]
        return run

    edited = copy.copy(runs)
    edited.torch_run = torch_run
    return edited


def first_gradient(runs: ModelRuns, followed: Followed, jax: JaxRun, edits: Sequence[Edit]) -> Behind:
    """Take the steps of both sides, each of the JAX side's from torch's weights, up to a gradient that differs.

    Args:
        runs: Of the pair, with the edits in force.
        followed: What following both sides without edits has found.
        jax: A run of the JAX side in float64 that is compiled already.
        edits: The causes that are known, as changes of torch's step.

    """
    try:
        return _first_gradient(runs, followed, jax, edits)
    except (*FAILURES, Signal):  # torch refuses a step with the edits
        return Behind()


def _first_gradient(runs: ModelRuns, followed: Followed, jax: JaxRun, edits: Sequence[Edit]) -> Behind:
    pair, weighing = runs.pair, Weighing(followed, fitted=any(edit.free for edit in edits))
    torch, jax = runs.torch_run("float64"), runs.again(copy.copy(jax))
    stream = runs.stepper.whole(torch)
    for step in range(followed.steps):
        jax.load(to_jax(pair.links, torch.arrays(), jax.arrays()))
        ours = next(stream)
        theirs = jax.step(pair.batches[step % len(pair.batches)], runs.stepper.draws[step])
        differing = list(weighing.differing(ours, theirs))  # a list, since each quantity must see each step
        of_step = [each for each in differing if each[1].stage in (*COMPUTED, Stage.GRADIENT) and not each[1].accepted]
        if not of_step:
            continue
        place, pairing = of_step[0]
        if pairing.stage != Stage.GRADIENT:
            return Behind()
        before = followed.pairings[place - 1] if place else None
        found = found_at(step, place, pairing, followed.quantities[place], before)
        one, two = computed(pairing.torch_array, ours), computed(pairing.jax_array, theirs)
        if one is None or two is None:
            return Behind()
        error = apart(pairing, ours, one, two)
        return Behind(found._replace(divergence=dataclasses.replace(found.divergence, error64=error)))
    return Behind(complete=True)
