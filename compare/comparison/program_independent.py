"""Finds the independent differences of two programs, behind the one at which the search for causes ended.

As in a check of models, each module, the loss and the optimizers of the JAX side start from torch's values, in steps
that start from torch's state. What then differs does not follow from another difference, with one exception: what comes
after an update in its step is computed from the JAX side's own update, and is left out.
"""

import dataclasses
import functools
from collections.abc import Callable, Iterator, Sequence
from typing import NamedTuple

import numpy as np

from compare import bugs
from compare.alignment.pairings import Pairing
from compare.comparison.differing_parts import DifferingParts, Step
from compare.comparison.followers import without_followers
from compare.comparison.from_torch import FromTorch, Repeated
from compare.comparison.module_order import merged
from compare.comparison.program_runs import ProgramRuns
from compare.comparison.suggested_edits import is_hidden
from compare.step.observation import to_numpy
from compare.step.stage import COMPUTED, Stage
from compare.verdict.divergence import Cause, Divergence, Line
from compare.verdict.first_difference import Found
from compare.verdict.following import Followed


class Explaining(NamedTuple):
    """What says more of a difference."""

    lines: Callable[[Found], list[Line]]
    """Gives the lines of the JAX side that compute it."""
    cause: Callable[[Found], Cause | None]
    """Looks for its cause."""
    takes_derivative: Callable[[Found], bool]
    """Tells whether it is computed from a gradient."""


def independent_of(
    known: Sequence[Divergence],
    followed: Followed,
    runs: ProgramRuns,
    from_torch: FromTorch,
    explaining: Explaining,
    hidden: frozenset[str],
    *,
    complete: bool,
) -> list[Divergence]:
    """Give the differences that do not follow from those that are `known`, in order of computation.

    Args:
        known: The differences that were found before, with their lines.
        followed: What following both sides has found.
        runs: Of the pair. What is known already is changed in torch's steps.
        from_torch: The run of the JAX side that starts from torch's values.
        explaining: What says more of a difference.
        hidden: The parameters that what is known already leaves out of what is compared: see `hidden_by`.
        complete: Whether all modules start from torch's values: if not, a loss may follow from one that does not.

    """
    given: list[Divergence] = []
    alone = [
        each for each in _found(followed, runs, from_torch) if not each.follows and not is_hidden(each.pairing, hidden)
    ]
    linked = {link.torch for link in runs.pair.links}
    # A step starts from torch's tensors, and from the JAX side's own counts: later steps may use a count that differs.
    both = (*known, *(each.divergence for each in alone))
    counts = (each.step for each in both if each.stage == Stage.STATE and each.torch not in linked)
    last = min(counts, default=followed.steps)
    for found in _apart(known, [each for each in alone if each.divergence.step <= last]):
        stage = found.divergence.stage
        if stage in (Stage.LOSS, Stage.SHOWN) and not complete:
            continue
        # A gradient within the step, as in a penalty or an inner loop, is that of what differs inside of modules.
        inside = any(each.stage == Stage.FORWARD for each in (*known[-1:], *given))
        if inside and stage in COMPUTED and explaining.takes_derivative(found):
            continue
        divergence = dataclasses.replace(found.divergence, lines=tuple(explaining.lines(found)))
        if not found.known:
            doing = f"the search for the cause at {divergence.torch}"
            cause = bugs.attempt(doing, functools.partial(explaining.cause, found))
            divergence = dataclasses.replace(divergence, cause=cause)
        given.append(divergence)
    return without_followers([*known[-1:], *given], lambda _: True)[len(known[-1:]) :]


def _found(followed: Followed, runs: ProgramRuns, from_torch: FromTorch) -> list[Found]:
    found, clips = _taken(followed, runs, from_torch)
    if clips and any(each.divergence.stage == Stage.UPDATE for each in found):
        # A port may clip within its optimizer, which then takes what torch's backward pass left.
        from_torch.accumulated = True
        others = {_kind_of(each) for each in _taken(followed, runs, from_torch)[0]}
        found = [each for each in found if each.divergence.stage != Stage.UPDATE or _kind_of(each) in others]
        from_torch.accumulated = False
    return found


def _taken(followed: Followed, runs: ProgramRuns, from_torch: FromTorch) -> tuple[list[Found], bool]:
    """Take all steps: what differs in them, and whether torch's step changes gradients before an optimizer has them."""
    reached: set[str] = set()
    """The parameters whose optimizer takes the gradient that it is given."""
    trained = {link.jax for link in runs.pair.links if link.torch in runs.pair.trained}

    def follows(pairing: Pairing) -> bool:
        if pairing.stage in (Stage.GRADIENT, Stage.PARAMETERS):
            return True
        if pairing.stage in COMPUTED:
            return pairing.after_update
        if pairing.stage == Stage.UPDATE:
            names = (pairing.link.jax,) if pairing.link else pairing.subjects(1)
            return not {name.partition("[")[0] for name in names} <= reached
        return pairing.stage == Stage.STATE and not trained <= reached

    parts, clips = DifferingParts(runs, followed, from_torch, follows), False
    runs.again(from_torch.run)
    for step in _steps(followed, runs, from_torch):
        clips |= bool(step.torch.accumulated)
        if not step.number:
            reached |= _reached(step)
        parts.add(step)
    return merged(parts.found(), parts.moves), clips


def _steps(followed: Followed, runs: ProgramRuns, jax: FromTorch) -> Iterator[Step]:
    """Take the steps of torch in float64, with what takes each of them on the JAX side from what torch has there."""
    run, batches = runs.torch_run("float64"), runs.pair.batches
    stream = runs.stepper.whole(run)
    for number in range(followed.steps):
        jax.load(run.arrays())  # what its optimizers remember is right: they have seen torch's gradients
        seen = next(stream)
        yield Step(number, seen, Repeated(jax, batches[number % len(batches)], runs.stepper.draws[number], seen))


def _reached(step: Step) -> set[str]:
    """Name the parameters whose update changes with the gradient that their optimizer is given, and with no second."""
    given = step.again.given
    turned = given._replace(gradients={name: -array for name, array in given.gradients.items()})
    before, after = step.again(given), step.again(turned)
    several = {name.partition("#")[0] for name in (*before.gradients, *step.torch.gradients) if "#" in name}
    own = {name: to_numpy(update) for name, update in before.updates.items() if name not in several}
    return {name for name, update in own.items() if not np.array_equal(update, to_numpy(after.updates[name]))}


def _apart(known: Sequence[Divergence], found: Sequence[Found]) -> Iterator[Found]:
    """Leave one difference of those that may come from one: the updates of a model, its state, and the losses.

    What is not trained follows from updates, and is left out where one differs.
    """
    seen = {_kind(each.stage, each.torch) for each in known}
    updates = any(stage == Stage.UPDATE for stage, _ in {*seen, *(_kind_of(each) for each in found)})
    for each in found:
        follows = each.divergence.stage == Stage.STATE and updates
        if not follows and _kind_of(each) not in seen:
            seen.add(_kind_of(each))
            yield each


def _kind_of(found: Found) -> tuple[str, str]:
    return _kind(found.divergence.stage, found.divergence.torch)


def _kind(stage: str, torch: str) -> tuple[str, str]:
    if stage in (Stage.LOSS, Stage.SHOWN):
        return Stage.LOSS, ""
    return stage, torch if stage == Stage.FORWARD else torch.partition(".")[0]
