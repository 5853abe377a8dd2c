"""Lists the weights without a partner, and writes the error message, with likely partners side by side."""

import dataclasses
from collections.abc import Collection, Iterable
from typing import NamedTuple

from compare.weights import names
from compare.weights.links import Rows, columns, part
from compare.weights.matching import Choice, Pair, Pairing
from compare.weights.units import Slot, Slots, Unit, View


class Alone(NamedTuple):
    """The tensors of both sides that have no partner."""

    torch: list[Unit]
    """Those that need one, in whole layers of torch."""
    jax: list[Unit]
    """Likewise of JAX."""
    beside: list[tuple[str, Unit, Unit]]
    """Those that need one, by side, where the layer has a partner that lacks them; and that partner."""
    buffers: list[tuple[str, Slot]]
    """Buffers, by side: they need none if no step changes them."""
    counters: list[tuple[str, Slot]]
    """Integers without an axis, by side."""

    @property
    def required(self) -> bool:
        """Whether any of them needs a partner."""
        return bool(self.torch or self.jax or self.beside)


def left_alone(found: Pairing, linked: set[str], left_out: Collection[str]) -> Alone:
    """Sort out what has no partner.

    Args:
        found: What could be paired.
        linked: torch's tensors that have a partner under any of their names.
        left_out: Parts of torch's tensors that need none.

    """
    alone = Alone([], [], [], [], [])

    def needing(every: Slots, side: str) -> Slots:
        if side != "torch":
            return every
        kept = {role: tuple(each for each in slots if _name(each) not in left_out) for role, slots in every.items()}
        return {role: slots for role, slots in kept.items() if slots}

    for side, units, whole in (("torch", found.torch, alone.torch), ("jax", found.jax, alone.jax)):
        each_left = (_sorted_out(side, unit, needing(unit.slots, side), linked, alone) for unit in units)
        whole += [left for left in each_left if left.slots]
    for pair in found.pairs:
        paired = {choice.role for choice in pair.choices}
        for side, unit, partner in (("torch", pair.torch, pair.jax), ("jax", pair.jax, pair.torch)):
            rest = needing({role: slots for role, slots in unit.slots.items() if role not in paired}, side)
            if (left := _sorted_out(side, unit, rest, linked, alone)).slots:
                alone.beside.append((side, left, partner))
    return alone


def _sorted_out(side: str, unit: Unit, rest: Slots, linked: set[str], alone: Alone) -> Unit:
    """Return the part of a unit that needs a partner; note what of it needs none."""
    needed: Slots = {}
    buffers = unit.settings.get("buffers", ())
    for role, slots in rest.items():
        if side == "torch" and all(slot.optional and slot.name in linked for slot in slots):
            continue
        if all(slot.optional and slot.name in buffers for slot in slots):
            for slot in slots:
                (alone.counters if slot.integer and not slot.shape else alone.buffers).append((side, slot))
        else:
            needed[role] = slots
    return dataclasses.replace(unit, slots=needed)


def explain(
    alone: Alone, ambiguous: list[tuple[Pair, Pair]], undecided: list[tuple[Pair, Choice]], *, stateless: bool = False
) -> str:
    """Write the error message.

    Args:
        alone: What has no partner.
        ambiguous: Pairs that could exchange their partners.
        undecided: Slots whose layout the shapes do not decide.
        stateless: Whether the JAX side has no place for buffers.

    """
    rows: Rows = []
    if alone.required:
        rows += [("no partner, in torch", "no partner, in JAX"), *_side_by_side(alone.torch, alone.jax)]
        rows += [row for each in alone.beside for row in _lacking(*each)]
    if ambiguous:
        unclear = {id(pair.torch): pair for both in ambiguous for pair in both}
        rows += [("which is which, in torch", "in JAX")]
        rows += [row for pair in unclear.values() for row in _beside(pair.torch, pair.jax)]
    if undecided:
        rows += [("which way round, in torch", "in JAX")]
    hint = ""
    for pair, choice in undecided:
        rows.append((f"  {choice.torch.name} {choice.torch.shape}", f"{choice.jax.name} {choice.jax.shape}"))
        if unknown := pair.torch.settings.get("unknown"):
            channels, points = unknown
            rows.append((f"    flattens {channels} channels of {points} points, of unknown height and width", ""))
            hint = "; copy_weights(inputs=...) finds the height and width by running the torch model once"
    if stateless and _has_buffers(alone):
        hint += (
            "; if the JAX side keeps state from step to step besides its parameters, such as running "
            "statistics, pass it as compare.Jax(apply, params, state=...)"
        )
    return (
        "the weights cannot be matched without guessing:\n"
        f"{columns(rows)}\n"
        'pass weights={"torch name or regex": "jax/path"} for these, tensors or modules; "path.T" for a matrix to be '
        f'transposed, "name[0:8]" for a part of a tensor, and None for what has no partner{hint}'
    )


def _has_buffers(alone: Alone) -> bool:
    units = [*alone.torch, *(unit for side, unit, _ in alone.beside if side == "torch")]
    return any(
        slot.name in unit.settings.get("buffers", ())
        for unit in units
        for slots in unit.slots.values()
        for slot in slots
    )


def _side_by_side(torch: list[Unit], jax: list[Unit]) -> Rows:
    mine, theirs = ([*names.read((unit.path, unit.kind) for unit in side)] for side in (torch, jax))
    rows: Rows = []
    left = list(range(len(jax)))
    for unit, path in zip(torch, mine, strict=True):
        best = None
        if left:
            # Only for display: next to each tensor stands the one that the user most likely means.
            best = max(
                left, key=lambda j: (bool(unit.sizes.items() & jax[j].sizes.items()), names.likeness(path, theirs[j]))
            )
            left.remove(best)
        rows += _beside(unit, None if best is None else jax[best])
    return rows + [row for j in left for row in _beside(None, jax[j])]


def _beside(torch: Unit | None, jax: Unit | None) -> Rows:
    rows: Rows = []
    for role in dict.fromkeys([*(torch.slots if torch else ()), *(jax.slots if jax else ())]):
        left, right = (_cells(unit.slots.get(role, ()) if unit else ()) for unit in (torch, jax))
        size = max(len(left), len(right))
        left, right = ([*cells, *[""] * (size - len(cells))] for cells in (left, right))
        rows += [(f"  {mine}", theirs) for mine, theirs in zip(left, right, strict=True)]
    return rows


def _lacking(side: str, unit: Unit, partner: Unit) -> Rows:
    """Name tensors of a layer whose partner has none such."""
    cells = [cell for slots in unit.slots.values() for cell in _cells(slots)]
    note = f"{partner.path or 'the model'} has none"
    return [(f"  {cell}", note) if side == "torch" else (f"  {note}", cell) for cell in cells]


def _cells(slots: Iterable[Slot]) -> list[str]:
    return [f"{_name(slot)} {slot.shape}" for slot in slots]


def _name(slot: Slot) -> str:
    return part(slot.name, View(slot.index))
