"""The function of a `LambdaLR` as a schedule of optax, where it is a warm-up, a decay, or one after the other."""

from collections.abc import Callable

import numpy as np

from compare.diagnosis.optimizers.calls import Call

FAR = 2_000
"""Values of the function that a schedule must give. It is fitted to a few of them."""

_SAME = 1e-9


def schedule_of_function(function: Callable[[int], float], rate: float) -> Call | None:
    """Write `rate * function(count)` as a schedule; None where none gives all of its values."""
    try:
        values = np.array([rate * float(function(count)) for count in range(FAR)])
    except (ArithmeticError, ValueError, TypeError, IndexError, KeyError):  # it may be defined for a short run only
        return None
    if not np.isfinite(values).all():
        return None
    # A piecewise linear function has second differences of zero but at its corners: the first corner ends
    # the warm-up.
    bends = np.flatnonzero(np.abs(np.diff(values, 2)) > _SAME * np.abs(values).max())
    # The second difference at index i is of the values i, i + 1 and i + 2: the corner is the one in the middle.
    first = int(bends[0]) + 1 if len(bends) else FAR - 1
    start = Call("optax.linear_schedule", (values[0], values[first], first))
    if np.allclose(values[first:], values[first], rtol=_SAME, atol=0):
        return start
    for begin in (0, first):  # a decay from the start on, or after a warm-up
        if decay := _decay(values[begin:]):
            return decay if not begin else Call("optax.join_schedules", ([start, decay], [begin]))
    return None


def _decay(values: np.ndarray) -> Call | None:
    """Fit a cosine or a line to a decay that ends in a constant, or a constant factor from count to count."""
    counts, first = np.arange(len(values)), float(values[0])
    # argmin gives the first of equal values: the count at which a decay that ends in a constant reaches
    # it.
    lowest = int(np.argmin(values))
    share = np.minimum(counts / max(lowest, 1), 1.0)
    end = float(values[lowest])
    size = np.abs(values).max()

    def equal(given: np.ndarray) -> bool:
        return bool(np.allclose(given, values, rtol=_SAME, atol=_SAME * size))

    # optax.cosine_decay_schedule: first * ((1 - alpha) (1 + cos(pi share)) / 2 + alpha), with alpha = end
    # / first.
    if first and equal(end + (first - end) * (1 + np.cos(np.pi * share)) / 2):
        return Call("optax.cosine_decay_schedule", (first, lowest), {"alpha": end / first} if end else {})
    if equal(first + (end - first) * share):
        return Call("optax.linear_schedule", (first, end, lowest))
    if first > values[1] > 0 and equal(first * (values[1] / first) ** counts):
        return Call("optax.exponential_decay", (first, 1, float(values[1] / first)))
    return None
