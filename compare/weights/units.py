"""The units of a model's weights: layers, or the parts of them that have one partner on the other side.

An LSTM of torch has the weights of four gates in one tensor, Linen's in four layers; attention has one projection for
query, key and value, or three. A unit has a slot for each part of a tensor that has a partner on the other side.
"""

import dataclasses
import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np


@dataclass(frozen=True)
class View:
    """A part of an array in another layout, as NumPy views applied in this order: writing into it writes the array."""

    index: tuple[slice | int, ...] = ()
    """Which part: rows of a fused projection, one layer of a stack."""
    shape: tuple[int, ...] | None = None
    """Reshape: heads split, channels unflattened."""
    axes: tuple[int, ...] | None = None
    """Transpose."""
    flip: tuple[int, ...] = ()
    """Axes to reverse, those of the result."""

    def __call__(self, array: np.ndarray) -> np.ndarray:
        """View `array` so.

        Raises:
            ValueError: If that would need a copy, which cannot be written into.

        """
        # An Ellipsis keeps a scalar an array, which can be written into.
        view = array[(*self.index, ...)]
        if self.shape is not None:
            view = view.reshape(self.shape, copy=False)
        if self.axes is not None:
            view = view.transpose(self.axes)
        return np.flip(view, self.flip) if self.flip else view


@dataclass(frozen=True)
class Slot:
    """A tensor, or the part of it that one unit has."""

    name: str
    shape: tuple[int, ...]
    """Of the part."""
    index: tuple[slice | int, ...] = ()
    optional: bool = False
    """It may go without a partner: a buffer, or a tensor that has other names on the torch side."""
    integer: bool = False
    """Its numbers are not floating-point."""

    @property
    def leaf(self) -> str:
        """The last part of its name."""
        return self.name.replace("/", ".").rsplit(".", 1)[-1]

    def cut(self, index: int | slice, axis: int = 0) -> "Slot":
        """Take a part, along one axis."""
        if isinstance(index, int):
            return dataclasses.replace(self, shape=self.shape[1:], index=(*self.index, index))
        size = index.stop - index.start
        shape = (*self.shape[:axis], size, *self.shape[axis + 1 :])
        return dataclasses.replace(self, shape=shape, index=(*self.index, *(slice(None),) * axis, index))

    def part(self, index: tuple[slice | int, ...]) -> "Slot":
        """Take a part, an index or a slice with both ends for each of the first axes."""
        sizes = (size.stop - size.start for size in index if isinstance(size, slice))
        return dataclasses.replace(self, shape=(*sizes, *self.shape[len(index) :]), index=index)

    def view(self, shape: tuple[int, ...] | None = None, axes: Iterable[int] | None = None, flip: int = 0) -> View:
        """View the part in another layout, `flip` axes of it reversed, the last ones."""
        kept = None if shape == self.shape else shape
        order = None if axes is None else tuple(axes)
        size = len(shape if shape is not None else self.shape)
        return View(self.index, kept, order, tuple(range(size - flip, size)))


@dataclass
class Unit:
    """What has one partner on the other side: a layer, or one of several that a layer contains."""

    path: str
    type: str
    kind: str
    settings: Mapping[str, Any]
    slots: "Slots"
    """By role: "weight", "bias", "mean", "var"; "weight_ih.0" of a gate. Two slots of one role add up."""

    @property
    def required(self) -> set[str]:
        """The roles that need a partner."""
        return {role for role, slots in self.slots.items() if not all(slot.optional for slot in slots)}

    @property
    def sizes(self) -> dict[str, int]:
        """How many numbers each role has, whatever their layout."""
        return {role: math.prod(slots[0].shape) for role, slots in self.slots.items()}


Slots = dict[str, tuple[Slot, ...]]

ROLES = {
    leaf: role
    for role, leaves in {
        "weight": "weight kernel w scale gamma embedding embeddings negative_slope",
        "bias": "bias b beta offset",
        "mean": "running_mean mean",
        "var": "running_var var",
    }.items()
    for leaf in leaves.split()
}


def role_of(leaf: str) -> str:
    """Return the role of a tensor, or "" if its name tells none; "weight norm", of two words, is a role by itself."""
    return ROLES.get(leaf, leaf if " " in leaf else "")


INPUT_FIRST = ("kernel", "w")
"""Flax's and Haiku's names of what has the input before the output."""
