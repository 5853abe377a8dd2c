"""Finds parameters that the two sides update at different steps, directly from their updates, without fitting."""

import contextlib
import functools
from collections.abc import Iterator, Sequence
from typing import NamedTuple

import numpy as np

from compare.alignment.pairings import Pairing
from compare.comparison.suggested_edits import Reach, Steps
from compare.diagnosis.steps.edit import Edit
from compare.diagnosis.steps.followers import at_steps, chosen
from compare.diagnosis.steps.undone import undone
from compare.step.observation import Observation, to_numpy
from compare.step.stage import Stage
from compare.torch_side.program_run import OneOptimizer, TorchProgramRun
from compare.verdict.divergence import Cause
from compare.verdict.following import Followed


class OtherSteps(NamedTuple):
    """What is updated at other steps, and what would prove that nothing else differs."""

    cause: Cause
    update: Pairing
    """The update of one of the parameters."""
    edit: Edit | None
    """Leaves out what the JAX side does not make; None where it makes updates that torch does not."""
    first: bool
    """Whether the JAX side leaves out the first steps alone, as a warm-up does whose first learning rate is 0."""
    agreed: bool
    """Whether both have updated these parameters at an earlier step, where they agree."""


def other_steps(followed: Followed, steps: Steps, edits: Sequence[Edit], reach: Reach) -> OtherSteps | None:
    """Find out if an optimizer is stepped on one side alone at the step at which the two first differ."""
    pairs = [(each.torch, each.jax) for each in followed.pairings if each.stage == Stage.PARAMETERS]
    taken: dict[str, tuple[list[int], list[int]]] = {ours: ([], []) for ours, _ in pairs}
    given: dict[str, set[int]] = {ours: set() for ours, _ in pairs}
    for number, (_, torch, jax) in zip(range(followed.steps), steps.both(edits), strict=False):
        for ours, theirs in pairs:
            given[ours] |= {number} if ours in torch.gradients else set()
            for side, seen, name in ((0, torch, ours), (1, jax, theirs)):
                if _is_updated(seen, name):
                    taken[ours][side].append(number)
    other = {
        name: both for name, both in taken.items() if (reach.step in both[0]) != (reach.step in both[1]) and all(both)
    }
    ways = {(tuple(both[0]), tuple(both[1])) for both in other.values()}
    if len(ways) != 1:
        return None
    at = ways.pop()
    named = ", ".join(dict.fromkeys(name.partition(".")[0] for name in other))
    if any(name.partition(".")[0] in named.split(", ") and name not in other for name in taken):
        return None  # some parameters of a model alone: frozen ones, perhaps
    fix = f"{chosen(at[0], followed.steps)}, of {named} and what its optimizer remembers"
    if not set(at[1]) <= set(at[0]):
        fix += "; where torch adds up gradients in between, optax.MultiSteps does both"
    cause = Cause(
        "update at other steps",
        f"update at other steps: torch updates {named} at {at_steps(at[0])}, and the JAX side at {at_steps(at[1])}",
        fix,
    )
    update = next((each for each in followed.pairings if each.stage == Stage.UPDATE and each.torch in other), None)
    during = functools.partial(_only, parameter=next(iter(other)), steps=frozenset(at[1]))
    edit = Edit("", "", "", during=during) if set(at[1]) < set(at[0]) else None
    missing = set(at[0]) - set(at[1])
    # Where torch does not even step its optimizer, that the JAX side updates is what is seen, and needs no proof.
    alone = set(at[1]) - set(at[0])
    unseen = not missing and not any(alone & given[name] for name in other)
    agreed = unseen or any(step < reach.step for step in set(at[0]) & set(at[1]))
    return None if update is None else OtherSteps(cause, update, edit, missing == set(range(len(missing))), agreed)


def _is_updated(seen: Observation, name: str) -> bool:
    """Return whether an optimizer was given the gradient of a parameter, and has changed it."""
    update = seen.updates.get(name)
    return update is not None and name in seen.gradients and bool(np.any(to_numpy(update)))


@contextlib.contextmanager
def _only(run: TorchProgramRun, parameter: str, steps: frozenset[int]) -> Iterator[None]:
    """Let the optimizer of a parameter make its updates at some steps alone."""
    with contextlib.ExitStack() as stack:
        for name, optimizer in run.optimizers.items():
            if run.taken not in steps and parameter in OneOptimizer(run, name).parameters:
                stack.enter_context(undone(optimizer))
        yield
