"""Finds a smaller array within a larger one: what is left where a program cuts a tensor to size."""

import itertools
import math
from collections.abc import Iterator

import numpy as np

from compare.numerics.distance import distance

NEARLY = 1e-6
"""A distance at which arrays in float64 are the same but for their rounding, and for tables in float32."""

OFFSETS = 256
"""How many positions are tried."""

DIFFERENT = 4
"""Different numbers that the smaller array must have: of a mask, many parts are alike."""


def block(whole: np.ndarray, part: np.ndarray) -> tuple[slice, ...] | None:
    """Return where in an array another one of the same rank is, as slices; None where it is not, or is as large."""
    if np.unique(part).size <= DIFFERENT:
        return None
    return next((found for found in blocks(whole.shape, part.shape) if distance(part, whole[found]) <= NEARLY), None)


def blocks(whole: tuple[int, ...], part: tuple[int, ...], most: int = OFFSETS) -> Iterator[tuple[slice, ...]]:
    """Yield where an array of one shape may be in a larger one, as slices; nothing where there are more than `most`."""
    if len(whole) != len(part) or whole == part:
        return
    spare = [size - other for size, other in zip(whole, part, strict=True)]
    if min(spare) < 0 or math.prod(each + 1 for each in spare) > most:
        return
    for starts in itertools.product(*(range(each + 1) for each in spare)):
        # What is cut off is counted from both ends, so that it is the same of a longer array.
        yield tuple(slice(start, (start - rest) or None) for start, rest in zip(starts, spare, strict=True))
