"""Finds how two arrays of different shapes have the same numbers: squeezed, expanded, flattened, transposed."""

import itertools
from collections.abc import Callable, Iterator
from typing import NamedTuple

import numpy as np

from compare.numerics.distance import distance
from compare.step.layouts import NEAR

Rearrange = Callable[[np.ndarray], np.ndarray]

_SAMPLE = 64
"""Elements that are compared before whole arrays are."""

_AXES = 5
"""The largest number of axes for which every order is tried."""


class Views(NamedTuple):
    """How to see an array of either side so that both have one shape and, in a right port, the same numbers."""

    torch: Rearrange
    jax: Rearrange
    to_jax: Rearrange
    """Brings what `torch` gives into the JAX side's shape, or into one that broadcasts to it."""


def same_numbers(torch: np.ndarray, jax: np.ndarray) -> Views | None:
    """Return the views under which two arrays of different shapes have the same numbers; None if there are none.

    The numbers decide: a shape alone could be reached in many ways. The views also take a batch of another size, as
    long as the batch is the first axis.
    """
    if not torch.size or not jax.size or (torch.dtype.kind == "f") != (jax.dtype.kind == "f"):
        return None
    for views in (*_expanded(torch.shape, jax.shape), *_orders(torch, jax)):
        if distance(views.jax(jax), views.torch(torch)) < NEAR:
            return views
    return None


def squeezed(torch: tuple[int, ...], jax: tuple[int, ...]) -> Views | None:
    """Return the views of two shapes that differ only by axes of length one, so that no value must decide."""
    ours, theirs = (tuple(axis for axis, size in enumerate(shape) if size == 1) for shape in (torch, jax))
    if [size for size in torch if size != 1] != [size for size in jax if size != 1]:
        return None
    return Views(
        lambda array: np.squeeze(array, ours),
        lambda array: np.squeeze(array, theirs),
        lambda array: np.expand_dims(array, theirs),
    )


def _expanded(torch: tuple[int, ...], jax: tuple[int, ...]) -> Iterator[Views]:
    """One side repeats along some axes what the other has once, and leaves to broadcasting."""
    dimensions = max(len(torch), len(jax))
    ours, theirs = ((1,) * (dimensions - len(shape)) + shape for shape in (torch, jax))
    if ours == theirs:
        return
    repeated = tuple(axis for axis in range(dimensions) if ours[axis] == 1 != theirs[axis])
    if all(a == b or a == 1 for a, b in zip(ours, theirs, strict=True)):
        yield Views(_with_dimensions(dimensions), _once(repeated), lambda array: array)
    repeated = tuple(axis for axis in range(dimensions) if theirs[axis] == 1 != ours[axis])
    if all(a == b or b == 1 for a, b in zip(ours, theirs, strict=True)):
        padding = len(ours) - len(jax)
        yield Views(_once(repeated), _with_dimensions(dimensions), lambda array: array.reshape(array.shape[padding:]))


def _with_dimensions(dimensions: int) -> Rearrange:
    return lambda array: array.reshape((1,) * (dimensions - array.ndim) + array.shape)


def _once(axes: tuple[int, ...]) -> Rearrange:
    """See along some axes one element. Where they are not all equal, how far apart they are is added.

    A difference in any of them is then seen, whatever the size of the axis.
    """

    def once(array: np.ndarray) -> np.ndarray:
        first: np.ndarray = np.take(array, [0], axes[0]) if axes else array
        for axis in axes[1:]:
            first = np.take(first, [0], axis)
        spread: np.ndarray = np.max(array, axes, keepdims=True) - np.min(array, axes, keepdims=True)
        # A broadcast axis has equal elements, and its spread is zero. Were one element wrong, taking the
        # first alone would miss it; a mean would divide the error by the length of the axis.
        return first + spread

    return once


def _orders(torch: np.ndarray, jax: np.ndarray) -> Iterator[Views]:
    """The same number of elements: axes exchanged on the side that has more of them, then split or put together."""
    if torch.size != jax.size:
        return
    of_torch = torch.ndim > jax.ndim
    more, fewer = (torch, jax) if of_torch else (jax, torch)
    sample = np.asarray(fewer.flat[:_SAMPLE])
    # A reshape after a transpose is determined by the order of the axes alone, as both flatten in
    # row-major order. 64 elements rule out nearly every wrong order, before the whole arrays are
    # compared.
    for axes in _permutations(more.shape):
        moved = more.transpose(axes)
        if distance(np.asarray(moved.flat[:_SAMPLE]), sample) < NEAR:
            merge, split = _merging(axes, moved.shape, fewer.shape)
            if of_torch:
                yield Views(lambda array: array, split, merge)
            else:
                yield Views(lambda array: array, merge, split)


def _merging(axes: tuple[int, ...], moved: tuple[int, ...], merged: tuple[int, ...]) -> tuple[Rearrange, Rearrange]:
    """Exchange axes and reshape, and back again."""
    back = tuple(map(int, np.argsort(axes)))
    return (
        lambda array: array.transpose(axes).reshape(_any_batch(merged)),
        lambda array: array.reshape(_any_batch(moved)).transpose(back),
    )


def _any_batch(shape: tuple[int, ...]) -> tuple[int, ...]:
    return (-1, *shape[1:]) if shape else ()


def _permutations(shape: tuple[int, ...]) -> Iterator[tuple[int, ...]]:
    """List the orders of axes, each once as far as axes of length one do not matter; the usual one first."""
    if len(shape) > _AXES:
        yield tuple(range(len(shape)))
        return
    seen = set()
    for axes in itertools.permutations(range(len(shape))):
        moved = tuple(axis for axis in axes if shape[axis] != 1)
        if moved not in seen:
            seen.add(moved)
            yield axes
