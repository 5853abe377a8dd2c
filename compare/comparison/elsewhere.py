"""Other weights and other batches of the same shapes, to detect a port that only fits the given ones.

All of it is drawn from a fixed seed. What is drawn must be valid for any right port, so that whatever carries meaning
in its values is kept: zeros among weights (padding rows, masks), 0 and 1 among inputs, lengths, order, sums of one.
"""

import functools
from collections.abc import Collection, Mapping
from typing import Any

import numpy as np

from compare.numerics.distance import ULPS
from compare.step.batch import Batch, mapped

SEED = 20_13

_STATISTICS = {"running_mean": (0.0, 0.3), "running_var": (1.0, 0.0)}
"""Buffers of norms, each with the part of itself that it keeps, and how much is added: a variance stays positive."""


def scattered(arrays: Mapping[str, np.ndarray], names: Collection[str], *, near: bool = False) -> dict[str, np.ndarray]:
    """Return other weights of the same scale.

    Args:
        arrays: Parameters and buffers, by name.
        names: Those that the other side has too; all others stay.
        near: Whether to multiply by numbers about 1, for models whose weights must keep their signs.

    """
    generator = np.random.default_rng(SEED)
    made = {name: np.array(array) for name, array in arrays.items()}
    for name in (name for name in made if name in names):
        array = made[name].astype(np.float64)
        if array.dtype.kind == "f" and made[name].dtype.kind == "f" and array.size:
            made[name] = _other(name.rpartition(".")[2], array, generator, near).astype(np.float32)
    return made


def _other(kind: str, array: np.ndarray, generator: np.random.Generator, near: bool) -> np.ndarray:
    factor = generator.uniform(0.7, 1.3, array.shape)
    if kind in _STATISTICS:
        _, added = _STATISTICS[kind]
        return array * factor + added * generator.standard_normal(array.shape)
    noise = generator.standard_normal(array.shape)
    if not array.any():  # what starts at zero would hide all that it is multiplied by
        return 0.1 * noise
    spread = float(array.std())
    if near or spread < 1e-3 * float(np.abs(array).mean()):
        return array * factor
    return np.where(array == 0, 0.0, array + spread * noise)


def perturbed(batches: list[Batch]) -> list[Batch]:
    """Return other batches of the same shapes and dtypes.

    Real numbers are each multiplied by a number of their own. The rows of integers, flags and one-hot vectors are
    permuted in the same way: they stay valid, and still belong to each other.
    """
    generator = np.random.default_rng(SEED)
    return [_perturbed(batch, generator) for batch in batches]


def _perturbed(batch: Batch, generator: np.random.Generator) -> Batch:
    orders: dict[int, np.ndarray] = {}
    real: list[bool] = []
    mapped(batch.inputs, lambda leaf: real.append(isinstance(leaf, np.ndarray) and _is_real(leaf)))

    def other(array: Any, *, is_input: bool) -> Any:
        if not isinstance(array, np.ndarray) or array.size < 2:
            return array
        if _is_ordered(array) and is_input:
            return array
        if not _is_real(array):
            if array.dtype.kind == "f" and not any(real) and is_input and (array == array.flat[0]).all():
                return np.asarray(generator.standard_normal(array.shape), array.dtype)  # no flag: there is nothing else
            return _permuted(array, orders, generator)
        return np.asarray(array * generator.uniform(0.8, 1.0, array.shape), array.dtype)

    inputs = mapped(batch.inputs, functools.partial(other, is_input=True))
    return Batch(inputs, mapped(batch.target, functools.partial(other, is_input=False)))


def _is_real(array: np.ndarray) -> bool:
    """Return whether any number near each would be as valid: not for whole numbers, nor for rows of sum or norm 1."""
    if array.dtype.kind != "f" or not array.size or (array == np.round(array)).all():
        return False
    if array.ndim < 2 or array.shape[-1] < 2:
        return True
    sums, norms = array.sum(-1), (array.astype(np.float64) ** 2).sum(-1)
    return not any(np.allclose(each, 1, rtol=0, atol=1e-4) for each in (sums, norms))


def _is_ordered(array: np.ndarray) -> bool:
    """Return whether an array of one axis ascends, as times, offsets and positions do."""
    return array.ndim == 1 and array.dtype.kind in "iuf" and bool((np.diff(array) >= 0).all())


def _permuted(array: np.ndarray, orders: dict[int, np.ndarray], generator: np.random.Generator) -> np.ndarray:
    axis = 1 if array.shape[0] == 1 and array.ndim > 1 else 0
    size = array.shape[axis]
    if size not in orders:
        # A cycle leaves no row in its place.
        orders[size] = np.roll(np.arange(size), 1 + int(generator.integers(max(size - 1, 1))))
    return np.take(array, orders[size], axis)


def moved_inputs(batch: Batch, draw: int, epsilon: float) -> Batch:
    """Return a batch whose real inputs are moved by a few units in the last place; draw 0 is the batch as it is."""
    generator = np.random.default_rng(draw)

    def moved(array: Any) -> Any:
        if not draw or not isinstance(array, np.ndarray) or not _is_real(array):
            return array
        ulps = ULPS * epsilon
        return np.asarray(array * (1 + generator.choice((-ulps, ulps), array.shape)), array.dtype)

    return batch._replace(inputs=mapped(batch.inputs, moved))
