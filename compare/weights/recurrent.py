"""Cuts LSTMs, GRUs and RNNs into their gates, and puts the layers of Flax's cells together."""

import dataclasses
import re

from compare.weights.units import ROLES, Slot, Unit

GATES = {"lstm": 4, "gru": 3, "rnn": 1}
"""Both sides have them in the same order: i, f, g, o, and r, z, n."""

CELLS = {
    frozenset(("ii", "if", "ig", "io", "hi", "hf", "hg", "ho")): ("lstm", "ifgo"),
    frozenset(("ir", "iz", "in", "hr", "hz", "hn")): ("gru", "rzn"),
    frozenset(("dense_i", "dense_h")): ("", ""),
    frozenset(("i", "h")): ("rnn", ""),
}
"""Flax's recurrent cells, by the names of the layers in them: their kind and gates."""


def recurrent_units(unit: Unit) -> list[Unit]:
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
            # Equinox's GRU adds bias_n within the reset gate: r * (W_hn h + b_n). It exists for the last gate
            # alone.
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
    # The biases of the input and of the hidden side are added, W_i x + b_i + W_h h + b_h, and only their sum
    # matters. In a GRU's last gate b_h is multiplied by the reset gate, so there they are two parameters.
    apart = what == "weight" or (cell.kind == "gru" and gate == GATES["gru"] - 1)
    role = f"{what}_{side}.{gate}" if apart else f"{what}.{gate}"
    cell.slots[role] = (*cell.slots.get(role, ()), slot)


def of_torch_kinds(jax: list[Unit], torch: list[Unit]) -> list[Unit]:
    """Take JAX's layers of unknown type for LSTMs, GRUs or RNNs where one of torch's has tensors of the same shapes.

    A port that writes the cell by hand often keeps torch's tensors as they are: `weight_ih_l0` of shape (3H, I). It may
    call them `weight_ih` or `w_ih` as well.
    """
    alike = {_tensors(unit): unit for unit in torch if unit.kind in GATES}
    made = []
    for unit in jax:
        if (partner := alike.get(_tensors(unit))) and not unit.kind:
            # In torch's order: JAX sorts the keys of a dictionary, and biases that are only ever added pair by order.
            own = {_meant(leaf): slots for leaf, slots in unit.slots.items()}
            slots = {leaf: own[_meant(leaf)] for leaf in partner.slots}
            unit = dataclasses.replace(unit, kind=partner.kind, slots=slots)
        made.append(unit)
    return made


def _tensors(unit: Unit) -> frozenset[tuple[str, tuple[int, ...]]]:
    return frozenset((_meant(leaf), slot.shape) for leaf, slots in unit.slots.items() for slot in slots)


def _meant(leaf: str) -> str:
    """Give the name that torch has for a tensor of a layer's first cell: "weight_ih" for "w_ih", "W_ih" and "Wih"."""
    known = re.fullmatch(r"(w|weight|b|bias)_?([ih])h(_l0)?", leaf.lower())
    return leaf if known is None else f"{'weight' if known[1][0] == 'w' else 'bias'}_{known[2]}h"


def with_cells(whole: list[Unit]) -> list[Unit]:
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
    """Combine a cell's layers into one unit; None if they are not a cell."""
    kind, names = CELLS[frozenset(among)]
    if not all(leaf in ROLES for unit in among.values() for leaf in unit.slots):
        return None
    layers = {name: {ROLES[leaf]: slots[0] for leaf, slots in unit.slots.items()} for name, unit in among.items()}
    if not kind:
        # nnx's optimized cells have one matrix for all gates: how many gates it has tells which cell it is.
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
