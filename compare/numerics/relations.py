"""Finds how one array comes from another that should be equal: transposed, flipped, reordered, scaled, masked."""

import functools
import itertools
import math
from collections.abc import Iterator
from dataclasses import dataclass, field
from enum import StrEnum
from fractions import Fraction

import numpy as np

from compare.numerics.distance import distance


class Kind(StrEnum):
    """What has been done to torch's array to give the JAX side's."""

    TRANSPOSED = "transposed"
    FLIPPED = "flipped"
    ROLLED = "rolled"
    BLOCKS = "blocks"
    ORDER = "order"
    RESHAPED = "reshaped"
    FACTOR = "factor"
    OFFSET = "offset"
    ZERO = "zero"
    MASKED = "mask"


@dataclass(frozen=True)
class Relation:
    """How the JAX side's array comes from torch's."""

    kind: Kind
    axes: tuple[int, ...] = ()
    """The axes that it concerns."""
    order: tuple[int, ...] = ()
    """Of TRANSPOSED axes, of BLOCKS or of slices: where each comes from. The new shape if RESHAPED."""
    number: float = 0.0
    """The FACTOR, the OFFSET, or by how many places it is ROLLED."""
    mask: np.ndarray | None = field(default=None, compare=False)
    """Which elements are zero on the JAX side alone."""

    @property
    def free(self) -> int:
        """How many of its numbers were fitted; a permutation of slices counts as one."""
        return int(self.kind in (Kind.FACTOR, Kind.OFFSET, Kind.ORDER, Kind.MASKED))

    def apply(self, torch: np.ndarray) -> np.ndarray:
        """Compute the JAX side's array from torch's; ValueError where the shape does not allow it."""
        axis = self.axes[0] if self.axes else 0
        match self.kind:
            case Kind.TRANSPOSED:
                return torch.transpose(self.order)
            case Kind.FLIPPED:
                return np.flip(torch, self.axes)
            case Kind.ROLLED:
                return np.roll(torch, int(self.number), axis)
            case Kind.BLOCKS:
                parts = np.split(torch, len(self.order), axis)
                return np.concatenate([parts[i] for i in self.order], axis)
            case Kind.ORDER:
                return np.take(torch, self.order, axis)
            case Kind.RESHAPED:
                return torch.reshape(self.order)
            case Kind.FACTOR:
                return torch * self.number
            case Kind.OFFSET:
                return torch + self.number
            case Kind.ZERO:
                return np.zeros_like(torch)
            case Kind.MASKED:
                return torch * (1 - np.asarray(self.mask, np.float64))

    def again(self, torch: np.ndarray, jax: np.ndarray) -> "Relation":
        """Return the same relation of other arrays: which elements are zero may depend on the data."""
        return _masked(torch, jax) or self if self.kind is Kind.MASKED else self

    def __str__(self) -> str:
        """Say it in NumPy's words, as the JAX side's array."""
        axes = f"axis {self.axes[0]}" if len(self.axes) == 1 else f"axes {', '.join(map(str, self.axes))}"
        listed = list(self.order)
        shown = str(listed) if len(listed) <= 8 else f"[{', '.join(map(str, listed[:8]))}, ...]"
        zeros = 0 if self.mask is None else int(self.mask.sum())
        size = 0 if self.mask is None else self.mask.size
        return {
            Kind.TRANSPOSED: f"torch transposed: {self.order}",
            Kind.FLIPPED: f"torch flipped along {axes}",
            Kind.ROLLED: f"torch rolled by {self.number:g} along {axes}",
            Kind.BLOCKS: f"torch with its {len(listed)} blocks along {axes} in the order {listed}",
            Kind.ORDER: f"torch in another order along {axes}: {shown}",
            Kind.RESHAPED: f"torch reshaped to {self.order}",
            Kind.FACTOR: f"torch * {shown_number(self.number)}",
            Kind.OFFSET: f"torch + {shown_number(self.number)}",
            Kind.ZERO: "zero",
            Kind.MASKED: f"torch with {zeros} of {size} elements zero",
        }[self.kind]


def relation(torch: np.ndarray, jax: np.ndarray, limit: float) -> Relation | None:
    """Find how the JAX side's array comes from torch's; None where in no simple way.

    Args:
        torch: Torch's, of any shape.
        jax: The JAX side's, of the same size.
        limit: The distance that is near enough.

    >>> x = np.arange(6.0).reshape(2, 3)
    >>> str(relation(x, -x, 1e-15))
    'torch * -1'
    >>> str(relation(x, x[:, [1, 0, 2]], 1e-15))
    'torch in another order along axis 1: [1, 0, 2]'

    """
    torch, jax = np.asarray(torch, np.float64), np.asarray(jax, np.float64)
    # The first that fits is taken, so the order of the candidates is the order of what is simpler: moved
    # axes have no free number, an order of slices has one choice, a factor has a fitted number.
    with np.errstate(invalid="ignore"):  # of infinities, as in the logits of a mask
        return next((each for each in _candidates(torch, jax) if distance(each.apply(torch), jax) <= limit), None)


def _candidates(torch: np.ndarray, jax: np.ndarray) -> Iterator[Relation]:
    yield from _moved_axes(torch)
    if torch.shape != jax.shape:
        if torch.size == jax.size:
            yield Relation(Kind.RESHAPED, order=jax.shape)
        return
    yield from _moved_slices(torch)
    for axis in range(torch.ndim):
        if (order := _order(torch, jax, axis)) is not None:
            yield Relation(Kind.ORDER, (axis,), order)
    yield from _scaled(torch, jax)


