"""The rounding of a step, taken from neighbouring steps too, because a single error may be small by accident."""

from collections.abc import Sequence

import numpy as np

from compare.numerics.distance import EPSILON64

WINDOW = 8
"""How many steps on either side count for the rounding of a step: a scalar's error changes sign, and is small there."""

ONSET = 1e6
"""An error that is this small relative to those of the next steps is not an accident."""

LOST = 0.5
"""The relative error at which no binary digit is correct."""


def near(errors: Sequence[float] | np.ndarray) -> np.ndarray:
    """The largest error of each step and its neighbours; a step before the first that is lost has none after it."""
    errors = np.asarray(errors)
    # Once a run has lost every digit, its errors are of the order of 1 and would excuse the steps before,
    # which are right.
    largest, lost = _largest(errors), np.flatnonzero(errors >= LOST)
    if len(lost):
        largest[: lost[0]] = _largest(errors[: lost[0]])
    return largest


def _largest(errors: np.ndarray) -> np.ndarray:
    if not len(errors):
        return errors
    past = _until_each(errors)
    last = np.minimum(np.arange(WINDOW, WINDOW + len(errors)), len(errors) - 1)
    # An error that is small by accident is so by a few orders of magnitude. If a later step's is larger by more,
    # something began there: Adam made a whole step of what is zero but for rounding, and that is no excuse for before.
    return np.minimum(np.maximum(past, past[last]), ONSET * np.maximum(past, EPSILON64))


def _until_each(errors: np.ndarray) -> np.ndarray:
    """The largest error of each step and the `WINDOW` before it."""
    # The maximum over twice as many steps is that of two maxima. This is asked for every quantity, many times: a view
    # of all windows takes ten times as long.
    largest, covered = errors.copy(), 1
    while covered < WINDOW + 1:
        shift = min(covered, WINDOW + 1 - covered)
        largest[shift:] = np.maximum(largest[shift:], largest[:-shift])
        covered += shift
    return largest


def add_largest(errors: list[float], step: int, error: float) -> None:
    """Note an error of a step; of several, the largest counts."""
    errors[step:] = [max([error, *errors[step : step + 1]]), *errors[step + 1 :]]
