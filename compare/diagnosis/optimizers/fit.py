"""Fits the free numbers of hypotheses at the first steps that differ, and checks that they hold at all the others."""

import functools
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from compare.diagnosis.optimizers.evidence import Evidence, OptimizerStep
from compare.diagnosis.optimizers.hypothesis import Hypothesis
from compare.diagnosis.optimizers.trial import Bench, Trial, distances

ITERATIONS = 16
"""Gauss-Newton steps at most: each about squares the distance once it is small."""

EXPLAINED = 0.97
"""The share of the residual that one linear step leaves if the numbers have nothing to do with the difference."""

BUDGET = 3_000
"""Updates that a search makes at most, of a small model."""

SECONDS = 10.0
"""Of the thread's own time, that a search takes at most: some updates cost more than their elements tell."""

Rows = np.ndarray
"""A mask of one step's results, of shape `(results,)`."""


@dataclass(frozen=True)
class Fit:
    """Hypotheses with their fitted numbers, which explain all the given results."""

    hypotheses: tuple[Hypothesis, ...]
    numbers: tuple[tuple[float, ...], ...] = ()
    """Of each hypothesis."""
    rates: tuple[float, ...] | None = None
    """The JAX side's learning rate at each step of the evidence, where it was fitted as well."""

    @property
    def free(self) -> int:
        """How many numbers were fitted, but for the rates."""
        return sum(each.free for each in self.hypotheses)

    @property
    def flat(self) -> np.ndarray:
        """All numbers, of shape `(free,)`."""
        return np.array([number for numbers in self.numbers for number in numbers])


