"""Finds out what a match proves: that it is a JAX program, that it matches elsewhere too, and what was not reached.

A match says that two programs are equal on some batches, from some weights. A port that only has the answers, that
calls torch, or that ignores its weights is equal there too.
"""

import dataclasses
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from compare import bugs
from compare.comparison.conditions import one_more, under_other_conditions
from compare.comparison.enough_steps import schedule_change
from compare.comparison.model_pair import ModelPair
from compare.comparison.model_runs import ModelRuns
from compare.comparison.optimizers_alone import later_updates, until
from compare.comparison.recorded import numbers_of_torch, recorded
from compare.comparison.second_answers import QUICK, Ask, asked_elsewhere, differs_elsewhere, foreign
from compare.comparison.substance import (
    constant_outputs,
    not_exercised,
    not_reached,
    unresolved,
    without_gradient,
    without_substance,
)
from compare.errors import InputError
from compare.jax_side.choices import one_sided
from compare.jax_side.inquiries import traced_for
from compare.jax_side.reading import foreign_calls
from compare.jax_side.run import JaxRun
from compare.jax_side.same_operations import first_other, other_operations
from compare.report.report import Report
from compare.step.draws import Draw
from compare.step.observation import to_numpy
from compare.verdict.divergence import Cause
from compare.verdict.following import Followed
from compare.verdict.ratio import Verdict


class Programs(NamedTuple):
    """The JAX side's programs of a step, in both precisions."""

    float64: JaxRun
    float32: JaxRun
    draws: Sequence[Draw]
    """The random numbers of the first step, with which they were traced."""


def questioned(
    runs: ModelRuns, found: Report, followed: Followed, programs: Programs, ask: Ask, *, quick: bool
) -> Report:
    """Ask what a match is worth, and add the answers to the report.

    Args:
        runs: Of the pair.
        found: A report without a mismatch.
        followed: What it rests on.
        programs: The JAX side's.
        ask: Takes a step of the pair elsewhere.
        quick: Whether to leave that out.

    """
    pair, seen, batch = runs.pair, [followed], runs.pair.batches[0]
    own = pair.other_own_values(followed)
    unproved = [*_foreign(pair, programs), *without_substance(pair, followed), *own.unproved]
    limits = [*found.limits, *not_reached(pair, followed, followed.steps, schedule_change(pair))]
    limits += [*own.limits, *unresolved(followed)]
    if unproved:
        return dataclasses.replace(found, unproved=unproved)
    lines: list[str] = []
    program = programs.float32.program(batch, programs.draws)
    held = bugs.attempt("looking for torch's numbers", lambda: recorded(pair, program, programs.draws)) or ""
    if quick:
        limits.append(QUICK)
        unproved = [*without_gradient(pair, seen), *numbers_of_torch(held)]
    else:
        answer = asked_elsewhere(pair, ask)
        if isinstance(answer, Cause):
            unproved = [answer]
        elif isinstance(answer, str):
            limits.append(answer)
        else:
            seen.append(answer.followed)
            limits += answer.report.limits
            unproved = [*constant_outputs(followed, answer.followed), *without_gradient(pair, seen)]
            if not answer.report.ok:
                return differs_elsewhere(found, answer.report)
            if later := later_updates(pair, followed, _first_gradients(pair, programs.draws)):
                limits.append(until(later, "the optimizers alone"))
            # What a lower precision or a table in float32 explains was measured for the steps alone.
            if found.verdict == answer.report.verdict == Verdict.MATCH:
                conditions = under_other_conditions(answer.pair, followed)
                if conditions.divergence:
                    return dataclasses.replace(found, divergence=conditions.divergence, notes=[])
                limits += conditions.limits
                lines += conditions.unexercised
        limits += [f"although {held}"] if held else []
    lines += not_exercised(pair.links, seen, pair.batches, runs.stepper.reached)
    lines += one_sided(programs.float64.chosen)
    lines += bugs.attempt("tracing a larger batch", lambda: _larger_batch(pair, programs)) or []
    doing = "comparing float32's operations with float64's"
    other = bugs.attempt(doing, lambda: other_operations(program, programs.float64.program(batch, programs.draws)))
    limits += [other] if other else []
    return dataclasses.replace(found, unproved=unproved, limits=limits, unexercised=lines)


def _first_gradients(pair: ModelPair, draws: Sequence[Draw]) -> dict[str, np.ndarray]:
    """Return the torch side's gradients of the first step, in float64; nothing without an optimizer."""
    if pair.torch.optimizer is None:
        return {}
    run = pair.torch_run("float64")
    with run.controlled(draws) as controlled:
        controlled.unfinished = True  # the optimizer may draw as well
        seen = run.backward(pair.batches[0])
        return {name: np.array(to_numpy(gradient)) for name, gradient in seen.gradients.items()}


def _larger_batch(pair: ModelPair, programs: Programs) -> list[str]:
    """Say so where the JAX side has other operations for a batch with many times as many examples."""
    batch = pair.batches[0]
    if (more := one_more(batch)) is None:
        return []
    try:
        few, many = traced_for(programs.float32, (batch, more), _LARGER)
    except InputError:  # an input of the port, such as one mask for all examples, has a first axis of another meaning
        return []
    other = first_other(many, few, numbers=False)
    what = f"a batch {_LARGER} times as large: the {pair.jax.name} side has other operations there, first {other}"
    return [what] if other else []


_LARGER = 64
"""How many times as many examples."""


def _foreign(pair: ModelPair, programs: Programs) -> list[Cause]:
    batch, runs = pair.batches[0], (programs.float32, programs.float64)
    calls = [call for run in runs for call in foreign_calls(run.program(batch, programs.draws))]
    return foreign(pair.jax.name, calls)
