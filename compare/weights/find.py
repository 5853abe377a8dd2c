"""Finds the map between the tensors of a torch model and a JAX model, and the layout of each on both sides.

`find_links` gives one link for each tensor, or part of a tensor, that both sides have. It does not guess: where types,
names, order and shapes leave a choice, it raises an error that lists the tensors in doubt, and `weights=` decides them.
"""

import dataclasses
import re
from collections.abc import Iterable, Mapping
from typing import NamedTuple

import numpy as np

from compare.errors import InputError
from compare.weights import overrides
from compare.weights.flattening import flattened
from compare.weights.fused_projections import cut_fused
from compare.weights.into_units import jax_units, single, torch_units, units
from compare.weights.layers import Layer, buffer_names
from compare.weights.layouts import usual
from compare.weights.links import LEFT_OUT, TABLE, Arrays, Link, WeightMap
from compare.weights.matching import Choice, Pair, Pairing, pair
from compare.weights.recurrent import of_torch_kinds
from compare.weights.reparametrized import gathered
from compare.weights.roots import partners
from compare.weights.stacks import find_stacks, unstacked
from compare.weights.units import Slot, Unit
from compare.weights.unmatched import Alone, explain, left_alone


def find_links(
    torch: list[Layer],
    jax: list[Layer],
    weights: Mapping[str, str | None] | None = None,
    order: tuple[list[str], list[str]] | None = None,
    values: tuple[Arrays, Arrays] | None = None,
    roots: Mapping[str, str] | None = None,
) -> WeightMap:
    r"""Find which tensor of one side is which of the other.

    Layers are paired by type, shapes and names. Where names decide nothing and both sides have equally many layers that
    look alike, the order decides.

    Args:
        torch: The layers of the torch model.
        jax: The layers of the JAX model.
        weights: The pairs that the user gives. A key is the name of a tensor or a module in torch, or a regular
            expression that matches the whole name. A value is the path on the JAX side, in which \1 is the expression's
            first group, or None for a tensor without a partner. Layouts are still found; "path.T" transposes a matrix.
        order: The paths of both sides' modules in the order of their first execution, where that is known.
        values: The arrays of both sides, if both should already have equal weights. Where a shape leaves a choice of
            layouts, the one under which the values are equal is taken.
        roots: The paths of torch's models and of JAX's, where it is known which is which: see `roots.find_roots`.

    Raises:
        InputError: If anything is left without a partner or more than one would do, with a list of it, or if an entry
            of `weights` fits nothing.

    """
    # Most of its lines describe its arguments: users read them here.
    torch, jax = gathered(torch, of_torch=True), gathered(jax, of_torch=False)
    said = overrides.read(weights or {}, torch, jax)
    theirs = units(said.without(jax))
    mine, notes = flattened(units(said.without(torch)), theirs)
    # What has no counterpart by its nature leaves the search first, so that it does not make another
    # tensor ambiguous.
    apart = dict.fromkeys(sorted({*said.apart, *said.parts}), LEFT_OUT)
    for unit in (*mine, *theirs):
        for leaf, (slot,) in list(unit.slots.items()):
            if reason := _reason(leaf, slot, unit):
                apart[slot.name] = reason
                del unit.slots[leaf]
    places = (_places(torch, order and order[0]), _places(jax, order and order[1]))
    found = _pair(_Sides(mine, theirs, places, said, roots or {}), notes)
    explicit = said.pairs(torch, jax)
    links, undecided = _links(explicit, found.pairs, values)
    # After the search: one name of a tied tensor is enough to find the partner, and the others follow
    # from it.
    links += _ties(torch, links)
    links += _left_out_integers(torch, jax, said.apart)
    said.check_left_out(links, torch)
    alone = left_alone(found, {link.torch for link in links}, said.parts)
    # A step of a program may update what is frozen, such as a target network: it needs a partner there.
    tables = _tables(alone) if roots is None else []
    if (alone.required and not tables) or found.ambiguous or undecided:
        stateless = any(layer.settings.get("stateless") for layer in jax)
        raise UnmatchedError(explain(alone, found.ambiguous, undecided, stateless=stateless), tuple(links))
    apart |= dict.fromkeys(tables, TABLE)
    apart |= {slot.name: "an integer that the other side does not have" for _, slot in alone.counters}
    first = {name: at for at, name in enumerate(name for layer in torch for name in layer.tensors)}
    # In the order of definition, whatever order the search found them in, so that reports and maps read
    # like the model.
    links.sort(key=lambda link: first[link.torch])
    constants = [(side, slot.name) for side, slot in alone.buffers]
    # `weights=` may leave out a buffer of JAX's: if it matters, a difference shows elsewhere. A buffer of torch's
    # without a partner must stay constant: if it changed, torch would compute something that JAX does not.
    buffers = buffer_names(torch) - _integers(torch).keys()
    constants += [("torch", name) for name in sorted({*(said.apart & buffers), *tables})]
    return WeightMap(tuple(links), apart, tuple(notes), tuple(constants))


