"""The rounding of a step, taken from neighbouring steps too, because a single error may be small by accident."""

from collections.abc import Sequence

import numpy as np
from numpy.lib.stride_tricks import sliding_window_view

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
    # A moving maximum. At the ends the nearest step stands in for those that were not taken.
    padded = np.pad(errors, WINDOW, mode="edge")
    largest: np.ndarray = sliding_window_view(padded, 2 * WINDOW + 1).max(axis=1)
    # An error that is small by accident is so by a few orders of magnitude. If a later step's is larger by more,
    # something began there: Adam made a whole step of what is zero but for rounding, and that is no excuse for before.
    past: np.ndarray = sliding_window_view(padded[: len(padded) - WINDOW], WINDOW + 1).max(axis=1)
    return np.minimum(largest, ONSET * np.maximum(past, EPSILON64))


def add_largest(errors: list[float], step: int, error: float) -> None:
    """Note an error of a step; of several, the largest counts."""
    errors[step:] = [max([error, *errors[step : step + 1]]), *errors[step + 1 :]]
