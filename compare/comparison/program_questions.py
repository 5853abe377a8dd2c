"""What a match of two programs is worth: see `questions`, which asks the same of models."""

import dataclasses

import numpy as np

from compare.comparison.program_pair import ProgramPair
from compare.comparison.second_answers import DOCS, QUICK, Ask, asked_elsewhere, differs_elsewhere, foreign
from compare.jax_side.program_run import JaxProgramRun
from compare.report.report import Report
from compare.verdict.divergence import Cause
from compare.verdict.following import Followed


def questioned_program(
    pair: ProgramPair, jax: JaxProgramRun, found: Report, followed: Followed, ask: Ask, *, quick: bool
) -> Report:
    """Ask what a match is worth, and add the answers to the report."""
    unproved = [*foreign("jax", jax.foreign), *_without_substance(followed)]
    limits = ["in 1 step: momentum and schedule not reached"] if followed.steps == 1 else []
    if unproved:
        return dataclasses.replace(found, unproved=unproved)
    answer = QUICK if quick else asked_elsewhere(pair, ask)
    if isinstance(answer, str):
        limits.append(answer)
    elif isinstance(answer, Cause):
        unproved = [answer]
    elif not answer.report.ok:
        return differs_elsewhere(found, answer.report)
    return dataclasses.replace(found, unproved=unproved, limits=limits)


def _without_substance(followed: Followed) -> list[Cause]:
    deciding = [quantity for quantity in followed.quantities if quantity.decides]
    if not deciding:
        return [Cause("no output decides", "nothing of the two programs is held against each other", "", DOCS)]
    if broken := [q.torch for q in deciding if np.isnan([size for size, _ in q.sizes]).any()]:
        return [Cause("NaN on both sides", f"{', '.join(broken[:3])}: NaN equals NaN, and says nothing", "", DOCS)]
    return []
