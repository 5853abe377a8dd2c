"""Layouts of arrays on the JAX side relative to torch: channels last, time first, heads split, flattened.

One table of orders of axes serves activations and random draws. Only the shape of a draw is known, so that fewer orders
are tried for it.
"""

import itertools
import math
from collections import Counter
from collections.abc import Callable, Iterable
from typing import Any, NamedTuple

import numpy as np

from compare.numerics.distance import distance
from compare.step.draws import NO_HINTS, Hints
from compare.step.observation import Observation, to_numpy

Rearrange = Callable[[Any], Any]


class Layout(NamedTuple):
    """A layout: converts arrays between the sides. Both functions take NumPy or JAX arrays of any batch size."""

    name: str
    to_torch: Rearrange
    to_jax: Rearrange


class Order(NamedTuple):
    """An order of axes that a port may have."""

    name: str
    axes: Callable[[int], tuple[int, ...]]
    """For each number of dimensions, the axis of torch that each axis of JAX is."""
    activations: range = range(0)
    """The numbers of dimensions for which it is tried on what modules take and give."""
    draws: range = range(0)
    """The same for random numbers."""

    @property
    def layout(self) -> Layout:
        """The layout that has this order."""
        return Layout(
            self.name,
            # The argsort of a permutation is its inverse.
            to_torch=lambda array: array.transpose(tuple(map(int, np.argsort(self.axes(array.ndim))))),
            to_jax=lambda array: array.transpose(self.axes(array.ndim)),
        )

    def brings(self, torch: tuple[int, ...], jax: tuple[int, ...]) -> bool:
        """Whether this order of axes turns torch's shape into JAX's."""
        return tuple(torch[axis] for axis in self.axes(len(torch))) == jax


_MOST = 65  # NumPy's largest number of dimensions, and one

AS_IT_IS = Order(
    "as it is",
    axes=lambda n: tuple(range(n)),
    activations=range(_MOST),
    draws=range(_MOST),
)
CHANNELS_LAST = Order(
    "channels last",
    axes=lambda n: (0, *range(2, n), 1),
    activations=range(3, _MOST),
    draws=range(3, _MOST),
)
ORDERS = (
    AS_IT_IS,
    CHANNELS_LAST,
    # Torch's recurrent layers and attention put time before the batch.
    Order(
        "first two axes exchanged",
        axes=lambda n: (1, 0, *range(2, n)),
        activations=range(3, _MOST),
        draws=range(3, 4),
    ),
    # Attention's heads before time in torch, after it in Flax.
    Order(
        "second and third axes exchanged",
        axes=lambda n: (0, 2, 1, *range(3, n)),
        activations=range(4, _MOST),
        draws=range(0),
    ),
)


def ordered(axes: tuple[int, ...]) -> Layout:
    """The layout of a weight, of which each of JAX's axes is another one of torch's."""
    return Order(f"as a weight, {axes}", axes=lambda _: axes).layout


def flattened(features: tuple[int, ...]) -> Layout:
    """The layout of flattened features, of which torch's have channels first and the port's channels last."""
    channels, *spatial = features
    last = CHANNELS_LAST.layout
    return Layout(
        "flattened, channels last",
        to_torch=lambda array: last.to_torch(array.reshape(-1, *spatial, channels)).reshape(array.shape),
        to_jax=lambda array: last.to_jax(array.reshape(-1, channels, *spatial)).reshape(array.shape),
    )


def reshaped(name: str, torch: tuple[int, ...], jax: tuple[int, ...]) -> Layout:
    """The layout of the same numbers in the same order, with axes split or put together; the first is the batch."""

    def any_batch(shape: tuple[int, ...]) -> tuple[int, ...]:
        return (-1, *shape[1:]) if shape else ()

    return Layout(name, lambda array: array.reshape(any_batch(torch)), lambda array: array.reshape(any_batch(jax)))


def draw_layouts(shape: tuple[int, ...], wanted: tuple[int, ...], hints: Hints = NO_HINTS) -> list[Layout]:
    """List the layouts under which torch's random numbers have the shape `wanted`, each once.

    Besides the orders of axes these are that of a weight of both shapes, other axes of length one, and an axis split in
    two, as heads from the batch: `torch.nn.MultiheadAttention` draws `(batch * heads, query, key)`.
    """
    for channels, points in hints.flattened:
        if shape == wanted and len(shape) == 2 and shape[1] == channels * points:
            return [flattened((channels, points))]
    found: dict[tuple[int, ...], Layout] = {}
    for order in ORDERS:
        if len(shape) in order.draws and order.brings(shape, wanted):
            # Orders that differ by axes of length one alone are the same layout in memory.
            moved = tuple(axis for axis in order.axes(len(shape)) if shape[axis] != 1)
            found.setdefault(moved, order.layout)
    for weight in itertools.chain.from_iterable(hints.weights):
        if (shape, wanted) == (weight.torch, weight.jax):
            moved = tuple(axis for axis in weight.axes if shape[axis] != 1)
            found.setdefault(moved, ordered(weight.axes))
    unmoved = tuple(axis for axis, length in enumerate(shape) if length != 1)
    if [n for n in shape if n != 1] == [n for n in wanted if n != 1]:
        found.setdefault(unmoved, reshaped("with other axes of length one", shape, wanted))
    # torch.nn.functional.multi_head_attention_forward views (batch, heads, ...) as (batch * heads, ...), and
    # torch.distributions.Categorical all axes of its batch as one: row-major, so that splitting the axis undoes it.
    if _splits(shape, wanted) or _splits(wanted, shape):
        found.setdefault(unmoved, reshaped("an axis split", shape, wanted))
    return list(found.values())


