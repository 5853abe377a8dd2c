"""The verdict: rounding shrinks in float64, a bug does not.

Each quantity is observed four times, by both sides in float32 and in float64. Write d(a, b) = ‖a - b‖ / ‖b‖. Then
d(jax64, torch64) is the algorithms' difference, and d(torch32, torch64) tells how much rounding is fair: in float64
it is smaller by 2**-29, the ratio of the two machine epsilons. docs/verdict.md has the measurements.
"""

from dataclasses import dataclass, field
from enum import StrEnum

import numpy as np
from numpy.lib.stride_tricks import sliding_window_view

STAGES = ("forward", "loss", "gradient", "update", "parameters", "buffers")
"""In the order in which a step computes them; optimizer state belongs to `update`."""

FACTOR = 16.0
"""The one safety factor: this many times what rounding explains is more than rounding.

The worst right port measured has 6, a learning rate off by 1e-6 has 4e8, and optax.adam's float32 bias correction
leaves 19 times the rounding of torch's after 30 steps: docs/verdict.md.
"""

WINDOW = 8
"""Steps on either side whose rounding excuses a step: a scalar's error changes sign, and is small there by accident."""

ULPS = 4.0
"""Rounding of a quantity that float32 holds exactly by accident, in units of the machine epsilon."""

EPSILON32 = float(np.finfo(np.float32).eps)
EPSILON64 = float(np.finfo(np.float64).eps)


class Verdict(StrEnum):
    """What a comparison found."""

    MATCH = "match"
    """The same program."""
    PRECISION = "precision"
    """The same mathematics, one side at lower precision."""
    MISMATCH = "mismatch"
    """A different program: the port has a bug."""


def norm(array: np.ndarray) -> float:
    """The Euclidean norm, accumulated in float64; of infinities or NaN not finite, without a warning."""
    flat = array.ravel(order="K")
    with np.errstate(invalid="ignore", over="ignore"):
        return float(np.sqrt(np.dot(flat, flat)))


def distance(a: np.ndarray, b: np.ndarray) -> float:
    """‖a - b‖ / ‖b‖ in float64; infinity where a value is not finite on one side only, or only `b` is zero."""
    with np.errstate(invalid="ignore"):
        difference = norm(np.subtract(a, b, dtype=np.float64))
    if difference == 0:
        return 0.0
    size = norm(np.asarray(b, np.float64))
    if np.isfinite(difference) and np.isfinite(size):
        return difference / size if size else np.inf
    return 0.0 if np.array_equal(a, b, equal_nan=True) else np.inf


@dataclass
class Quantity:
    """One thing that both sides compute at every step, and how far apart they are, step by step."""

    stage: str
    torch: str
    """Its name on the torch side."""
    jax: str
    """Its name on the JAX side."""
    error64: list[float] = field(default_factory=list)
    """d(jax64, torch64)."""
    error_torch: list[float] = field(default_factory=list)
    """d(torch32, torch64)."""
    error_jax: list[float] = field(default_factory=list)
    """d(jax32, jax64)."""
    cancellation: list[float] = field(default_factory=list)
    """How much larger than the quantity itself were the numbers that it is a difference of; 1 where it is none."""

    def add(
        self,
        torch32: np.ndarray,
        torch64: np.ndarray,
        jax32: np.ndarray,
        jax64: np.ndarray,
        operands: np.ndarray | None = None,
    ) -> None:
        """Weigh one step. `operands` is what the quantity is a difference of, if it is one.

        A value that is not finite on one side only, in either precision, is infinitely far from its partner.
        """
        torch, jax = distance(torch32, torch64), distance(jax32, jax64)
        overflows = np.isinf([torch, jax]).any() and np.isfinite(torch32).all() != np.isfinite(jax32).all()
        self.error64.append(np.inf if overflows else distance(jax64, torch64))
        self.error_torch.append(torch)
        self.error_jax.append(jax)
        lost = 0.0 if operands is None else norm(operands) / (norm(torch64) or np.inf)
        self.cancellation.append(max(1.0, lost))

    @property
    def rounding(self) -> np.ndarray:
        """How much float32 rounding is fair, of shape `(steps,)`: torch's own, with a floor."""
        return self._rounding(self.error_torch, ULPS)

    def _rounding(self, errors: list[float], ulps: float) -> np.ndarray:
        """The errors with their neighbours', at least what the machine epsilon leaves, of shape `(steps,)`."""
        padded = np.pad(np.asarray(errors), WINDOW, mode="edge")
        largest = sliding_window_view(padded, 2 * WINDOW + 1).max(axis=1)
        return np.maximum(largest, ulps * EPSILON32 * np.asarray(self.cancellation))

    @property
    def ratio(self) -> np.ndarray:
        """The float64 difference over what rounding explains, of shape `(steps,)`: of the order of 1 if no more."""
        explained = self.rounding * (EPSILON64 / EPSILON32)
        with np.errstate(invalid="ignore"):
            ratio = np.asarray(self.error64) / explained
        return np.where(np.isnan(ratio), np.inf, ratio)

    @property
    def imbalance(self) -> np.ndarray:
        """The JAX side's float32 rounding over torch's: the geometric mean up to each step, of shape `(steps,)`.

        A mean, because one ReLU that changes sign in one precision only moves a step by more than any rounding.
        An error past 1 is as bad as 1.
        """
        jax, torch = (np.minimum(self._rounding(errors, 1.0), 1.0) for errors in (self.error_jax, self.error_torch))
        mean: np.ndarray = np.cumsum(np.log(jax / torch)) / np.arange(1, len(jax) + 1)
        return np.exp(mean)

    @property
    def verdicts(self) -> list[Verdict]:
        """The verdict on each step.

        Precision is judged where errors are continuous, on outputs and losses: a gradient jumps with a ReLU.
        """
        mismatch = self.ratio > FACTOR
        precision = np.zeros_like(mismatch)
        if self.stage in ("forward", "loss"):
            precision = np.abs(np.log(self.imbalance)) > np.log(FACTOR)
        return [
            Verdict.MISMATCH if bug else Verdict.PRECISION if rounding else Verdict.MATCH
            for bug, rounding in zip(mismatch, precision, strict=True)
        ]
