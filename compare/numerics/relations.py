"""How one array is related to another that should be the same: transposed, flipped, in another order, scaled."""

import itertools
import math
import re
from collections.abc import Iterator

import numpy as np

from compare.numerics.distance import distance


def nice(words: str) -> bool:
    """Tell whether a relation says more than that two numbers differ: a factor that is a fraction or a root."""
    return not re.search(r"[*+] -?[\d.e-]+$", words) or bool(re.search(r"[*] -?\d+(/\d+)?$", words))


def relation(torch: np.ndarray, jax: np.ndarray, limit: float) -> str:
    """Say how the JAX side's array comes from torch's, in NumPy's words; "" where in no simple way.

    Args:
        torch: Torch's, of any shape.
        jax: The JAX side's, of the same size.
        limit: The distance that is near enough.

    >>> x = np.arange(6.0).reshape(2, 3)
    >>> relation(x, -x, 1e-15)
    'torch * -1'
    >>> relation(x, x[:, [1, 0, 2]], 1e-15)
    'torch in another order along axis 1: [1, 0, 2]'

    """
    torch, jax = np.asarray(torch, np.float64), np.asarray(jax, np.float64)
    for words, array in _rearranged(torch, jax):
        if array.shape == jax.shape and distance(array, jax) <= limit:
            return words
    return ""


def _rearranged(torch: np.ndarray, jax: np.ndarray) -> Iterator[tuple[str, np.ndarray]]:
    axes = range(torch.ndim)
    if 2 <= torch.ndim <= 4:
        for order in itertools.permutations(axes):
            if list(order) != list(axes):
                yield f"torch transposed: {order}", torch.transpose(order)
    for count in (1, 2, 3):
        for flipped in itertools.combinations(axes, count):
            yield f"torch flipped along {_axes(flipped)}", np.flip(torch, flipped)
    if torch.shape != jax.shape:
        if torch.size == jax.size:
            yield f"torch reshaped to {jax.shape}", torch.reshape(jax.shape)
        return
    for axis in axes:
        for places in (1, -1):
            if torch.shape[axis] > 2:
                yield f"torch rolled by {places} along axis {axis}", np.roll(torch, places, axis)
    for axis in axes:
        for blocks in (2, 3, 4):
            size = torch.shape[axis]
            if size % blocks == 0 and size > blocks:
                parts = np.split(torch, blocks, axis)
                for order in itertools.permutations(range(blocks)):
                    if list(order) != list(range(blocks)):
                        words = f"torch with its {blocks} blocks along axis {axis} in the order {list(order)}"
                        yield words, np.concatenate([parts[i] for i in order], axis)
    for axis in axes:
        found = _order(torch, jax, axis)
        if found is not None:
            shown = str(found) if len(found) <= 8 else f"[{', '.join(map(str, found[:8]))}, ...]"
            yield f"torch in another order along axis {axis}: {shown}", np.take(torch, found, axis)
    size = float(np.vdot(torch, torch))
    if size:
        factor = float(np.vdot(torch, jax)) / size
        yield f"torch * {_number(factor)}", torch * factor
    offset = float((jax - torch).mean()) if torch.size else 0.0
    if torch.size > 1:
        yield f"torch + {_number(offset)}", torch + offset
    if jax.size and not jax.any():
        yield "zero", np.zeros_like(torch)
    zeros = (jax == 0) & (torch != 0)
    if zeros.any() and not zeros.all():
        yield f"torch with {zeros.sum()} of {zeros.size} elements zero", np.where(zeros, 0, torch)


def _axes(axes: tuple[int, ...]) -> str:
    return f"axis {axes[0]}" if len(axes) == 1 else f"axes {', '.join(map(str, axes))}"


def _number(value: float) -> str:
    """Show a number as a fraction where it is one."""
    if not np.isfinite(value):
        return str(value)
    for denominator in (*range(1, 65), 128, 255, 256, 512, 1024):
        if abs(value * denominator - round(value * denominator)) < 1e-9 and round(value * denominator):
            numerator = round(value * denominator)
            return str(numerator) if denominator == 1 else f"{numerator}/{denominator}"
    root = value**2
    for number in range(2, 1025):
        if math.isclose(root, number, rel_tol=1e-9) or math.isclose(root * number, 1, rel_tol=1e-9):
            sign = "-" if value < 0 else ""
            return f"{sign}sqrt({number})" if root > 1 else f"{sign}1/sqrt({number})"
    return f"{value:.6g}"


def _order(torch: np.ndarray, jax: np.ndarray, axis: int) -> list[int] | None:
    """Find the order in which the JAX side has torch's slices along an axis."""
    ours, theirs = (np.moveaxis(array, axis, 0).reshape(array.shape[axis], -1) for array in (torch, jax))
    if not 2 < len(ours) <= 4096:
        return None
    keys = [np.lexsort(np.round(rows, 12).T[:8]) for rows in (ours, theirs)]
    order = np.empty(len(ours), int)
    order[keys[1]] = keys[0]
    return None if (order == np.arange(len(order))).all() else order.tolist()
