"""Finds out what a match of two models proves: see `common_questions`."""

from collections.abc import Iterable

import numpy as np

from compare import bugs
from compare.comparison.common_questions import Answers, CommonQuestions
from compare.comparison.conditions import one_more, under_other_conditions
from compare.comparison.enough_steps import schedule_change
from compare.comparison.model_pair import ModelPair
from compare.comparison.optimizers_alone import later_updates, until
from compare.comparison.second_answers import Elsewhere
from compare.comparison.substance import constant_outputs, not_reached, without_substance
from compare.errors import InputError
from compare.jax_side.inquiries import traced_for
from compare.jax_side.reading import ForeignCall, foreign_calls
from compare.jax_side.run import JaxRun
from compare.jax_side.same_operations import first_other
from compare.step.observation import to_numpy
from compare.verdict.divergence import Cause


class ModelQuestions(CommonQuestions):
    """The questions to one match of models."""

    _pair: ModelPair
    _jax64: JaxRun
    _jax32: JaxRun

    def _calls_out(self) -> Iterable[ForeignCall]:
        batch, runs = self._pair.batches[0], (self._jax32, self._jax64)
        return [call for run in runs for call in foreign_calls(run.program(batch, self._draws))]

    def _without_substance(self) -> list[Cause]:
        return without_substance(self._pair, self._followed)

    def _not_reached(self) -> list[str]:
        return not_reached(self._pair, self._followed, self._followed.steps, schedule_change(self._pair))

    def _further(self, answer: Elsewhere, *, matches: bool) -> Answers:
        pair, followed = self._pair, self._followed
        later = later_updates(pair, followed, self._first_gradients())
        limits = [until(later, "the optimizers alone")] if later else []
        found = Answers(constant_outputs(followed, answer.followed), limits)
        if not matches:
            return found
        conditions = under_other_conditions(answer.pair, followed)
        limits += conditions.limits
        return found._replace(limits=limits, lines=conditions.unexercised, divergence=conditions.divergence)

    def _not_exercised(self) -> list[str]:
        return bugs.attempt("tracing a larger batch", self._larger_batch) or []

    def _first_gradients(self) -> dict[str, np.ndarray]:
        """Return the torch side's gradients of the first step, in float64; nothing without an optimizer."""
        if self._pair.torch.optimizer is None:
            return {}
        run = self._pair.torch_run("float64")
        with run.controlled(self._draws) as controlled:
            controlled.unfinished = True  # the optimizer may draw as well
            seen = run.backward(self._pair.batches[0])
            return {name: np.array(to_numpy(gradient)) for name, gradient in seen.gradients.items()}

    def _larger_batch(self) -> list[str]:
        """Say so where the JAX side has other operations for a batch with many times as many examples."""
        batch = self._pair.batches[0]
        if (more := one_more(batch)) is None:
            return []
        try:
            few, many = traced_for(self._jax32, (batch, more), _LARGER)
        except InputError:  # an input of the port, such as one mask for all examples, has another first axis
            return []
        other, name = first_other(many, few, numbers=False), self._pair.jax.name
        what = f"a batch {_LARGER} times as large: the {name} side has other operations there, first {other}"
        return [what] if other else []


_LARGER = 64
"""How many times as many examples."""
