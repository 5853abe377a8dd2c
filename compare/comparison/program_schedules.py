"""Takes further steps of two programs, each from torch's values, to compare what schedules and counts do later."""

import contextlib
import dataclasses
import time
from collections.abc import Iterator
from typing import NamedTuple, TypeVar

import numpy as np

from compare.alignment.optimizer_state import jax_state
from compare.alignment.program import slot_names
from compare.comparison.optimizers_alone import whole_links
from compare.comparison.program_runs import ProgramRuns
from compare.errors import UserCodeError
from compare.jax_side.given import Given
from compare.jax_side.program_run import JaxProgramRun
from compare.numerics.distance import EPSILON64, ULPS, distance
from compare.step.observation import Observation, to_numpy
from compare.step.stage import Stage
from compare.verdict.divergence import Divergence
from compare.verdict.following import Followed
from compare.verdict.neighbours import LOST
from compare.verdict.ratio import FACTOR, Quantity
from compare.weights.links import to_jax

T = TypeVar("T")

REPEATED, MORE, MOST, SECONDS = 2, 2, 32, 1.0
"""How many steps of the check are repeated, how many further ones are taken at least, how many there are in all at
most, and how long the further ones may take, in the processor's time."""

RELATIVE = 1e-6
"""The relative difference of an update that counts. What the gradients' rounding makes is not measured here."""


class Later(NamedTuple):
    """What further steps have shown."""

    divergence: Divergence | None
    """What differs first, after the steps of the check."""
    steps: int
    """How many steps were looked at in all."""


def later_program_updates(runs: ProgramRuns, jax: JaxProgramRun, followed: Followed) -> Later:
    """Take further steps, the JAX side's with torch's weights, optimizer state and gradients; give what differs first.

    Args:
        runs: Of both programs.
        jax: A run of the JAX side in float64 that has taken the steps of the check. It may not count in Python.
        followed: What the steps have shown. Where these steps do not repeat it, nothing is concluded.

    """
    updates = {
        quantity.torch: quantity
        for quantity in followed.quantities
        if quantity.stage == Stage.UPDATE and quantity.decides and quantity.rounding.max() < LOST
    }
    links = [link for link in whole_links(runs.pair.links) if link.torch in updates]
    loss = next((quantity for quantity in followed.quantities if quantity.stage == Stage.LOSS), None)
    number = -1
    for number, torch, own in _while_taken(_steps(runs, jax, followed)):
        if loss is not None and torch.loss is not None and own.loss is not None:
            error, expected = distance(to_numpy(own.loss), to_numpy(torch.loss)), float(loss.expected.max())
            if error > max(RELATIVE, FACTOR * expected):
                return Later(_found(number, loss, error, expected, followed), number + 1)
        for link in links:
            ours, theirs = (to_numpy(side.updates[name]) for side, name in ((torch, link.torch), (own, link.jax)))
            ours, theirs = link.torch_view(ours), link.jax_view(theirs)
            size = float(np.linalg.norm(ours)) or 1.0
            rounding = ULPS * EPSILON64 * float(np.linalg.norm(to_numpy(torch.parameters[link.torch]))) / size
            expected = max(rounding, float(updates[link.torch].expected.max()))
            error = distance(theirs, ours)
            if error > max(RELATIVE, FACTOR * expected):
                return Later(_found(number, updates[link.torch], error, expected, followed), number + 1)
    return Later(None, number + 1)


def _while_taken(steps: Iterator[T]) -> Iterator[T]:
    """Yield steps until the user's code refuses one, as a schedule of a given number of steps does at its end."""
    with contextlib.suppress(UserCodeError):
        yield from steps


def goes_on(runs: ProgramRuns, looked_at: int) -> list[str]:
    """Say so where a schedule of torch's may do something after the last step that was looked at."""
    from torch.optim.lr_scheduler import LRScheduler, ReduceLROnPlateau

    run = runs.pair.torch_run("float32")
    if not any(run.state.parts(kind) for kind in (LRScheduler, ReduceLROnPlateau)):
        return []
    last = f"torch's schedule after step {looked_at - 1}, the last step that was looked at"
    return [f"{last}; steps= looks further, for example past its next change"]


def _found(step: int, quantity: Quantity, error: float, expected: float, followed: Followed) -> Divergence | None:
    names, rounding = (quantity.stage, quantity.torch, quantity.jax), float(quantity.rounding.max())
    return Divergence(step, *names, error, rounding, expected) if step >= followed.steps else None


def _steps(runs: ProgramRuns, jax: JaxProgramRun, followed: Followed) -> Iterator[tuple[int, Observation, Observation]]:
    """Take steps of both sides: the first again, to see that they repeat, and then further ones.

    The JAX side goes on from its own state after the steps of the check, which has its counts in it.
    """
    pair, stepper, chosen, clipped = runs.pair, runs.stepper, runs.gradients.chosen, set[str]()
    run, own = pair.torch_run("float64"), jax.compiled_quickly()
    runs.again(own)
    own.chosen = {}  # of these steps not everything is compared
    further = followed.steps if jax.taken == followed.steps else 0
    slots = [each for each in followed.pairings if each.stage == Stage.UPDATE and each.operands is None]
    stream, names, start = stepper.whole(run), dict[str, str](), 0.0
    for number in range(MOST):
        before = Observation(optimizer=run.optimizer_state())
        if number >= followed.steps + MORE and time.process_time() - start > SECONDS:
            return
        if number == followed.steps:
            start = time.process_time()
        if REPEATED <= number < further:
            clipped |= _changed(next(stream))
            continue
        if number == further > REPEATED:
            own.values = list(jax.values)
        own.load(to_jax(pair.links, run.arrays(), own.arrays()))
        if number:
            kept = own.state_arrays()
            made = jax_state(slots, before, {full: kept[name] for full, name in names.items() if name in kept})
            own.load({names[full]: array for full, array in made.items()})
        seen = next(stream)
        if any("#" in gradient for gradient in seen.gradients):  # an optimizer that is stepped twice within a step
            return
        # Torch gathers gradients over several steps: the JAX side may be given each by itself, as by optax.MultiSteps.
        if not seen.gradients:
            return
        changed = _changed(seen)
        clipped |= changed if number < followed.steps else set()
        if not changed <= clipped:  # clipped for the first time: no step has shown where the JAX side does so
            return
        # A JAX side that clips inside its optimizer is given what torch's backward pass left: clipped twice, it would
        # be divided by a norm of 1 + 1e-6.
        left = {name: each for name, each in seen.accumulated.items() if name.partition(".")[0] in chosen}
        gradients = {key: to_numpy(value) for key, value in {**seen.gradients, **left}.items()}
        shared = [dataclasses.replace(link, adds=False) for link in pair.links if link.torch in gradients]
        given = {link.jax for link in shared}
        arrays = {key: array for key, array in to_jax(shared, gradients, own.arrays()).items() if key in given}
        shown = own.step(stepper.batches[number % len(stepper.batches)], stepper.draws[number], Given(gradients=arrays))
        names = names or slot_names(pair.links, seen, shown)
        yield number, seen, shown


def _changed(seen: Observation) -> set[str]:
    """Name the models whose gradients torch has changed before its optimizer got them."""
    return {name.partition(".")[0] for name in seen.accumulated}
