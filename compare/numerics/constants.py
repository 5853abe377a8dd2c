"""Restores numbers that a program has rounded to low precision, such as literals.

A literal such as `1e-6`, written in a float32 computation, arrives as 9.99999997e-07. In a float64 run that is wrong
by 3e-9, ten million times float64's rounding, and looks like a bug. The original number can nearly always be restored.
"""

import functools
import math
from collections.abc import Iterable
from typing import NamedTuple

import numpy as np


class LowPrecision(NamedTuple):
    """A floating-point format of less precision than float64."""

    wide: str
    """The format that takes its place in a float64 run."""
    bits: int
    """Its significant bits, the leading one among them; of a complex number's parts."""


LOW = {
    "float32": LowPrecision(wide="float64", bits=24),
    "float16": LowPrecision(wide="float64", bits=11),
    "bfloat16": LowPrecision(wide="float64", bits=8),
    "complex64": LowPrecision(wide="complex128", bits=24),
    "complex32": LowPrecision(wide="complex128", bits=11),
}
"""Every low precision, by the name that both frameworks give it."""

LARGEST = 4096
"""Arrays with more elements than this are tables, which no one writes out as literals: they are not searched."""


def rounded(value: float, bits: int) -> float:
    """Round to so many significant bits, to nearest even; like the formats themselves, but without limits to 2**n."""
    # `round` on a float is exact here and rounds halves to even, as IEEE 754 does: math.ldexp(fraction,
    # bits) is below 2**53 for every format of LOW, so that scaling by a power of two loses nothing.
    fraction, exponent = math.frexp(value)
    return math.ldexp(round(math.ldexp(fraction, bits)), exponent - bits)


def restored(array: np.ndarray, dtype: str = "float32") -> np.ndarray | None:
    """Return the float64 numbers whose roundings `array` has, of the same shape, or None if they cannot be determined.

    A number is taken for the original if it rounds to the one that is there and is either a short binary fraction,
    which needs no restoring, or a decimal of no more digits than the format can distinguish, or a number of `_named`,
    such as 1/3 or sqrt(2/pi). Of the float32 numbers that mean nothing in particular, about one in thirty is mistaken
    for a decimal of six digits, so that an array is restored only where all its elements are.

    Args:
        array: Floating-point values of any shape that `dtype` holds exactly, in whatever dtype they are now.
        dtype: The precision to which they were rounded, a key of `LOW`.

    """
    values = np.asarray(array, np.float64)
    with np.errstate(invalid="ignore"):
        # Integers are exact in every format up to 2**bits: axes, counts and masks need no guess, whatever
        # their number.
        if (np.rint(values) == values).all():
            return values
    if values.size > LARGEST:
        return None
    # A constant array holds few different numbers many times. All or nothing: if one of them has no
    # likely origin, the array is data, and the decimals among it are accidents.
    different, places = np.unique(values, return_inverse=True)
    meant = [_meant(float(value), LOW[dtype].bits) for value in different]
    if None in meant:
        return None
    return np.asarray(meant, np.float64)[places].reshape(values.shape)


def unrounded(number: float) -> float:
    """Return the number of at most four digits whose float32 rounding a number of Python's is, or else the number.

    Such as 0.7 for `torch.tensor(0.7).item()`. A JAX program holds its numbers in float32, and what was rounded before
    looks there like what JAX has rounded: it is restored on the JAX side too. An array's numbers are restored to more
    digits (see `restored`), but a number of Python's is often computed, as a learning rate is.
    """
    if not math.isfinite(number) or number == int(number) or float(np.float32(number)) != number:
        return number
    short = float(f"{number:.4g}")
    return short if np.float32(short) == number else number


def _meant(value: float, bits: int) -> float | None:
    if not math.isfinite(value) or value == int(value):
        return value
    # 0.5 and 0.375 are exact already. A numerator of up to bits/4 bits (6 for float32) is too short for
    # chance: of float32 numbers one in 2**18 ends in so many zero bits.
    numerator = abs(value.as_integer_ratio()[0])
    if numerator <= 2 ** (bits // 4):
        return value
    # As many decimal digits as survive the way there and back: C's FLT_DIG, 6 for float32. With 7, every third number
    # would pass for a decimal: sqrt(2/pi) reads 0.7978846.
    *few, most = range(int((bits - 1) * math.log10(2)))
    if (decimal := _decimal(value, few, bits)) is not None:
        return decimal
    # Before a decimal of the most digits, which log(10000) is as well: it reads 9.21034.
    # For float32 alone: in 8 or 11 bits nearly every number is the rounding of some n**-0.5.
    if bits == LOW["float32"].bits and (named := _named().get(abs(value))) is not None:
        return math.copysign(named, value)
    if (decimal := _decimal(value, [most], bits)) is not None:
        return decimal
    # What is left is neither a decimal nor named. With half of its bits zero it is still a binary
    # fraction, such as 1025/4096.
    return value if bits == LOW["float32"].bits and numerator <= 2 ** (bits // 2) else None


def _decimal(value: float, digits: Iterable[int], bits: int) -> float | None:
    """Return the shortest decimal that rounds to a number, with one of these numbers of digits after its point."""
    for count in digits:
        decimal = float(f"{value:.{count}e}")
        if rounded(decimal, bits) == value:
            return decimal
    return None


def doubtful(meant: np.ndarray) -> bool:
    """Return whether numbers that were restored from float32 may have been others: where one has six digits.

    Of all float32 numbers, one in thirty is such a decimal by accident.
    """
    different = (float(value) for value in np.unique(meant) if np.isfinite(value))
    return any(float(f"{value:.5e}") == value != float(f"{value:.4e}") and value != int(value) for value in different)


@functools.cache
def _named() -> dict[float, float]:
    """The numbers that programs compute before they round, by their float32 roundings."""
    constants = [math.pi, math.e, math.log(2), math.log(10), math.log(2 * math.pi), 0.5 * math.log(2 * math.pi)]
    constants += [math.sqrt(math.pi), math.sqrt(math.pi / 2), math.sqrt(2 * math.pi), 2 * math.pi, math.pi / 2]
    found = constants + [1 / constant for constant in constants]
    for n in range(1, 1025):
        found += [1 / n, n**-0.5, math.sqrt(n), math.log(10000) / n]  # the last in tables of positions
    # Several constants may round to one float32 number. Reversed, the one listed first wins: pi before
    # any n**-0.5.
    return {rounded(number, LOW["float32"].bits): number for number in reversed(found)}
