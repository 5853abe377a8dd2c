"""The units of a model's weights: the layers of both sides, cut so that they match one to one.

An LSTM of torch has the weights of four gates in one tensor, Linen's in four layers; attention has one projection for
query, key and value, or three. A unit has a slot for each part of a tensor that has a partner on the other side.
"""

import dataclasses
import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from compare.layers import Layer


@dataclass(frozen=True)
class View:
    """A part of an array, in another layout: NumPy views in this order, so that writing into it writes the array."""

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
    tied: bool = False
    """The tensor has other names on the torch side, so that this one may go without a partner."""

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

INPUT_FIRST = ("kernel", "w")
"""Flax's and Haiku's names of what has the input before the output."""

GATES = {"lstm": 4, "gru": 3, "rnn": 1}
"""Both sides have them in the same order: i, f, g, o, and r, z, n."""

CELLS = {
    frozenset(("ii", "if", "ig", "io", "hi", "hf", "hg", "ho")): ("lstm", "ifgo"),
    frozenset(("ir", "iz", "in", "hr", "hz", "hn")): ("gru", "rzn"),
    frozenset(("dense_i", "dense_h")): ("", ""),
    frozenset(("i", "h")): ("rnn", ""),
}
"""Flax's recurrent cells, by the names of the layers in them: their kind and gates."""


def units(layers: list[Layer]) -> list[Unit]:
    """Make one unit of each layer, with a slot for each tensor by the last part of its name."""
    made = []
    for layer in layers:
        tied = layer.settings.get("tied", {})
        slots = [Slot(name, shape, tied=name in tied) for name, shape in layer.tensors.items()]
        kind = layer.settings.get("kind", "")
        made.append(Unit(layer.path, layer.type, kind, layer.settings, {slot.leaf: (slot,) for slot in slots}))
    return made


def torch_units(whole: list[Unit], *, split: bool) -> list[Unit]:
    """Cut torch's layers into units; with `split`, fused query, key and value projections into three."""
    made = []
    for unit in whole:
        if unit.kind == "attention":
            made += _attention(unit, split)
        elif unit.kind in GATES:
            made += _recurrent(unit)
        else:
            made += _by_role(unit, split)
    return made


def jax_units(whole: list[Unit], *, split: bool) -> list[Unit]:
    """Cut JAX's layers into units, and put Flax's recurrent cells together."""
    made = []
    for unit in _cells(whole):
        if unit.kind not in GATES:
            made += _by_role(unit, split)
        elif "weight_ih" in unit.slots:
            made += _recurrent(unit)
        else:
            made.append(unit)
    return made


def single(unit: Unit) -> list[Unit]:
    """Take a layer apart into its tensors, for a model that keeps them in lists or under names of its own.

    A weight is still that of its kind. Nothing but its shape is known of any other tensor.
    """
    return [
        Unit(slots[0].name, unit.type, unit.kind if role == "weight" else "", unit.settings, {"weight": slots})
        for role, slots in unit.slots.items()
    ]


def is_fused(unit: Unit) -> bool:
    """Tell whether one projection gives query, key and value: `nn.MultiheadAttention`, or a layer so called."""
    name = unit.path.replace("/", ".").rsplit(".", 1)[-1].lower()
    return "in_proj_weight" in unit.slots or name in ("qkv", "c_attn", "in_proj", "wqkv", "qkv_proj", "to_qkv")


def _by_role(unit: Unit, split: bool) -> list[Unit]:
    """Name a layer's slots by their roles; tensors without one are units of their own."""
    roles = {ROLES.get(leaf, ""): slots for leaf, slots in unit.slots.items()}
    known = {role: slots for role, slots in roles.items() if role}
    rest = [slots for leaf, slots in unit.slots.items() if known.get(ROLES.get(leaf, "")) != slots]
    made = [Unit(unit.path, unit.type, unit.kind, unit.settings, known)] if known else []
    if made and split and is_fused(unit):
        # The outputs of a kernel come last.
        last = {role: len(slots[0].shape) - 1 if _input_first(unit, slots[0]) else 0 for role, slots in known.items()}
        made = _split(unit, {role: slots[0] for role, slots in known.items()}, last)
    names = [slots[0].name for slots in rest]
    return made + [
        Unit(name, unit.type, "", unit.settings, {"weight": slots}) for name, slots in zip(names, rest, strict=True)
    ]


def _input_first(unit: Unit, slot: Slot) -> bool:
    return unit.type == "Conv1D" or slot.leaf in INPUT_FIRST


def _split(unit: Unit, slots: dict[str, Slot], axes: dict[str, int]) -> list[Unit]:
    made = []
    for at, name in enumerate(("query", "key", "value")):
        parts: Slots = {}
        for role, slot in slots.items():
            size = slot.shape[axes[role]] // 3
            parts[role] = (slot.cut(slice(at * size, (at + 1) * size), axes[role]),)
        made.append(Unit(".".join(filter(None, (unit.path, name))), unit.type, "linear", unit.settings, parts))
    return made


