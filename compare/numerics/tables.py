"""Numbers that a program holds in float32, and by how much that rounding may have moved each of them.

A table of positions, of rotary angles or of noise levels is rounded to float32 when the program is made. Its exact
numbers are lost, so that a float64 run computes with numbers that are up to half a unit of float32 off, on one side or
on both. What that does is measured: the numbers are moved by as much, and the rest of the program is run again.
"""

import numpy as np

from compare.numerics.products import product_movement

FEW_BITS = 12
"""A number of so few significant bits, such as 1, 0.5 or -3.25, is taken to be exact, and is not moved."""


ANGLE = 2.0**-26
"""By how much the angles of a table of sines are moved, relative to themselves.

The verdict's safety factor makes four roundings of it, and float32 arithmetic takes two or three: of the frequency, of
its logarithm, and of the product with the position.
"""


def half_units(array: np.ndarray) -> np.ndarray:
    """Return half a unit in the last place of float32 for each number, as float64; 0 where it was not rounded.

    Args:
        array: Floating-point numbers of any shape. Those that float32 does not hold exactly were not rounded to it.

    """
    values = np.asarray(array, np.float64)
    with np.errstate(over="ignore", invalid="ignore"):
        narrow = values.astype(np.float32)
        # The last 12 of the 24 significant bits are zero. By chance one float32 number in 4096 is like that.
        few = (narrow.view(np.int32) & (2 ** (24 - FEW_BITS) - 1)) == 0
        # A float64 value that float32 holds exactly was most likely rounded to it. Others were computed in
        # float64.
        rounded = np.isfinite(narrow) & (narrow.astype(np.float64) == values) & ~few
        units: np.ndarray = np.where(rounded, 0.5 * np.abs(np.spacing(narrow)).astype(np.float64), 0.0)
    return units


def movement(array: np.ndarray, draw: int) -> np.ndarray:
    """Return what to add to each number that was rounded to float32, to see what its rounding does.

    It is half a unit up or down. Which of the two depends on the number and the draw alone, so that a number that a
    program has in several places is moved alike in all of them. In a table of sines, the angles are moved as well:
    where they were computed in float32, as `position * frequency` is in most programs, a large angle was rounded by
    far more than the sine itself. In a cumulative product, the roundings of all factors add up.

    Args:
        array: Floating-point or complex numbers of any shape.
        draw: Which choice of directions, from 1; 0 moves nothing, for the run that the others are held against.

    Returns:
        Numbers of the same shape, in float64 or complex128.

    """
    if np.iscomplexobj(array):
        return movement(array.real, draw) + 1j * movement(array.imag, draw)
    values = np.asarray(array, np.float64)
    if draw == 0:
        return np.zeros_like(values)
    directions = _directions(values, draw)
    moved = half_units(values) * directions
    if (slopes := _slopes(values)) is not None and moved.any():
        moved = moved + slopes * ANGLE * directions
    if moved.any() and (products := product_movement(values, draw)) is not None:
        moved = moved + products
    return moved


def _directions(values: np.ndarray, draw: int) -> np.ndarray:
    """Choose 1 or -1 for each number by mixing its bits (the finalizer of MurmurHash3)."""
    # The step from one draw to the next is 2**64 over the golden ratio, as in SplitMix64 (Steele, Lea and Flood, "Fast
    # Splittable Pseudorandom Number Generators", 2014).
    bits = np.ascontiguousarray(values).view(np.uint64) + np.uint64(draw * 0x9E3779B97F4A7C15 % 2**64)
    for shift, factor in ((33, 0xFF51AFD7ED558CCD), (33, 0xC4CEB9FE1A85EC53)):
        # https://github.com/aappleby/smhasher/blob/master/src/MurmurHash3.cpp, fmix64: each bit of the input
        # flips each bit of the output with a probability of one half, so that neighbouring table entries move
        # independently.
        bits = (bits ^ (bits >> np.uint64(shift))) * np.uint64(factor)
    # fmix64 ends with one more shift by 33. It leaves the highest 33 bits as they are, and only the highest is read.
    return np.where(bits >> np.uint64(63), 1.0, -1.0).reshape(values.shape)


def _slopes(table: np.ndarray) -> np.ndarray | None:
    """Return angle * d(element)/d(angle) for a table of sines; None for another.

    Such a table has an axis of positions p = 0, 1, ... along which each column is A sin(w p + b). Then its neighbours
    add up to 2 cos(w) times itself, and their difference is 2 sin(w) / w times its derivative by p.
    """
    for axis in range(table.ndim):
        if (found := _slopes_along(np.moveaxis(table, axis, 0))) is not None:
            return np.moveaxis(found, 0, axis)
    return None


def _slopes_along(table: np.ndarray) -> np.ndarray | None:
    length = len(table)
    # Nearly any three neighbours satisfy the recurrence below with some value of cos(w). A short column leaves too few
    # equations to refute that it is a sine.
    if length < 5 or not np.isfinite(table).all():
        return None
    # sin(w (p-1) + b) + sin(w (p+1) + b) = 2 cos(w) sin(w p + b). Least squares over the column gives
    # cos(w).
    middle, sums = table[1:-1], table[:-2] + table[2:]
    size = (middle**2).sum(0)
    cosines = (middle * sums).sum(0) / np.where(size, size, 1.0) / 2
    # The table was computed from angles that float32 rounded: at position p they are off by up to about p
    # · 2**-24, hence the limit of length · 2**-22, with a factor of four to spare.
    off = np.abs(sums - 2 * cosines * middle).max(0)
    if (off > length * 2.0**-22 * np.abs(table).max(initial=0.0)).any() or (np.abs(cosines) > 1 + 2.0**-22).any():
        return None
    angles = np.arccos(np.clip(cosines, -1, 1))
    # The derivative by position: from the neighbours on both sides, at the two ends from the recurrence beyond them.
    before, after = 2 * cosines * table[0] - table[1], 2 * cosines * table[-1] - table[-2]
    extended = np.concatenate([before[None], table, after[None]])
    sines = np.sin(angles)
    # (f(p+1) - f(p-1)) / 2 = f'(p) sin(w) / w. For w below 2**-12 the quotient w / sin(w) is 1 to
    # float32's precision, and taken from a rounded cosine it would be noise.
    by_position = (extended[2:] - extended[:-2]) / 2 * np.where(sines > 2.0**-12, angles / np.where(sines, sines, 1), 1)
    positions = np.arange(length, dtype=np.float64).reshape(-1, *[1] * (table.ndim - 1))
    slopes: np.ndarray = positions * by_position
    return slopes
