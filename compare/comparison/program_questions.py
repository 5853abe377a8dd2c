"""What a match of two programs is worth: see `questions`, which asks the same of models."""

import dataclasses
from collections.abc import Callable

import numpy as np

from compare.comparison.second_answers import DOCS, ELSEWHERE, QUICK, differs_elsewhere, foreign
from compare.errors import InputError
from compare.jax_side.program_run import JaxProgramRun
from compare.report.report import Report
from compare.verdict.divergence import Cause
from compare.verdict.following import Followed

Ask = Callable[[bool], tuple[Followed, Report]]
"""Takes a step from weights that are farther, or nearer, and on other batches."""


def questioned_program(jax: JaxProgramRun, found: Report, followed: Followed, ask: Ask, *, quick: bool) -> Report:
    """Ask what a match is worth, and add the answers to the report."""
    if not found.ok:
        return found
    unproved = [*foreign("jax", jax.foreign), *_without_substance(followed)]
    if unproved:
        return dataclasses.replace(found, unproved=unproved)
    limits = ["in 1 step: momentum and schedule not reached"] if followed.steps == 1 else []
    if quick:
        return dataclasses.replace(found, limits=[*limits, QUICK])
    reason = ""
    for near in (False, True):
        try:
            _, other = ask(near)
        except InputError as error:
            reason = str(error).partition("\n")[0]
            continue
        if not other.ok:
            return differs_elsewhere(found, other)
        return dataclasses.replace(found, limits=limits)
    limits.append(f"without the second question: no step could be taken {ELSEWHERE}: {reason}")
    return dataclasses.replace(found, limits=limits)


def _without_substance(followed: Followed) -> list[Cause]:
    deciding = [quantity for quantity in followed.quantities if quantity.decides]
    if not deciding:
        return [Cause("no output decides", "nothing of the two programs is held against each other", "", DOCS)]
    if broken := [q.torch for q in deciding if np.isnan([size for size, _ in q.sizes]).any()]:
        return [Cause("NaN on both sides", f"{', '.join(broken[:3])}: NaN equals NaN, and says nothing", "", DOCS)]
    return []