def _moved_axes(torch: np.ndarray) -> Iterator[Relation]:
    axes = tuple(range(torch.ndim))
    if 2 <= torch.ndim <= 4:
        yield from (Relation(Kind.TRANSPOSED, order=order) for order in itertools.permutations(axes) if order != axes)
    for count in (1, 2, 3):
        yield from (Relation(Kind.FLIPPED, flipped) for flipped in itertools.combinations(axes, count))


def _moved_slices(torch: np.ndarray) -> Iterator[Relation]:
    for axis, size in enumerate(torch.shape):
        # Of two slices, a roll is an exchange, which `_order` and blocks describe.
        if size > 2:
            yield from (Relation(Kind.ROLLED, (axis,), number=places) for places in (1, -1))
    for axis, size in enumerate(torch.shape):
        # The gates of a GRU are three, those of an LSTM four, a gated unit has two; 24 orders of four are
        # cheap.
        for blocks in (2, 3, 4):
            if size % blocks == 0 and size > blocks:
                for order in itertools.permutations(range(blocks)):
                    if order != tuple(range(blocks)):
                        yield Relation(Kind.BLOCKS, (axis,), order)


def _scaled(torch: np.ndarray, jax: np.ndarray) -> Iterator[Relation]:
    """List a factor, an offset and zeros, fitted by least squares."""
    if size := float(np.vdot(torch, torch)):
        # The factor f that minimizes ‖f · torch - jax‖ is <torch, jax> / <torch, torch>.
        factor = simplest(float(np.vdot(torch, jax)) / size)
        # What is 1 in all digits that are shown is a difference of rounding, and no factor. Nor is 0: see below.
        if factor and shown_number(factor) != "1":
            yield Relation(Kind.FACTOR, number=factor)
    if torch.size > 1:
        # The offset c that minimizes ‖torch + c - jax‖ is the mean of the difference.
        yield Relation(Kind.OFFSET, number=simplest(float((jax - torch).mean())))
    if jax.size and not jax.any():
        yield Relation(Kind.ZERO)
    if masked := _masked(torch, jax):
        yield masked


def _masked(torch: np.ndarray, jax: np.ndarray) -> Relation | None:
    if torch.shape != jax.shape:
        return None
    zeros = (jax == 0) & (torch != 0)
    return Relation(Kind.MASKED, mask=zeros) if zeros.any() and not zeros.all() else None


def simplest(value: float) -> float:
    """Return the simple number that a value stands for, if it is one but for rounding; else the value."""
    simple = _simple(value)
    return value if simple is None else simple[0]


def shown_number(value: float) -> str:
    """Show a number as a fraction or a root where it is one.

    >>> shown_number(0.375), shown_number(2**-0.5), shown_number(0.123456789)
    ('3/8', '1/sqrt(2)', '0.123457')
    """
    simple = _simple(value)
    return f"{value:.6g}" if simple is None else simple[1]


def is_simple(value: float) -> bool:
    """Return whether a number is one that people write: a fraction of small numbers, or a root."""
    return _simple(value) is not None


@functools.lru_cache(maxsize=64)
def _simple(value: float) -> tuple[float, str] | None:
    """Return the fraction or the square root that a value is to nine digits, and how it is written."""
    if not math.isfinite(value) or value == 0:
        return None
    # Continued fractions give the best fraction with a denominator of at most 1024. A fraction of such a
    # size within 1e-9 of a fitted value is no accident: two such fractions are at least 1e-6 apart.
    fraction = Fraction(value).limit_denominator(1024)
    if fraction and math.isclose(fraction, value, rel_tol=1e-9) and fraction.denominator in _DENOMINATORS:
        return float(fraction), str(fraction)
    sign, mark = math.copysign(1, value), "-" if value < 0 else ""
    # Attention divides by sqrt(d), initializations by sqrt(n): the square of the factor is then an
    # integer or 1 over one.
    square = Fraction(value * value).limit_denominator(1024)
    for root in (square.numerator, square.denominator):
        if (
            1 in (square.numerator, square.denominator)
            and root > 1
            and math.isclose(square, value * value, rel_tol=1e-9)
        ):
            large = root == square.numerator
            return sign * (math.sqrt(root) if large else 1 / math.sqrt(root)), (
                f"{mark}sqrt({root})" if large else f"{mark}1/sqrt({root})"
            )
    return None


_DENOMINATORS = frozenset((*range(1, 65), 100, 128, 255, 256, 512, 1000, 1024))


def _order(torch: np.ndarray, jax: np.ndarray, axis: int) -> tuple[int, ...] | None:
    """Find the order in which the JAX side has torch's slices along an axis.

    Both arrays' slices are sorted by their first elements: the n-th of the one in that order is the n-th of the other.
    """
    ours, theirs = (np.moveaxis(array, axis, 0).reshape(array.shape[axis], -1) for array in (torch, jax))
    if not 2 < len(ours) <= 4096:
        return None
    # Sorting both costs n log n where comparing every slice with every other costs n². Rounded to twelve
    # places, so that what differs by float64's rounding sorts alike. Whether the order is right is
    # checked by `relation`, as for the others.
    keys = [np.lexsort(np.round(rows, 12).T[:8]) for rows in (ours, theirs)]
    # Only the first eight elements of each slice are keys. Slices that agree in these may come in a wrong order, which
    # `relation` then rejects: a reordering may be missed, but no wrong one is reported.
    order = np.empty(len(ours), int)
    order[keys[1]] = keys[0]
    return None if (order == np.arange(len(order))).all() else tuple(order.tolist())