class Fitter:
    """Fits hypotheses to the evidence. It stops making updates when its budget is spent."""

    def __init__(self, evidence: Evidence, bench: Bench) -> None:
        self.evidence, self.bench = evidence, bench
        elements = sum(result.jax.size for result in evidence.steps[0].results)
        # An update of n elements costs about n: the search takes about as long for every model, some ten
        # seconds.
        self._budget = int(np.clip(3e8 / max(elements, 1), 300, BUDGET))
        self._since = time.thread_time()

    @property
    def spent(self) -> bool:
        """Whether no more updates are made."""
        return self.bench.made > self._budget or time.thread_time() - self._since > SECONDS

    def made(
        self, step: OptimizerStep, fit: Fit, rate: float | None = None, *more: Callable[[Trial], None]
    ) -> list[np.ndarray] | None:
        """Make torch's update at a step with the changes of a fit."""
        trial = Trial(step, rate=rate)
        for hypothesis, numbers in zip(fit.hypotheses, fit.numbers, strict=True):
            hypothesis.change(trial, numbers)
        for change in more:
            change(trial)
        return self.bench(trial)

    def rated(
        self, step: OptimizerStep, fit: Fit, rows: Rows | None = None, *more: Callable[[Trial], None]
    ) -> tuple[list[np.ndarray] | None, float]:
        """Make an update with the learning rate that brings it nearest to the JAX side's, and give that rate.

        Every update is proportional to the rate, so one update at any rate gives the best rate by least squares.
        """
        # A rate of 0, such as that of a warm-up's first step, gives an update of 0, which cannot be scaled.
        reference = step.rate or 1e-3
        given = self.made(step, fit, reference, *more)
        if given is None:
            return None, reference
        rows = np.full(len(given), True) if rows is None else rows
        numbers = [i for i, result in enumerate(step.results) if not result.is_state and rows[i]]
        # Weighted least squares, f = <g, j> / <g, g>: each tensor counts in units of its own rounding, so
        # that a large one with large rounding does not hide what a small one shows.
        top = sum(float((given[i].ravel() @ step.results[i].jax.ravel()) / step.results[i].near ** 2) for i in numbers)
        size = sum(float((given[i].ravel() @ given[i].ravel()) / step.results[i].near ** 2) for i in numbers)
        factor = max(top / size, 0.0) if size and np.isfinite(top) else 1.0
        scaled = [array if r.is_state else array * factor for array, r in zip(given, step.results, strict=True)]
        return scaled, factor * reference

    def fit(
        self, hypotheses: Sequence[Hypothesis], *, fixed: Fit = Fit(()), rated: bool = False, state_only: bool = False
    ) -> Fit | None:
        """Fit hypotheses together with fixed ones; None if they do not hold at every step."""
        start = Fit((*fixed.hypotheses, *hypotheses), (*fixed.numbers, *(each.start for each in hypotheses)))
        differing = [
            s for s in self.evidence.steps if any(r.differs and (r.is_state or not state_only) for r in s.results)
        ]
        count = sum(each.free for each in hypotheses)
        # One step of Adam fixes (1 - b1) g alone: a scaled gradient and another decay of the moments give the same
        # moment. From the second step on the two differ. One step is tried first, as it costs a third.
        for first in (1, 3) if count and len(differing) > 1 else (1,):
            if self.spent:
                return None
            fitted = self._fitted(start, count, differing[:first], rated, state_only) if count else start
            if fitted is None:
                continue
            if self.holds(fitted, rated=rated, state_only=state_only):
                return self._shortened(fitted, count, rated, state_only)
        return None

    def holds(self, fit: Fit, *, rated: bool = False, state_only: bool = False) -> bool:
        """Return whether a fit explains every step, those that agreed included."""
        if self._own_state and not (rated or state_only):
            return self.goes_on(fit)
        return all(self._distance(step, fit, rated, state_only) <= 1 for step in self.evidence.steps)

    @functools.cached_property
    def _own_state(self) -> bool:
        """Whether the JAX side's optimizer remembers something that is not compared: each step has its own."""
        steps = self.evidence.steps
        compared = any(result.is_state for step in steps for result in step.results)
        in_a_row = [step.number for step in steps] == list(range(len(steps)))
        return in_a_row and not compared and any(step.state["state"] for step in steps)

    def goes_on(self, fit: Fit) -> bool:
        """Tell whether a fit holds where torch's optimizer goes on from what it remembers with the changes itself.

        An update is tried from what torch's optimizer remembers. Where none of that is compared, the JAX side's goes on
        from its own: scaled gradients with another momentum would be as good as no Nesterov momentum.
        """
        return not self._own_state or all(distances(*each).max(initial=0.0) <= 1 for each in self._taken(fit))

    def _taken(self, fit: Fit) -> Iterator[tuple[OptimizerStep, list[np.ndarray] | None]]:
        """Yield each step with torch's update, made with the changes of a fit."""
        remembered: Mapping[Any, Any] | None = None
        for number, step in enumerate(self.evidence.steps):

            def own(trial: Trial, remembered: Mapping[Any, Any] | None = remembered) -> None:
                trial.remembered = remembered

            given = self.made(step, fit, None if fit.rates is None else fit.rates[number], own)
            yield step, given
            remembered = self.bench.remembered() if self._own_state else None

    def worst(self, fit: Fit) -> float:
        """Return the largest relative difference that a fit leaves, over all steps."""
        left = [0.0]
        for step, given in self._taken(fit):
            for array, result in zip(given or (), step.results, strict=False):
                if size := float(np.linalg.norm(result.jax)):
                    left.append(float(np.linalg.norm(array - result.jax)) / size)
        return max(left)

    def _distance(self, step: OptimizerStep, fit: Fit, rated: bool, state_only: bool) -> float:
        given = self.rated(step, fit)[0] if rated else self.made(step, fit)
        apart = distances(step, given)
        kept = apart[[r.is_state for r in step.results]] if state_only else apart
        return float(kept.max(initial=0.0))

    def _residual(self, steps: Sequence[OptimizerStep], fit: Fit, rated: bool, state_only: bool) -> np.ndarray | None:
        """Return the residuals at some steps, in units of the tolerance."""
        parts: list[np.ndarray] = []
        for step in steps:
            given = self.rated(step, fit)[0] if rated else self.made(step, fit)
            if given is None or self.spent:
                return None
            kept = [i for i, result in enumerate(step.results) if result.is_state or not state_only]
            parts += [(step.results[i].jax - given[i]).ravel() / step.results[i].near for i in kept]
        return np.concatenate(parts) if parts else None

    def _fitted(
        self, fit: Fit, count: int, steps: Sequence[OptimizerStep], rated: bool, state_only: bool
    ) -> Fit | None:
        """Fit the last `count` numbers at some steps by Gauss-Newton; None where they explain nothing."""

        def left(values: np.ndarray) -> np.ndarray | None:
            return self._residual(steps, _with(fit, count, values), rated, state_only)

        values = fit.flat[-count:]
        # Gauss-Newton and not scipy.optimize.least_squares, for three reasons. A first linear step that
        # explains next to nothing must end the fit, since nearly all of the hypotheses that are tried are
        # wrong and cost would be ten times as high. Torch refuses some numbers, so that the residual is not
        # defined everywhere. And the right number is often 0, the end of what is allowed, which methods for
        # bounds approach from inside without ever reaching it.
        residual = left(values)
        best = (np.inf, values)
        for iteration in range(ITERATIONS):
            if residual is None:
                break
            size = float(np.linalg.norm(residual))
            best = min(best, (size, values), key=lambda pair: pair[0])
            if not np.isfinite(size) or size <= 1e-3:
                break
            jacobian = self._jacobian(left, values, residual)
            if jacobian is None:
                break
            # An epsilon of 1e-8 and a momentum of 0.9 in one fit: columns of equal length keep the problem well
            # conditioned, and `rcond` then drops only directions in which the residual truly does not change.
            scales = np.linalg.norm(jacobian, axis=0)
            scales[scales == 0] = 1
            move = np.linalg.lstsq(jacobian / scales, residual, rcond=1e-10)[0] / scales
            if iteration == 0 and np.linalg.norm(residual - jacobian @ move) > EXPLAINED * size:
                break
            fresh = values + move
            # A number that falls by six orders of magnitude is 0, as a weight decay that is left out. One that
            # would change its sign is cut to a tenth, like in `numerics.fitting`.
            nothing = np.abs(fresh) <= 1e-6 * np.abs(values)
            values = np.where(nothing, 0.0, np.where((values >= 0) & (fresh < 0), values / 10, fresh))
            residual, values = self._stepped(left, best[1], values)
            # Near the solution of a problem with zero residual, Gauss-Newton converges quadratically (Nocedal and
            # Wright, Numerical Optimization, section 10.3). Three slow steps mean that the residual is not zero:
            # another hypothesis is right.
            if iteration >= 3 and residual is not None and np.linalg.norm(residual) > best[0] / 2:
                break  # the right numbers are approached faster
        if residual is not None:
            best = min(best, (float(np.linalg.norm(residual)), values), key=lambda pair: pair[0])
        return _with(fit, count, best[1]) if np.isfinite(best[0]) else None

    @staticmethod
    def _stepped(
        left: Callable[[np.ndarray], np.ndarray | None], before: np.ndarray, values: np.ndarray
    ) -> tuple[np.ndarray | None, np.ndarray]:
        """Go half of the way back where torch refuses the numbers, such as a rate above 1."""
        for _ in range(8):
            if (residual := left(values)) is not None and np.isfinite(residual).all():
                return residual, values
            values = (before + values) / 2
        return None, values

    @staticmethod
    def _jacobian(
        left: Callable[[np.ndarray], np.ndarray | None], values: np.ndarray, residual: np.ndarray
    ) -> np.ndarray | None:
        """Return how the update moves with each number, of shape `(entries, numbers)`."""
        columns = []
        for i, value in enumerate(values):
            # A forward difference: truncation grows with h, rounding with 1/h, and for float64 the best h is
            # about 1e-8 relative to the scale on which the function curves. 1e-5 leaves five digits, which is
            # enough for a step and safe for an epsilon.
            h = max(1e-5 * abs(value), 1e-9)
            moved = left(values + h * np.eye(len(values))[i])
            columns.append(np.zeros_like(residual) if moved is None else (residual - moved) / h)
        jacobian = np.stack(columns, axis=1)
        return jacobian if np.isfinite(jacobian).all() else None

    def _shortened(self, fit: Fit, count: int, rated: bool, state_only: bool) -> Fit:
        """Write each number with as few digits as hold: people write short numbers, which are nearer than any fit."""
        values = fit.flat
        for i in range(len(values) - count, len(values)):
            # 0 first: "without weight decay" says more than "with a weight decay of 1e-19".
            for short in (0.0, *(float(f"{values[i]:.{digits}e}") for digits in range(7))):
                tried = np.where(np.arange(len(values)) == i, short, values)
                if self.holds(_with(fit, len(values), tried), rated=rated, state_only=state_only):
                    values = tried
                    break
        return _with(fit, len(values), values)


def _with(fit: Fit, count: int, values: np.ndarray) -> Fit:
    """Return a fit with its last `count` numbers replaced."""
    flat = fit.flat
    left = iter([*flat[: len(flat) - count], *values.tolist()])
    return Fit(fit.hypotheses, tuple(tuple(next(left) for _ in each.start) for each in fit.hypotheses), fit.rates)


def is_short(number: float) -> bool:
    """Return whether a number has at most three digits, as those have that people write."""
    return float(f"{number:.2e}") == number
