"""Parameters that the two sides update at other steps: read from what both do, with no number that is fitted."""

import contextlib
import weakref
from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

import numpy as np

from compare.alignment.pairings import Pairing
from compare.comparison.suggested_edits import Reach, Steps
from compare.diagnosis.optimizers.evidence import copied
from compare.diagnosis.steps.edit import Edit
from compare.diagnosis.steps.followers import at_steps, where
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
    for number, (_, torch, jax) in zip(range(followed.steps), steps.both(edits), strict=False):
        for ours, theirs in pairs:
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
    cause = Cause(
        "update at other steps",
        f"update at other steps: torch updates {named} at {at_steps(at[0])}, and the JAX side at {at_steps(at[1])}",
        f"update {named} at the same steps: {where(at[0], followed.steps)}",
    )
    update = next((each for each in followed.pairings if each.stage == Stage.UPDATE and each.torch in other), None)
    edit = Edit("", "", "", during=_Only(next(iter(other)), frozenset(at[1]))) if set(at[1]) < set(at[0]) else None
    missing = set(at[0]) - set(at[1])
    agreed = any(step < reach.step for step in set(at[0]) & set(at[1]))
    return None if update is None else OtherSteps(cause, update, edit, missing == set(range(len(missing))), agreed)


def _is_updated(seen: Observation, name: str) -> bool:
    """Tell whether an optimizer was given the gradient of a parameter, and has changed it."""
    update = seen.updates.get(name)
    return update is not None and name in seen.gradients and bool(np.any(to_numpy(update)))


class _Only:
    """Lets the optimizer of a parameter make its updates at some steps alone."""

    def __init__(self, parameter: str, steps: frozenset[int]) -> None:
        self.parameter, self.steps = parameter, steps
        self.done: weakref.WeakKeyDictionary[TorchProgramRun, int] = weakref.WeakKeyDictionary()
        """How many steps a run has taken."""

    @contextlib.contextmanager
    def __call__(self, run: TorchProgramRun) -> Iterator[None]:
        number = self.done.get(run, 0)
        self.done[run] = number + 1
        with contextlib.ExitStack() as stack:
            for name, optimizer in run.optimizers.items():
                if number not in self.steps and self.parameter in OneOptimizer(run, name).parameters:
                    undone = _Undone()
                    stack.callback(optimizer.register_step_pre_hook(undone.keep).remove)
                    stack.callback(optimizer.register_step_post_hook(undone.restore).remove)
            yield


class _Undone:
    """Undoes what an optimizer's step does: the step itself is still called, and shows the gradients that it is given.

    The number of steps that a scheduler has counted is another thing, and stays.
    """

    def __init__(self) -> None:
        self.values: list[tuple[Any, Any]] = []
        self.state: dict[Any, Any] = {}

    def keep(self, optimizer: Any, *_: Any) -> None:
        """Copy the weights and what the optimizer remembers."""
        parameters = [each for group in optimizer.param_groups for each in group["params"]]
        self.values = [(each, each.detach().clone()) for each in parameters]
        self.state = {each: copied(optimizer.state[each]) for each in parameters if each in optimizer.state}

    def restore(self, optimizer: Any, *_: Any) -> None:
        """Put them back."""
        for parameter, value in self.values:
            parameter.data.copy_(value)
            if parameter in self.state:
                optimizer.state[parameter] = self.state[parameter]
            else:
                optimizer.state.pop(parameter, None)
