"""Tables of a cumulative product, such as a diffusion's alphas, and tables that were computed from one in float32."""

from collections.abc import Callable

import numpy as np

LONG = 64
"""The number of factors from which the rounding of a product is more than that of its last digit."""

_SHARE = 2.0**-28
"""By how much the k-th product is moved, relative to itself and over sqrt(k).

Its k roundings add up to about sqrt(k) times 2**-26, and all later products inherit them, so that they do not cancel in
a mean over a batch. The verdict's safety factor of 16 makes four times that of this number.
"""

_GRID = 2.0**-24
"""The distance of neighbouring float32 numbers between 0.5 and 1."""

_Form = tuple[Callable[[np.ndarray], np.ndarray], Callable[[np.ndarray], np.ndarray]]

_FORMS: tuple[_Form, ...] = (
    (lambda table: 1 - table, lambda product: 1 - product),
    (lambda table: 1 - table**2, lambda product: np.sqrt(1 - product)),
    (lambda table: table / (1 + table), lambda product: product / (1 - product)),
    (lambda table: 1 / (1 + table**2), lambda product: np.sqrt((1 - product) / product)),
)
"""From a table to the product that it was computed from, and back.

The tables are the variance 1 - product, its root, the signal-to-noise ratio, and the noise level of a diffusion that
adds noise.
"""


def product_movement(table: np.ndarray, draw: int) -> np.ndarray | None:
    """Return by how much the rounding of a cumulative product moves a table; None if the table is of another kind.

    Args:
        table: Numbers of any shape, in float64.
        draw: Which movement, from 1: all numbers the same way, or the last ones the other way.

    """
    flat = table.ravel()
    if flat.size < 2 or not np.isfinite(flat).all() or (flat <= 0).any():
        return None
    steps = np.diff(flat)
    if not ((steps <= 0).all() or (steps >= 0).all()):
        return None
    factors = np.arange(1, flat.size + 1)
    # Two movements that are not multiples of each other: what one leaves as it is by chance, the other changes.
    profile = np.cos(np.pi * (draw - 1) * factors / flat.size)
    share = _SHARE * np.sqrt(factors) * profile
    if (form := _form(flat)) is not None:
        to_product, back = form
        product = to_product(flat)
        # The subtraction 1 - product is exact. But half a unit of a product that is nearly 1 is far more than half a
        # unit of the small difference.
        moved = product * (1 + share) + _GRID / 2 * profile * (product >= 0.5)
        # The movement may take a product that is nearly 1 beyond 1, where the variance is negative and has no root. So
        # it goes at most half of the way to 1.
        return (back(np.minimum(moved, (1 + product) / 2)) - flat).reshape(table.shape)
    for power in (1, 2):  # the table is the product, or its root
        if flat.size >= LONG and flat[0] <= 1 and _has_linear_factors(flat**power):
            # To first order, the relative movement of a square root is half of that of its argument.
            return (flat * share / power).reshape(table.shape)
    return None


def _has_linear_factors(flat: np.ndarray) -> bool:
    """Tell whether a falling table is the product of 1 - beta, where beta or its root grows linearly.

    So it is in a diffusion. Two neighbours give beta to float32's rounding. A table of another kind, such as a decay,
    has no such line in it: a beta that stays the same is one, and it is exact but for half a unit.
    """
    betas = 1 - flat[1:] / flat[:-1]
    if (betas <= 0).any():
        return False
    places = np.arange(len(betas))
    for values, rounding in ((betas, 6 * _GRID), (np.sqrt(betas), 3 * _GRID / np.sqrt(betas))):
        line = np.polynomial.Polynomial.fit(places, values, 1)
        grows = abs(line(places[-1]) - line(0)) > 256 * np.max(rounding)
        if grows and (np.abs(values - line(places)) <= rounding).all():
            return True
    return False


def _form(flat: np.ndarray) -> _Form | None:
    """Return the form in which the largest products below 1 are float32 numbers, which no other table's are."""
    for form in _FORMS:
        variance = 1 - form[0](flat)
        small = variance[(variance > 0) & (variance < 2.0**-8)]
        off = np.abs(small - np.round(small / _GRID) * _GRID)
        # The table's own rounding hides up to 4 units of it. A variance of 2**-8 is so near to the grid by chance once
        # in 32 times.
        if len(small) >= 3 and (off <= 4 * 2.0**-24 * small).all():
            return form
    return None
