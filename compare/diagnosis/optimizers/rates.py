"""The learning rates of both sides at every step: constant, in proportion, or on another schedule."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from compare.diagnosis.optimizers.evidence import Evidence
from compare.diagnosis.optimizers.fit import Fit, Fitter
from compare.diagnosis.optimizers.trial import distances
from compare.numerics.distance import EPSILON32, ULPS

EXACT = 1e-3
"""The share of a rate's rounding to float32 within which a fitted rate is the rounded one."""


def _is_rounded(exact: float, other: float, share: float = 1 / 2) -> bool:
    """Tell whether a rate is another one in float32: a share of their difference, at most, is left."""
    return abs(float(np.float32(exact)) - other) < abs(exact - other) * share


@dataclass(frozen=True)
class Rates:
    """Both sides' learning rates at each step of the evidence."""

    torch: tuple[float, ...]
    jax: tuple[float, ...]

    @property
    def differ(self) -> bool:
        """Whether they differ anywhere."""
        return self.torch != self.jax

    @property
    def constant(self) -> bool:
        """Whether both sides' rates stay as they are."""
        return len(set(self.torch)) == len(set(self.jax)) == 1

    @property
    def rounded(self) -> bool:
        """Whether float32 rounding explains the difference.

        It is at most a few units of float32. Of a rate that rounding hardly changes, it is less than 1/64 of a unit:
        then one side's rate must be the other's in float32.
        """
        pairs = list(zip(self.torch, self.jax, strict=True))
        apart = [abs(a - b) / (max(abs(a), abs(b)) or 1.0) for a, b in pairs]
        if not self.differ or max(apart) > ULPS * EPSILON32:
            return False
        return max(apart) >= EPSILON32 / 64 or any(_is_rounded(a, b) or _is_rounded(b, a) for a, b in pairs)

    @property
    def factor(self) -> float | None:
        """What torch's rates are multiplied by to be the JAX side's, if it is one number."""
        ratios = [b / a for a, b in zip(self.torch, self.jax, strict=True) if a]
        same = ratios and all(abs(each / (ratios[0] or 1.0) - 1) < 1e-9 for each in ratios) and ratios[0]
        return ratios[0] if same and all(a or not b for a, b in zip(self.torch, self.jax, strict=True)) else None

    @property
    def free(self) -> int:
        """How many numbers were fitted: one for a constant or a factor, else one for each step that differs.

        A rate that is the other side's in float32 is no fitted number. One that is a few units of float32 away is:
        in a model of a single weight it explains another epsilon too.
        """
        pairs = list(zip(self.torch, self.jax, strict=True))
        if all(a == b or _is_rounded(a, b, EXACT) or _is_rounded(b, a, EXACT) for a, b in pairs):
            return 0
        if len(set(self.jax)) == 1 or self.factor is not None:
            return 1
        return sum(a != b for a, b in pairs)


def fitted_rates(fitter: Fitter, fit: Fit) -> Fit | None:
    """Fit the JAX side's learning rate at every step, one for all parameters; None where no rate explains a step."""
    rates: list[float] = []
    for step in fitter.evidence.steps:
        if fitter.spent:
            return None
        if (distances(step, fitter.made(step, fit)) <= 1).all():
            rates.append(step.rate)
            continue
        given, rate = fitter.rated(step, fit)
        if given is None or not (distances(step, given) <= 1).all():
            return None
        # A rate that occurred before, on either side, is exact, and the fitted one is not. After that, the
        # shortest decimal that explains the step: schedules give rates of any length.
        known = [each for each in (*rates, *fitter.evidence.rates) if abs(each - rate) <= 1e-9 * abs(rate)]
        for short in (*known[:1], *(float(f"{rate:.{digits}e}") for digits in range(13)), rate):
            # The scaled update may be right where torch's own steps are not: make them.
            if (distances(step, fitter.made(step, fit, short)) <= 1).all():
                rates.append(short)
                break
        else:
            return None
    return Fit(fit.hypotheses, fit.numbers, _in_proportion(fitter, fit, rates) or tuple(rates))


def _in_proportion(fitter: Fitter, fit: Fit, rates: Sequence[float]) -> tuple[float, ...] | None:
    """Give rates in proportion to torch's if these explain every step as well: one factor is less than a schedule.

    At a step whose rounding is larger than the difference, torch's own rate agrees too.
    """
    steps = fitter.evidence.steps
    found = Rates(tuple(step.rate for step in steps), tuple(rates))
    if len(set(found.jax)) == 1 or found.factor is not None:
        return None
    at = next((number for number, step in enumerate(steps) if rates[number] != step.rate), None)
    if at is None or not steps[at].rate:
        return None
    scaled = tuple(rates[at] * (step.rate / steps[at].rate) for step in steps)
    each = zip(steps, scaled, strict=True)
    return scaled if all((distances(step, fitter.made(step, fit, rate)) <= 1).all() for step, rate in each) else None


def rates_of(evidence: Evidence, fit: Fit) -> Rates:
    """Return both sides' rates; they are equal where none was fitted."""
    torch = tuple(step.rate for step in evidence.steps)
    return Rates(torch, torch if fit.rates is None else fit.rates)


def short_rates(rates: Rates) -> bool:
    """Return whether the JAX side's rates are such as people write."""
    return bool(all(float(f"{each:.3e}") == each for each in np.unique(rates.jax)))
