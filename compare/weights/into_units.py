"""Cuts the layers of both sides into units that match one to one."""

import dataclasses

from compare.weights.layers import Layer
from compare.weights.recurrent import GATES, recurrent_units, with_cells
from compare.weights.units import ROLES, Slot, Slots, Unit, role_of


def units(layers: list[Layer]) -> list[Unit]:
    """Make one unit of each layer, with a slot for each tensor by the last part of its name."""
    made = []
    for layer in layers:
        # A tied tensor has several names in torch, and a port may have it under any of them, once or several
        # times.
        optional = {*layer.settings.get("tied", {}), *_optional_buffers(layer)}
        integers = layer.settings.get("integers", ())
        slots = [
            Slot(name, shape, optional=name in optional, integer=name in integers)
            for name, shape in layer.tensors.items()
        ]
        kind = layer.settings.get("kind", "")
        leaves = layer.settings.get("leaves", {})
        by_leaf: Slots = {leaves.get(slot.name, slot.leaf): (slot,) for slot in slots}
        if kind in GATES and not any(leaf.startswith("weight_") for leaf in by_leaf):
            kind = ""  # the user's own class, which is called RNN
        made.append(Unit(layer.path, layer.type, kind, layer.settings, by_leaf))
    return made


def _optional_buffers(layer: Layer) -> list[str]:
    """List a layer's buffers that need no partner: all but the running statistics of a norm."""
    roles = {name: ROLES.get(name.replace("/", ".").rsplit(".", 1)[-1]) for name in layer.tensors}
    # Running statistics are part of what a norm computes in evaluation. Other buffers, such as position
    # ids or a causal mask, a port may compute where it needs them.
    norm = layer.settings.get("kind") == "norm" or (not layer.type and {"mean", "var"} <= {*roles.values()})
    return [name for name in layer.settings.get("buffers", ()) if name in roles and not (norm and roles[name])]


def torch_units(whole: list[Unit]) -> list[Unit]:
    """Cut torch's layers into units."""
    made = []
    for unit in whole:
        if unit.kind == "attention":
            made += _attention(unit)
        elif unit.kind in GATES:
            made += _recurrent(unit)
        else:
            made += _by_role(unit)
    return made


def _recurrent(unit: Unit) -> list[Unit]:
    """Cut a recurrent layer into units; a subclass may have other tensors beside its own."""
    own = {leaf: slots for leaf, slots in unit.slots.items() if leaf == "bias" or leaf.startswith(("weight_", "bias_"))}
    rest = {leaf: slots for leaf, slots in unit.slots.items() if leaf not in own}
    others = _by_role(dataclasses.replace(unit, kind="", slots=rest)) if rest else []
    return [*recurrent_units(dataclasses.replace(unit, slots=own)), *others]


def jax_units(whole: list[Unit]) -> list[Unit]:
    """Cut JAX's layers into units, and put Flax's recurrent cells together."""
    made = []
    for unit in with_cells(whole):
        if unit.kind not in GATES:
            made += _by_role(unit)
        elif {"weight_ih", "weight_ih_l0"} & unit.slots.keys():
            made += _recurrent(unit)
        else:
            made.append(unit)
    return made


def single(unit: Unit) -> list[Unit]:
    """Split a layer into its tensors, for a model that keeps them in lists or under its own names.

    A weight is still that of its kind. Nothing but its shape is known of any other tensor.
    """
    return [
        Unit(_path_of(unit, slots), unit.type, unit.kind if role == "weight" else "", unit.settings, {"weight": slots})
        for role, slots in unit.slots.items()
    ]


def _path_of(unit: Unit, slots: tuple[Slot, ...]) -> str:
    """Give the path of a tensor: its name, or within a layer that was taken out of a stack, the layer's path too."""
    name = slots[0].name
    inside = not unit.path or name.startswith((f"{unit.path}.", f"{unit.path}/"))
    return name if inside or "/" not in unit.path else f"{unit.path}/{name.rpartition('/')[2]}"


def _by_role(unit: Unit) -> list[Unit]:
    """Name a layer's slots by their roles; tensors without one are units of their own."""
    roles = {role_of(leaf): slots for leaf, slots in unit.slots.items()}
    known = {role: slots for role, slots in roles.items() if role}
    rest = [slots for leaf, slots in unit.slots.items() if known.get(role_of(leaf)) != slots]
    made = [Unit(unit.path, unit.type, unit.kind, unit.settings, known)] if known else []
    names = [_path_of(unit, slots) for slots in rest]
    return made + [
        Unit(name, unit.type, "", unit.settings, {"weight": slots}) for name, slots in zip(names, rest, strict=True)
    ]


def _attention(unit: Unit) -> list[Unit]:
    """`torch.nn.MultiheadAttention`: `in_proj_weight` (3E, E), or three weights where kdim or vdim differ."""
    slots = {leaf: slots[0] for leaf, slots in unit.slots.items()}
    bias = slots.pop("in_proj_bias", None)

    def named(name: str, weight: Slot, bias: Slot | None) -> Unit:
        parts: Slots = {"weight": (weight,), **({"bias": (bias,)} if bias else {})}
        return Unit(".".join(filter(None, (unit.path, name))), unit.type, "linear", unit.settings, parts)

    made: list[Unit] = []
    if "in_proj_weight" in slots:
        # Named "qkv" so that `fused_projections.py` cuts it into query, key and value if the JAX side has
        # three layers.
        made.append(named("qkv", slots.pop("in_proj_weight"), bias))
    for at, name in enumerate(("query", "key", "value")):
        if f"{name[0]}_proj_weight" in slots:
            weight = slots.pop(f"{name[0]}_proj_weight")
            # With kdim or vdim there are three weights, but still one bias of 3E: each layer gets its third.
            rows = slice(at * weight.shape[0], (at + 1) * weight.shape[0])
            made.append(named(name, weight, bias.cut(rows) if bias else None))
    return made + [Unit(slot.name, "", "", unit.settings, {"weight": (slot,)}) for slot in slots.values()]
