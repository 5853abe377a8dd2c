"""How an array of the JAX side lies beside torch's: channels last, time first, heads apart, flattened."""

import math
from collections import Counter
from collections.abc import Callable, Iterable
from typing import NamedTuple

import numpy as np

from compare.numerics.distance import distance
from compare.step.observation import Observation, to_numpy

Rearrange = Callable[[np.ndarray], np.ndarray]


class Layout(NamedTuple):
    """How an array of the JAX side lies beside torch's."""

    dimensions: int
    """How many it takes, at least."""
    to_torch: Rearrange
    to_jax: Rearrange


LAYOUTS = (
    Layout(0, lambda array: array, lambda array: array),
    # Channels last to channels first, batch first to time first, and heads after time to heads before it.
    Layout(3, lambda array: np.moveaxis(array, -1, 1), lambda array: np.moveaxis(array, 1, -1)),
    Layout(3, lambda array: np.swapaxes(array, 0, 1), lambda array: np.swapaxes(array, 0, 1)),
    Layout(4, lambda array: np.swapaxes(array, 1, 2), lambda array: np.swapaxes(array, 1, 2)),
)


def unflattened(features: tuple[int, ...]) -> Layout:
    """The layout of flattened features, of which torch's have channels first and the port's channels last."""
    channels, *spatial = features

    def to_torch(array: np.ndarray) -> np.ndarray:
        return np.moveaxis(array.reshape(-1, *spatial, channels), -1, 1).reshape(array.shape)

    def to_jax(array: np.ndarray) -> np.ndarray:
        return np.moveaxis(array.reshape(-1, channels, *spatial), 1, -1).reshape(array.shape)

    return Layout(0, to_torch, to_jax)


NEAR = 1e-2
"""Two arrays nearer than this lie alike: no other order of one of them comes as near by accident."""


class ActivationLayouts:
    """Finds how an array of the JAX side lies beside torch's.

    Where several layouts fit, as they do if batch, channels, height and width are equal, the one under which the two
    are near each other is meant. If they are not, because of a bug before, it is the one that most arrays of as many
    dimensions have for certain; of features flattened in an order of the port's own, that order.

    Args:
        flattened: The shapes (channels, *spatial) of what linear layers take flattened in the port's order.
        torch: A step of the torch side in float64.
        jax: The same step of the JAX side.

    """

    def __init__(self, flattened: Iterable[tuple[int, ...]], torch: Observation, jax: Observation) -> None:
        self._flattened = {math.prod(shape): unflattened(shape) for shape in flattened}
        self._certain: Counter[tuple[int, Layout]] = Counter()
        shapes = {tuple(to_numpy(value).shape) for value in jax.forward.values()}
        for value in torch.forward.values():
            array = np.empty(to_numpy(value).shape, bool)
            fitting = [layout for shape in shapes for layout in _fitting(array.shape, shape)]
            if len(fitting) == 1:
                self._certain[array.ndim, fitting[0]] += 1

    def __call__(self, torch: np.ndarray, jax: np.ndarray, *, may_be_flattened: bool) -> Layout | None:
        """Give the layout; None if it is none of those that are known."""
        if (torch.dtype.kind == "f") != (jax.dtype.kind == "f"):
            return None
        fitting = _fitting(torch.shape, jax.shape)
        flattened = self._flattened.get(torch.shape[1]) if torch.ndim == 2 and may_be_flattened else None
        if flattened and torch.shape == jax.shape:
            fitting.append(flattened)
        if len(fitting) > 1:
            apart = {layout: distance(layout.to_torch(jax), torch) for layout in fitting}
            nearest = min(fitting, key=apart.__getitem__)
            if apart[nearest] < NEAR:
                return nearest
            return flattened or max(fitting, key=lambda layout: (self._certain[torch.ndim, layout], -apart[layout]))
        if fitting:
            return fitting[0]
        if torch.size == jax.size and torch.shape[:1] == jax.shape[:1] and jax.ndim > torch.ndim:
            heads_apart, together = jax.shape, torch.shape
            return Layout(0, lambda array: array.reshape(together), lambda array: array.reshape(heads_apart))
        return None


def _fitting(torch: tuple[int, ...], jax: tuple[int, ...]) -> list[Layout]:
    """List the layouts that bring an array of one shape into another."""
    like = np.broadcast_to(np.False_, jax)
    return [each for each in LAYOUTS if len(jax) >= each.dimensions and each.to_torch(like).shape == torch]
