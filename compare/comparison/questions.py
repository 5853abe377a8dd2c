"""What a match is worth: is the program a JAX program, does it match elsewhere too, and what was not reached.

A match says that two programs are equal on some batches, from some weights. A port that only has the answers, that
calls torch, or that ignores its weights is equal there too.
"""

import dataclasses
from collections.abc import Iterator, Sequence
from typing import NamedTuple

import numpy as np

from compare import bugs
from compare.comparison.conditions import under_other_conditions
from compare.comparison.enough_steps import schedule_change
from compare.comparison.mapped_pair import MappedPair
from compare.comparison.runs import Runs
from compare.comparison.second_answers import DOCS, QUICK, Ask, asked_elsewhere, differs_elsewhere, foreign
from compare.comparison.substance import (
    constant_outputs,
    not_exercised,
    not_reached,
    without_gradient,
    without_substance,
)
from compare.jax_side.inquiries import placed_calls
from compare.jax_side.reading import arrays, foreign_calls
from compare.jax_side.run import JaxRun
from compare.report.report import Report
from compare.step.draws import Draw
from compare.step.observation import Observation, to_numpy
from compare.torch_side.control import ControlledRun
from compare.verdict.divergence import Cause
from compare.verdict.following import Followed
from compare.verdict.quantity import Verdict


class Programs(NamedTuple):
    """The JAX side's programs of a step, in both precisions."""

    float64: JaxRun
    float32: JaxRun
    draws: Sequence[Draw]
    """The random numbers of the first step, with which they were traced."""


def questioned(runs: Runs, found: Report, followed: Followed, programs: Programs, ask: Ask, *, quick: bool) -> Report:
    """Ask what a match is worth, and add the answers to the report.

    Args:
        runs: Of the pair.
        found: A report without a mismatch.
        followed: What it rests on.
        programs: The JAX side's.
        ask: Takes a step of the pair elsewhere.
        quick: Whether to leave that out.

    """
    pair, other = runs.pair, None
    unproved = [*_foreign(pair, programs), *without_substance(pair, followed)]
    limits = not_reached(pair, followed, followed.steps, schedule_change(pair))
    if unproved:
        return dataclasses.replace(found, unproved=unproved)
    lines: list[str] = []
    if quick:
        limits.append(QUICK)
        unproved = [*without_gradient(pair, [followed]), *recorded(pair, programs)]
    else:
        answer = asked_elsewhere(pair, ask)
        if isinstance(answer, Cause):
            unproved = [answer]
        elif isinstance(answer, str):
            limits.append(answer)
        else:
            other = answer.followed
            unproved = [*constant_outputs(followed, other), *without_gradient(pair, [followed, other])]
            if not answer.report.ok:
                return differs_elsewhere(found, answer.report)
            # What a lower precision or a table in float32 explains was measured for the steps alone.
            if found.verdict == answer.report.verdict == Verdict.MATCH:
                conditions = under_other_conditions(answer.pair, followed)
                if conditions.divergence:
                    return dataclasses.replace(found, divergence=conditions.divergence, notes=[])
                limits += conditions.limits
                lines += conditions.unexercised
    lines += not_exercised(pair, followed, other, runs.stepper.reached)
    return dataclasses.replace(found, unproved=unproved, limits=limits, unexercised=lines)


def _foreign(pair: MappedPair, programs: Programs) -> list[Cause]:
    batch, runs = pair.batches[0], (programs.float32, programs.float64)
    calls = [call for run in runs for call in foreign_calls(run.program(batch, programs.draws))]
    if calls and not any(call.place for call in calls):
        placed = bugs.attempt("placing a call out of the program", lambda: placed_calls(programs.float32, batch)) or []
        calls = [*placed, *calls]
    return foreign(pair.jax.name, calls)


def recorded(pair: MappedPair, programs: Programs) -> list[Cause]:
    """Name arrays in the JAX side's program that are torch's weights, outputs, gradients or updates."""
    run = pair.torch_run("float32")
    known = {f"torch's {name}": array for name, array in run.arrays().items() if name in pair.torch_parameters}
    with ControlledRun(replay=programs.draws):
        known |= dict(_shown(run.step(pair.batches[0])))
    held = [each for each in arrays(programs.float32.program(pair.batches[0], programs.draws)) if _telling(each)]
    for array in held:
        for name, value in known.items():
            if array.size >= value.size and _telling(value) and _contains(array, value):
                return [
                    Cause(
                        "the JAX side's program contains torch's numbers",
                        f"a constant of shape {array.shape} in it contains {name}",
                        "compute it from the weights and the inputs that the program is given",
                        DOCS,
                    )
                ]
    return []


def _shown(seen: Observation) -> Iterator[tuple[str, np.ndarray]]:
    for port, value in seen.forward.items():
        if port.kind == "output":
            yield f"torch's {port}", to_numpy(value)
    for what in ("gradients", "updates"):
        for name, value in getattr(seen, what).items():
            yield f"torch's {what.removesuffix('s')} of {name}", to_numpy(value)


def _telling(array: np.ndarray) -> bool:
    """Tell whether an array's numbers could not be another's by accident."""
    return array.size > 1 and bool(np.isfinite(array).all()) and len(np.unique(np.abs(array))) > 2


def _contains(array: np.ndarray, value: np.ndarray) -> bool:
    """Tell whether all of an array's numbers are among those of another, in any layout."""
    return bool(np.isin(value.astype(np.float32), array.astype(np.float32)).all())
