"""Finds out what a match proves: that it is a JAX program, that it matches elsewhere too, and what was not reached.

A match says that two programs are equal on some batches, from some weights. A port that only has the answers, that
calls torch, or that ignores its weights is equal there too.
"""

import abc
import dataclasses
from collections.abc import Iterable, Sequence
from typing import Any, NamedTuple

from compare import bugs
from compare.comparison.common_runs import CommonRuns
from compare.comparison.recorded import numbers_of_torch, recorded
from compare.comparison.second_answers import QUICK, Ask, Elsewhere, asked_elsewhere, differs_elsewhere, foreign
from compare.comparison.substance import gradients_of_zero, not_exercised, unresolved
from compare.jax_side.choices import one_sided
from compare.jax_side.reading import ForeignCall
from compare.jax_side.same_operations import other_operations
from compare.report.report import Report
from compare.verdict.divergence import Cause, Divergence
from compare.verdict.following import Followed
from compare.verdict.ratio import Verdict


class Answers(NamedTuple):
    """What questions have shown."""

    unproved: Sequence[Cause] = ()
    """Why the match proves nothing."""
    limits: Sequence[str] = ()
    """What it does not cover, as clauses of the headline."""
    lines: Sequence[str] = ()
    """What nothing exercises, each a line."""
    divergence: Divergence | None = None
    """What differs after all."""
    seen: Sequence[Followed] = ()
    """The step elsewhere, if there was one."""


class CommonQuestions(abc.ABC):
    """The questions to one match, of models or of programs.

    Args:
        runs: Of both sides.
        compiled: The JAX side's runs in float64 and in float32, which have taken their steps.
        followed: What the match rests on.

    """

    def __init__(self, runs: CommonRuns, compiled: tuple[Any, Any], followed: Followed) -> None:
        self._runs, self._pair, self._followed = runs, runs.pair, followed
        self._jax64, self._jax32 = compiled
        self._draws = runs.stepper.draws[0]

    def asked(self, found: Report, ask: Ask, *, quick: bool) -> Report:
        """Ask what a match is worth, and add the answers to the report.

        Args:
            found: A report without a mismatch.
            ask: Takes a step from other weights and on other batches.
            quick: Whether to leave that out.

        """
        pair, followed = self._pair, self._followed
        own = pair.other_own_values(followed)
        calls = foreign(pair.jax.name, self._calls_out())
        if unproved := [*calls, *self._without_substance(), *own.unproved]:
            return dataclasses.replace(found, unproved=unproved)
        limits = [*found.limits, *self._not_reached(), *own.limits, *unresolved(followed)]
        batch, draws = pair.batches[0], self._draws
        program = self._jax32.program(batch, draws)
        held = bugs.attempt("looking for torch's numbers", lambda: recorded(pair, program, draws)) or ""
        second = self._second(found, QUICK if quick else asked_elsewhere(pair, ask), held)
        if isinstance(second, Report):
            return second
        seen = [followed, *second.seen]
        lines = [*second.lines, *not_exercised(pair.links, seen, pair.examples, self._runs.stepper.reached)]
        lines += [*one_sided(self._jax64.chosen), *self._not_exercised()]
        doing = "comparing float32's operations with float64's"
        other = bugs.attempt(doing, lambda: other_operations(program, self._jax64.program(batch, draws)))
        return dataclasses.replace(
            found,
            unproved=[*second.unproved, *gradients_of_zero(seen)],
            limits=[*limits, *second.limits, *([other] if other else [])],
            unexercised=list(dict.fromkeys(lines)),
        )

    def _second(self, found: Report, answer: Elsewhere | Cause | str, held: str) -> Report | Answers:
        """Ask further, if there was an answer elsewhere.

        Args:
            found: A report without a mismatch.
            answer: What a step from other weights and on other batches has shown, or why there was none.
            held: Which random numbers of torch's the port may have recorded, as a sentence, or "".

        Returns:
            The answers, or the report of a difference.

        """
        if isinstance(answer, str):
            return Answers(numbers_of_torch(held), [answer])
        if isinstance(answer, Cause):
            return Answers([answer])
        if not answer.report.ok:
            return differs_elsewhere(found, answer.report)
        # What a lower precision or a table in float32 explains was measured for the steps alone.
        matches = found.verdict == answer.report.verdict == Verdict.MATCH
        further = self._further(answer, matches=matches)
        if further.divergence is not None:
            return dataclasses.replace(found, divergence=further.divergence, notes=[])
        limits = [*answer.report.limits, *further.limits, *([f"although {held}"] if held else [])]
        return further._replace(limits=limits, seen=[answer.followed])

    @abc.abstractmethod
    def _calls_out(self) -> Iterable[ForeignCall]:
        """List the calls out of the JAX side's program."""

    @abc.abstractmethod
    def _without_substance(self) -> list[Cause]:
        """Say why a match of what was followed would prove nothing."""

    @abc.abstractmethod
    def _not_reached(self) -> list[str]:
        """Say what the steps do not cover, as clauses of the headline."""

    @abc.abstractmethod
    def _further(self, answer: Elsewhere, *, matches: bool) -> Answers:
        """Ask about other conditions and further steps.

        Args:
            answer: What a step from other weights and on other batches has shown.
            matches: Whether both verdicts are a match.

        """

    @abc.abstractmethod
    def _not_exercised(self) -> list[str]:
        """Name more that nothing exercises."""
