"""Fits one number so that a result computed with it equals a given result."""

from collections.abc import Callable, Mapping

import numpy as np

ITERATIONS = 16
"""Secant steps at most: each about squares the distance once it is small."""

EXPLAINED = 0.97
"""The share of the residual that one linear step leaves if the number has nothing to do with the difference."""


LIKELY = (0.5, 2.0, 0.1, 10.0)
"""How many times a number another one is that stands in its place by mistake."""


def fitted(
    value: float,
    run: Callable[[float], np.ndarray | None],
    target: np.ndarray,
    apart: Callable[[np.ndarray | None], float],
) -> tuple[float, float]:
    """Find the number with which `run` gives `target`, by secant steps in the direction of least squares.

    Args:
        value: Where to start.
        run: Computes something with a number; None where it cannot.
        target: What it is to give.
        apart: How far something is from `target`: 1 is near enough.

    Returns:
        How far the best number leaves it, and the number that gives it, rounded to as few digits as do.

    """
    tried: dict[float, float] = {}

    def at(number: float) -> np.ndarray | None:
        array = run(number)
        tried[number] = apart(array)
        return array

    # A loss may be reached in several ways, as by two temperatures, and secant steps end at one of them. What people
    # write in the place of a number is tried first.
    for likely in LIKELY if target.size == 1 else ():
        at(value * likely)
        if tried[value * likely] <= 1:
            return tried[value * likely], float(f"{value * likely:.12g}")
    _step_to(target, value, at, tried)
    if min(tried.values()) > 1:
        # From far away, secant steps approach 0 by tenths only, and 0 is what a setting that is left out amounts to.
        at(0.0)
    best = min(tried, key=lambda number: tried[number])
    if 0 < abs(best) <= 1e-9 * abs(value):  # what is left of a number that is taken away
        at(0.0)
        # All distances below 1 are equally good. Of equal ones `min` takes the first, which is 0.
        best = min(0.0, best, key=lambda number: max(1.0, tried[number]))
    # Only where the fit has converged by six orders of magnitude is its value known well enough to be
    # replaced by a decimal.
    return _shortened(best, tried, at) if tried[best] <= 1e-6 * tried[value] else (tried[best], best)


def _step_to(
    target: np.ndarray, value: float, at: Callable[[float], np.ndarray | None], tried: Mapping[float, float]
) -> None:
    """Take secant steps from a value; `at` notes in `tried` how near each number comes."""
    # The second point of the secant is 1e-4 away: near enough that the function is linear between them,
    # and far enough that the difference of two float64 results keeps about twelve digits.
    x, other = value, value * (1 + 1e-4) or 1e-6
    y, before = at(x), at(other)
    for iteration in range(ITERATIONS):
        if y is None or before is None or x == other:
            break
        # A Gauss-Newton step with a secant in place of the derivative (Broyden's method in one unknown): the
        # step s minimizes ‖left - s · slope‖. scipy.optimize.least_squares would take two runs an iteration,
        # one for its difference quotient, and a run is a training step here; nor can it be told that a number
        # is refused.
        slope, left = ((y - before) / (x - other)).ravel(), (target - y).ravel()
        size = float(slope @ slope)
        if not np.isfinite(size) or size == 0:
            break
        move = float(slope @ left) / size
        # The cosine of the angle between `left` and `slope` is below 0.24: this number cannot be what
        # differs, and 15 more runs would only fit it to something else.
        if iteration == 0 and np.linalg.norm(left - move * slope) > EXPLAINED * np.linalg.norm(left):
            break
        new = x + move
        # Rates, epsilons and scales are positive. A step that overshoots zero is cut to a tenth, which keeps
        # the sign and still reaches 1e-8 from 1e-3 within a few iterations.
        if value > 0 and new < 0:
            new = x / 10
        fresh, aim = at(new), new
        for _ in range(8):  # refused, such as a rate above 1, or farther away than before
            if fresh is not None and tried[new] <= tried[x]:
                break
            new = (x + new) / 2
            fresh = at(new)
        x, other, before, y = new, x, y, fresh
        if x != aim:  # near a number that is refused, results change fast: a slope from far away says little
            other = x * (1 - 1e-4)
            before = at(other)
        # Near enough. Further steps would fit the rounding of the target.
        if tried[x] <= 1:
            break


def _shortened(best: float, tried: dict[float, float], at: Callable[[float], object]) -> tuple[float, float]:
    """Round to as few digits as are near enough: people write short numbers, which are nearer than any fit."""
    for digits in range(7):
        short = float(f"{best:.{digits}e}")
        if short not in tried:
            at(short)
        if tried[short] <= 1:
            return tried[short], short
    return tried[best], best