def _tables(alone: Alone) -> list[str]:
    """List what torch has without a partner if all of it is frozen, such as sinusoids that JAX computes; else nothing.

    A layer that the JAX side lacks shows in what the two compute.
    """
    found = [(slot.name, unit) for unit in alone.torch for slots in unit.slots.values() for slot in slots]
    frozen = all(name in unit.settings.get("frozen", ()) for name, unit in found)
    return [name for name, _ in found] if frozen and not (alone.jax or alone.beside) else []


def _reason(leaf: str, slot: Slot, unit: Unit) -> str:
    """Say why a tensor can have no partner; "" if it can."""
    if leaf == "num_batches_tracked":
        return "it counts batches, and nothing in JAX corresponds"
    return str(unit.settings.get("derived", {}).get(slot.name, ""))


class UnmatchedError(InputError):
    """Two models' weights cannot be matched."""

    def __init__(self, message: str, links: tuple[Link, ...]) -> None:
        super().__init__(message)
        self.links = links
        """What could be matched."""


def _left_out_integers(torch: list[Layer], jax: list[Layer], left_out: set[str]) -> list[Link]:
    """Link the integers of one name that `weights=` leaves out on both sides, such as a queue's position.

    They are not compared. But a step depends on them, so both sides must start from the same.
    """
    theirs = {name.replace("/", "."): name for name in left_out & _integers(jax).keys()}
    shapes = _integers(torch), _integers(jax)
    return [
        Link(name, theirs[name], compared=False)
        for name in sorted(left_out & shapes[0].keys() & theirs.keys())
        if shapes[0][name] == shapes[1][theirs[name]]
    ]


def _integers(layers: list[Layer]) -> dict[str, tuple[int, ...]]:
    return {name: layer.tensors[name] for layer in layers for name in layer.settings.get("integers", ())}


def _places(layers: list[Layer], order: list[str] | None) -> dict[str, int]:
    if order is not None:
        return {path: at for at, path in reversed(list(enumerate(order)))}
    return {layer.path: at for at, layer in enumerate(layers) if layer.settings.get("ordered", True)}


class _Sides(NamedTuple):
    """The units of both sides, and what decides which may be partners."""

    torch: list[Unit]
    jax: list[Unit]
    places: tuple[dict[str, int], dict[str, int]]
    said: overrides.Overrides
    roots: Mapping[str, str]

    def allows(self, torch: Unit, jax: Unit) -> bool:
        """Return whether two units may be partners: what the user says of it, and which model is which."""
        known = not torch.required or not jax.required or partners(self.roots, torch.path, jax.path)
        return known and self.said.allows(torch, jax)

    def paired(self, torch: list[Unit], jax: list[Unit], *, partly: bool = False) -> Pairing:
        """Pair these units of theirs."""
        order = _inherited(torch, self.places[0]), _inherited(jax, self.places[1])
        return pair(torch, jax, order, self.allows, partly=partly)


def _pair(sides: _Sides, notes: list[str]) -> Pairing:
    """Pair the units as they are; else with JAX's stacked layers taken apart, or tensor by tensor."""
    jax = sides.jax
    # From the most specific reading to the least: whole layers, stacked layers, single tensors, layers of
    # which one has a tensor too many. Each is tried only if the one before leaves a required tensor
    # without a partner, since a looser reading has more ways to pair, and so more that are ambiguous.
    found = _whole(sides, jax)
    if not (_required(found.torch) and _required(found.jax)):
        return found
    if stacks := find_stacks(found.torch, jax, found.jax):
        again = _whole(sides, [layer for unit in jax for layer in unstacked(unit, stacks)])
        if not _required(again.jax):
            notes += [
                f"{path or 'the JAX model'} has {len(layers)} layers along its first axis"
                for path, layers in stacks.items()
            ]
            return again
    return _tensor_by_tensor(sides, found) or _partly(sides, found)


def _required(units: Iterable[Unit]) -> list[Unit]:
    return [unit for unit in units if unit.required]