def _attention(unit: Unit, split: bool) -> list[Unit]:
    """`torch.nn.MultiheadAttention`: `in_proj_weight` (3E, E), or three weights where kdim or vdim differ."""
    slots = {leaf: slots[0] for leaf, slots in unit.slots.items()}
    bias = slots.pop("in_proj_bias", None)

    def named(name: str, weight: Slot, bias: Slot | None) -> Unit:
        parts: Slots = {"weight": (weight,), **({"bias": (bias,)} if bias else {})}
        return Unit(".".join(filter(None, (unit.path, name))), unit.type, "linear", unit.settings, parts)

    made: list[Unit] = []
    if "in_proj_weight" in slots:
        fused = named("qkv", slots.pop("in_proj_weight"), bias)
        whole = {role: slots[0] for role, slots in fused.slots.items()}
        made = _split(unit, whole, dict.fromkeys(whole, 0)) if split else [fused]
    for at, name in enumerate(("query", "key", "value")):
        if f"{name[0]}_proj_weight" in slots:
            weight = slots.pop(f"{name[0]}_proj_weight")
            rows = slice(at * weight.shape[0], (at + 1) * weight.shape[0])
            made.append(named(name, weight, bias.cut(rows) if bias else None))
    return made + [Unit(slot.name, "", "", unit.settings, {"weight": (slot,)}) for slot in slots.values()]


def _recurrent(unit: Unit) -> list[Unit]:
    """Cut each layer and direction of an LSTM, GRU or RNN into its gates.

    torch calls its tensors weight_ih_l0_reverse and the like; a cell, and Equinox's, weight_ih. Equinox has one bias,
    and its GRU a bias_n of the hidden side. Biases that are only ever added share a role. A GRU's last gate multiplies
    its hidden side, bias included, by another, so that the two are not alike there.
    """
    gates = GATES[unit.kind]
    made: dict[str, Unit] = {}
    for leaf, (slot,) in unit.slots.items():
        parts = leaf.split("_")
        which = next((part for part in parts if part[0] == "l" and part[1:].isdigit()), "")
        reverse = "reverse" if parts[-1] == "reverse" else ""
        path = ".".join(filter(None, (unit.path, which, reverse)))
        cell = made.setdefault(path, Unit(path, unit.type, unit.kind, unit.settings, {}))
        side = "hh" if leaf == "bias_n" or "hh" in parts else "hr" if "hr" in parts else "ih"
        for gate in range(gates):
            only_last = leaf == "bias_n"
            if only_last and gate < gates - 1:
                continue
            size = slot.shape[0] if only_last or side == "hr" else slot.shape[0] // gates
            part = (
                slot.cut(slice(0, size))
                if only_last or side == "hr"
                else slot.cut(slice(gate * size, (gate + 1) * size))
            )
            _gate(cell, parts[0], side, gate, part)
            if side == "hr":
                break
    return list(made.values())


def _gate(cell: Unit, what: str, side: str, gate: int, slot: Slot) -> None:
    apart = what == "weight" or (cell.kind == "gru" and gate == GATES["gru"] - 1)
    role = f"{what}_{side}.{gate}" if apart else f"{what}.{gate}"
    cell.slots[role] = (*cell.slots.get(role, ()), slot)


def _cells(whole: list[Unit]) -> list[Unit]:
    """Put the layers of each of Flax's recurrent cells into one unit, with slots by gate."""
    inside: dict[str, dict[str, Unit]] = {}
    for unit in whole:
        parent, _, name = unit.path.rpartition("/")
        inside.setdefault(parent, {})[name.rstrip("_")] = unit
    cells = {
        parent: cell for parent, among in inside.items() if frozenset(among) in CELLS and (cell := _cell(parent, among))
    }
    made: dict[str, Unit] = {}
    for unit in whole:
        parent = unit.path.rpartition("/")[0]
        cell = cells.get(parent, unit)
        made.setdefault(cell.path if parent in cells else unit.path, cell)
    return list(made.values())


def _cell(path: str, among: dict[str, Unit]) -> Unit | None:
    """Make one unit of a cell's layers, or give None if they are no cell after all."""
    kind, names = CELLS[frozenset(among)]
    if not all(leaf in ROLES for unit in among.values() for leaf in unit.slots):
        return None
    layers = {name: {ROLES[leaf]: slots[0] for leaf, slots in unit.slots.items()} for name, unit in among.items()}
    if not kind:
        hidden, outputs = layers["dense_h"]["weight"].shape[-2:]
        kind = next((kind for kind, gates in GATES.items() if gates * hidden == outputs), "")
    if not kind:
        return None
    settings = {**next(iter(among.values())).settings, "kind": kind}
    cell = Unit(path, "", kind, settings, {})
    for side in "ih":
        for gate in range(GATES[kind]):
            name = f"{side}{names[gate]}" if names else side if side in among else f"dense_{side}"
            for role, slot in layers[name].items():
                size = slot.shape[-1] // (1 if names else GATES[kind])
                part = slot if names else slot.cut(slice(gate * size, (gate + 1) * size), len(slot.shape) - 1)
                _gate(cell, role, f"{side}h", gate, part)
    return cell
