"""The relative distance of two arrays, and the machine epsilons."""

import math

import numpy as np

ULPS = 4.0
"""Rounding of a quantity that float32 holds exactly by accident, in units of the machine epsilon."""

EPSILON32 = float(np.finfo(np.float32).eps)

EPSILON64 = float(np.finfo(np.float64).eps)


def norm(array: np.ndarray) -> float:
    """The Euclidean norm, accumulated in float64; of infinities or NaN not finite."""
    # order="K" reads the elements as they lie in memory, so that a transposed array is not copied. Their order does not
    # matter to the norm.
    flat = array.ravel(order="K")
    return math.sqrt(np.dot(flat, flat))


def norm_of_finite(array: np.ndarray) -> float:
    """The norm without the infinities, such as those of a mask; of nothing but infinities it is infinite."""
    infinite = np.isinf(array)
    return norm(array if infinite.all() or not infinite.any() else np.where(infinite, 0.0, array))


def real(array: np.ndarray) -> np.ndarray:
    """Return an array in float64, a complex one as real and imaginary parts."""
    if not np.iscomplexobj(array):
        return np.asarray(array, np.float64)
    return np.stack([array.real, array.imag]).astype(np.float64)


def distance(a: np.ndarray, b: np.ndarray, otherwise: float = 0.0, size: float | None = None) -> float:
    """‖a - b‖ / ‖b‖ in float64; infinity where a value is finite on one side only, or infinite with two signs.

    Where only `b` is zero it is ‖a‖ / `otherwise`, and 1 without that. Arrays of two shapes are infinitely far apart.
    `size` is ‖b‖, where it is known.
    """
    if a.shape != b.shape:
        return np.inf
    if np.iscomplexobj(a) or np.iscomplexobj(b):
        a, b = real(np.asarray(a, np.complex128)), real(np.asarray(b, np.complex128))
    with np.errstate(invalid="ignore", over="ignore"):
        # dtype: the difference of two float32 arrays, taken in float32, would lose what the distance is
        # about.
        difference = norm(np.subtract(a, b, dtype=np.float64))
        if difference == 0:
            return 0.0
        size = norm(np.asarray(b, np.float64)) if size is None else size
    if math.isfinite(difference) and math.isfinite(size):
        # ‖b‖ = 0 leaves nothing to be relative to. A difference of two equal numbers is then measured by
        # these numbers (`otherwise`). Without that the distance is 1: no digit is right.
        return difference / (size or otherwise or difference)
    # An infinity that both sides have at the same place is agreement, such as the logits of actions that a mask
    # rules out; the rest is weighed without it. So is a NaN that both have.
    same = (a == b) | (np.isnan(a) & np.isnan(b))
    # Nothing is left out, so that the overflow is in the norm itself: numbers past 1e154 have no finite square.
    if not (same & ~np.isfinite(b)).any():
        return np.inf
    left = np.where(same, 0.0, a), np.where(same, 0.0, b)
    return distance(*left, otherwise) if all(np.isfinite(each).all() for each in left) else np.inf