def _whole(sides: _Sides, jax: list[Unit]) -> Pairing:
    """Pair the layers of both sides; what is whole on one side alone, such as a fused projection, is cut."""
    mine, theirs = torch_units(sides.torch), jax_units(of_torch_kinds(jax, sides.torch))
    mine, theirs = cut_fused(mine, theirs), cut_fused(theirs, mine)
    return sides.paired(*([unit for unit in side if unit.slots] for side in (mine, theirs)))


def _tensor_by_tensor(sides: _Sides, found: Pairing) -> Pairing | None:
    """Pair what is left tensor by tensor, where nothing is known of JAX's; None if that leaves any of these."""
    if any(unit.kind for unit in found.jax):
        return None
    rest = sides.paired(*([part for unit in side for part in single(unit)] for side in (found.torch, found.jax)))
    if _required(rest.jax):
        return None
    return Pairing([*found.pairs, *rest.pairs], [*found.ambiguous, *rest.ambiguous], rest.torch, rest.jax)


def _partly(sides: _Sides, found: Pairing) -> Pairing:
    """Pair layers of which one has a tensor that the other lacks, so that this alone is named as the one too many."""
    rest = sides.paired(found.torch, found.jax, partly=True)
    if rest.ambiguous:
        return found
    return Pairing([*found.pairs, *rest.pairs], found.ambiguous, rest.torch, rest.jax)


def _inherited(units: list[Unit], known: Mapping[str, int]) -> dict[str, int]:
    """Give each unit the place of the nearest module around it that has one."""
    places = {}
    for unit in units:
        path = unit.path
        # A part that was cut out of a layer, or a tensor in a list, does not run itself: it takes the place
        # of its layer.
        while path not in known and path:
            path = re.sub(r"(^|[./])[^./]*$", "", path)
        if path in known:
            places[unit.path] = known[path]
    return places


def _links(
    explicit: list[Pair], pairs: list[Pair], values: tuple[Arrays, Arrays] | None
) -> tuple[list[Link], list[tuple[Pair, Choice]]]:
    """Choose each slot's layout, and list those that nothing decides."""
    agreed: dict[tuple[str, str], set[str]] = {}
    for torch, jax, choices in pairs:
        for choice in choices:
            # A port's own class of linear layer may keep (in, out) or (out, in). One of its layers that is not
            # square shows which, and the square ones of that class follow it.
            if len(choice.options) == 1 and len(choice.torch.shape) > 1 and not jax.kind:
                agreed.setdefault((torch.type, jax.type), set()).update(choice.options)
    links, undecided = [], []
    for each in [*explicit, *pairs]:
        for choice in each.choices:
            told = each in explicit
            chosen = _layout(each, choice, agreed.get((each.torch.type, each.jax.type), set()), values, told=told)
            if chosen is None or ("unknown" in each.torch.settings and choice.role == "weight" and not told):
                undecided.append((each, choice))
            else:
                links.append(Link(choice.torch.name, choice.jax.name, *choice.options[chosen], adds=choice.adds))
    return links, undecided


def _layout(
    pair: Pair, choice: Choice, agreed: set[str], values: tuple[Arrays, Arrays] | None, *, told: bool
) -> str | None:
    """Name the layout: the only one that fits, the one that layers of the same types have, or the framework's own."""
    options = choice.options
    if len(options) == 1:
        return next(iter(options))
    if values is not None:
        mine, theirs = values[0][choice.torch.name], values[1][choice.jax.name]
        equal = [name for name, (a, b) in options.items() if np.array_equal(a(mine), b(theirs))]
        if len(equal) == 1:
            return equal[0]
    if agreed & options.keys():
        # Other layers of unknown types have shown which way round these are; where they disagree, nothing is known.
        return next(iter(agreed & options.keys())) if len(agreed & options.keys()) == 1 else None
    convention = usual(pair.torch, pair.jax, choice.torch, choice.jax)
    if convention in options:
        return convention
    # The user pairs them, and says with ".T" where a matrix is to be turned: without it, it is as torch has it.
    as_it_is = next((name for name in ("same", "output first") if name in options), next(iter(options)))
    return as_it_is if told else None


def _ties(torch: list[Layer], links: list[Link]) -> list[Link]:
    """Link the other names of what is linked under one name."""
    first = {name: leader for layer in torch for name, leader in layer.settings.get("tied", {}).items()}
    linked = {link.torch for link in links}
    known: dict[str, list[Link]] = {}
    for link in links:
        among = known.setdefault(first.get(link.torch, link.torch), [])
        # One name is enough, with all the parts that it has.
        among += [link] if not among or among[0].torch == link.torch else []
    return [
        dataclasses.replace(link, torch=name)
        for name, leader in first.items()
        if name not in linked
        for link in known.get(leader, [])
    ]