def _splits(whole: tuple[int, ...], parts: tuple[int, ...]) -> bool:
    """Tell whether one shape is another one with one of its axes split in two."""
    pairs = enumerate(itertools.pairwise(parts))
    return any((*parts[:axis], first * second, *parts[axis + 2 :]) == whole for axis, (first, second) in pairs)


NEAR = 1e-2
"""Two arrays nearer than this have the same layout: another order of axes does not come as near by accident."""

CLEARLY = 1e-3
"""How much nearer than the usual order another one must bring arrays that are near each other in both."""

NEARER = 0.5
"""What another order of axes must leave of the distance: the nearest of several wrong ones is so by accident."""


class ActivationLayouts:
    """Finds the layout of an array of the JAX side relative to torch's.

    Several layouts fit the shapes if batch, channels, height and width are equal. Then the one is taken under which the
    two arrays are near each other. If none is, because of a bug before, it is the one that most other arrays of as many
    dimensions have for certain; for flattened features, the order that the port's weights have.

    Args:
        features: The shapes (channels, *spatial) of what linear layers take flattened in the port's order.
        torch: A step of the torch side in float64.
        jax: The same step of the JAX side.

    """

    def __init__(self, features: Iterable[tuple[int, ...]], torch: Observation, jax: Observation) -> None:
        self._flattened = {math.prod(shape): flattened(shape) for shape in features}
        self._certain: Counter[tuple[int, str]] = Counter()
        shapes = {tuple(to_numpy(value).shape) for value in jax.forward.values()}
        for value in torch.forward.values():
            shape = tuple(to_numpy(value).shape)
            # A shape such as (4, 3, 32, 28) fits one order only, and shows by that which order the port uses.
            fitting = [layout for other in shapes for layout in _fitting(shape, other)]
            if len(fitting) == 1:
                self._certain[len(shape), fitting[0].name] += 1
        self.known = frozenset(self._certain)
        """For numbers of dimensions, the orders that the shapes alone show the port to have."""

    def __call__(self, torch: np.ndarray, jax: np.ndarray, *, may_be_flattened: bool) -> Layout | None:
        """Give the layout; None if it is none of those that are known."""
        if (torch.dtype.kind == "f") != (jax.dtype.kind == "f"):
            return None
        fitting = _fitting(torch.shape, jax.shape)
        in_port_order = self._flattened.get(torch.shape[1]) if torch.ndim == 2 and may_be_flattened else None
        if in_port_order and torch.shape == jax.shape:
            fitting.append(in_port_order)
        if len(fitting) > 1:
            apart = [distance(layout.to_torch(jax), torch) for layout in fitting]
            nearest = int(np.argmin(apart))
            if apart[nearest] < NEAR:
                # Numbers that hardly change along two axes are near each other in either order of these.
                near = [number for number, each in enumerate(apart) if each < NEAR]
                usual = max(near, key=lambda number: self._certain[torch.ndim, fitting[number].name])
                chosen = nearest if apart[nearest] < CLEARLY * apart[usual] else usual
                self._certain[torch.ndim, fitting[chosen].name] += 1
                return fitting[chosen]
            # A bug before this place has changed the values, so that no layout brings the two near each other.
            if in_port_order:
                return in_port_order
            counts = [self._certain[torch.ndim, layout.name] for layout in fitting]
            if max(counts) > 0:
                return fitting[int(np.argmax(counts))]
            # As they are, if no other order brings them much nearer.
            return fitting[nearest if apart[nearest] < NEARER * apart[0] else 0]
        if fitting:
            return fitting[0]
        if torch.size == jax.size and torch.shape[:1] == jax.shape[:1] and jax.ndim > torch.ndim:
            return reshaped("heads split", torch.shape, jax.shape)
        return None


def _fitting(torch: tuple[int, ...], jax: tuple[int, ...]) -> list[Layout]:
    """List the orders of axes that bring an array of one shape into another."""
    return [order.layout for order in ORDERS if len(torch) in order.activations and order.brings(torch, jax)]
