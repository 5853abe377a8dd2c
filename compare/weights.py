"""Which tensor of a torch model is which of a JAX model, and how each lies: found by itself, or refused.

`find_links` gives one link for each tensor, or part of a tensor, that both sides have. It never guesses: where types,
names, order and shapes leave a choice, it says so and takes the user's `weights=` for those tensors alone.
"""

import dataclasses
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, NamedTuple, overload

import numpy as np

from compare import hidden, overrides
from compare.layers import (
    Layer,
    flattened_features,
    linen_layers,
    linen_names,
    linen_value,
    nnx_layers,
    nnx_variables,
    pytree_layers,
    pytree_names,
    torch_layers,
)
from compare.layouts import usual
from compare.pairing import Choice, Pair, Pairing, pair
from compare.problem import InputError
from compare.units import Slot, Unit, View, is_fused, jax_units, single, torch_units, units
from compare.unmatched import columns, explain, part

if TYPE_CHECKING:
    import torch

__all__ = [
    "Copied",
    "Layer",
    "Link",
    "View",
    "WeightMap",
    "copy_weights",
    "find_links",
    "flattened_features",
    "linen_layers",
    "linen_names",
    "linen_value",
    "nnx_layers",
    "nnx_variables",
    "pytree_layers",
    "pytree_names",
    "to_jax",
    "to_torch",
    "torch_layers",
]

Arrays = Mapping[str, np.ndarray]


@dataclass(frozen=True)
class Link:
    """One tensor, or a part of one, on both sides; under its views it has the same shape and orientation.

    A JAX tensor may have several links for the same part. Either `adds` is set on all of them, and it is the sum of
    torch's tensors, as of the two biases of an LSTM of torch against the one of Flax; each of their gradients is then
    equal to JAX's. Or it is not, and torch's tensors are one under several names, tied. The other way round, where JAX
    has copies of what torch has tied, each name has a link of its own, and the copies' gradients add up to torch's.
    """

    torch: str
    """As in `state_dict()`, buffers too."""
    jax: str
    """The path joined by "/"; Linen's without the collection."""
    torch_view: View = field(default_factory=View)
    """Which part of torch's tensor, and in what layout: an index, a shape, an order of axes and axes to reverse."""
    jax_view: View = field(default_factory=View)
    """Likewise of JAX's. Both give arrays of one shape."""
    adds: bool = False
    """Whether JAX's is the sum of this and of torch's other tensors with the same view of it."""


@dataclass(frozen=True)
class WeightMap(Sequence[Link]):
    """The links of two models, and what was left out of them; it prints as a table."""

    links: tuple[Link, ...]
    """In the order of definition on the torch side."""
    apart: Mapping[str, str] = field(default_factory=dict)
    """Tensors of either side that nothing corresponds to by their nature, or by the user's word, and why."""
    notes: tuple[str, ...] = ()
    """What was concluded from a convention rather than from a name or a shape."""

    @overload
    def __getitem__(self, index: int) -> Link: ...
    @overload
    def __getitem__(self, index: slice) -> tuple[Link, ...]: ...
    def __getitem__(self, index: int | slice) -> Link | tuple[Link, ...]:
        return self.links[index]

    def __len__(self) -> int:
        return len(self.links)

    def __str__(self) -> str:
        rows = [(part(link.torch, link.torch_view), part(link.jax, link.jax_view)) for link in self.links]
        left = [f"not compared: {name}: {reason}" for name, reason in self.apart.items()]
        return "\n".join([columns([("torch", "jax"), *rows]), *left, *self.notes])


class Copied(NamedTuple):
    """What `copy_weights` gives."""

    model: Any
    """The nnx module that was given, changed in place, or the pair `(linen_module, variables)` with new variables."""
    weights: WeightMap
    """The map that was used."""


def find_links(
    torch: list[Layer],
    jax: list[Layer],
    weights: Mapping[str, str | None] | None = None,
    order: tuple[list[str], list[str]] | None = None,
    values: tuple[Arrays, Arrays] | None = None,
) -> WeightMap:
    r"""Find which tensor of one side is which of the other.

    Layers are paired by type, shapes and names; by order where names say nothing and both sides have equally many.

    Args:
        torch: The layers of the torch model.
        jax: The layers of the JAX model.
        weights: What the user says of it. A key is a name of torch, of a tensor or a module, or a regular expression
            that fits the whole of it; a value the path on the JAX side, in which \1 is the expression's first group.
            The layouts are found all the same; a matrix "path.T" is turned. None: it has no partner and is left out.
        order: The paths of both sides' modules in the order of their first execution, where that is known.
        values: The arrays of both sides where they are meant to hold equal weights already. Where a shape leaves a
            choice of layouts, the one under which the values are equal is taken.

    Raises:
        InputError: If anything is left without a partner or more than one would do, with a list of it, or if an entry
            of `weights` fits nothing.

    """
    said = overrides.read(weights or {}, torch, jax)
    theirs = units(said.without(jax))
    mine, notes = hidden.flattened(units(said.without(torch)), theirs)
    apart = dict.fromkeys(sorted(said.apart), "left out by weights=")
    for unit in mine:
        for leaf, (slot,) in list(unit.slots.items()):
            if reason := _no_partner(unit, slot):
                apart[slot.name] = reason
                del unit.slots[leaf]
    places = (_places(torch, order and order[0]), _places(jax, order and order[1]))
    found = _pair(mine, theirs, places, said, notes)
    explicit = said.pairs(torch, jax)
    links, undecided = _links(explicit, found.pairs, values)
    links += _ties(torch, links)
    linked = {link.torch for link in links}
    missing = [
        unit for unit in found.torch if any(slot.name not in linked for slots in unit.slots.values() for slot in slots)
    ]
    if missing or found.jax or found.ambiguous or undecided:
        raise InputError(explain(missing, found, undecided))
    first = {name: at for at, name in enumerate(name for layer in torch for name in layer.tensors)}
    links.sort(key=lambda link: first[link.torch])
    return WeightMap(tuple(links), apart, tuple(notes))


def _no_partner(unit: Unit, slot: Slot) -> str:
    if slot.leaf == "num_batches_tracked":
        return "it counts batches, and nothing in JAX corresponds"
    if slot.name in unit.settings.get("integers", ()):
        return "it holds integers, which are no weights"
    return ""


def _places(layers: list[Layer], order: list[str] | None) -> dict[str, int]:
    if order is not None:
        return {path: at for at, path in reversed(list(enumerate(order)))}
    return {layer.path: at for at, layer in enumerate(layers) if layer.settings.get("ordered", True)}


def _pair(
    torch: list[Unit],
    jax: list[Unit],
    places: tuple[dict[str, int], dict[str, int]],
    said: overrides.Overrides,
    notes: list[str],
) -> Pairing:
    """Pair the units, at first as they are, then with JAX's stacked layers taken apart."""
    fused = [any(is_fused(unit) for unit in side) for side in (torch, jax)]
    mine = [unit for unit in torch_units(torch, split=fused[0] and not fused[1]) if unit.slots]

    def attempt(layers: Iterable[Unit]) -> Pairing:
        theirs = [unit for unit in jax_units(list(layers), split=fused[1] and not fused[0]) if unit.slots]
        return pair(mine, theirs, (_inherited(mine, places[0]), _inherited(theirs, places[1])), said.allows)

    found = attempt(jax)
    if found.torch and found.jax and (stacks := hidden.stacks(found.torch, jax, found.jax)):
        again = attempt(layer for unit in jax for layer in hidden.unstacked(unit, stacks))
        if not again.jax:
            notes += [
                f"{path or 'the JAX model'} has {size} layers along its first axis" for path, size in stacks.items()
            ]
            return again
    if found.torch and found.jax and not any(unit.kind for unit in found.jax):
        loose = [[part for unit in side for part in single(unit)] for side in (found.torch, found.jax)]
        rest = pair(loose[0], loose[1], (_inherited(loose[0], places[0]), _inherited(loose[1], places[1])), said.allows)
        if not rest.jax:
            return Pairing([*found.pairs, *rest.pairs], [*found.ambiguous, *rest.ambiguous], rest.torch, [])
    return found


def _inherited(units: list[Unit], known: Mapping[str, int]) -> dict[str, int]:
    """Give each unit the place of the nearest module around it that has one."""
    places = {}
    for unit in units:
        path = unit.path
        while path not in known and path:
            path = re.sub(r"(^|[./])[^./]*$", "", path)
        if path in known:
            places[unit.path] = known[path]
    return places


def _links(
    explicit: list[Pair], pairs: list[Pair], values: tuple[Arrays, Arrays] | None
) -> tuple[list[Link], list[tuple[Pair, Choice]]]:
    """Choose each slot's layout, and list those for which nothing tells it."""
    agreed: dict[tuple[str, str], set[str]] = {}
    for torch, jax, choices in pairs:
        for choice in choices:
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
    return convention if convention in options else next(iter(options)) if told else None


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


def to_jax(links: Sequence[Link], torch_arrays: Arrays, jax_like: Arrays) -> dict[str, np.ndarray]:
    """Lay torch's weights out as JAX's.

    Args:
        links: From `find_links`.
        torch_arrays: By torch's names.
        jax_like: By JAX's names: shapes and dtypes of the result, and its values where nothing is linked.

    Returns:
        New arrays by JAX's names. Where several of torch's tensors add up to one, their sum.

    """
    made = {name: np.array(array) for name, array in jax_like.items()}
    begun: set[str] = set()
    for link in links:
        source, target = link.torch_view(np.asarray(torch_arrays[link.torch])), link.jax_view(made[link.jax])
        if link.adds and f"{link.jax} {link.jax_view}" in begun:
            target += source
        else:
            target[...] = source
        begun.add(f"{link.jax} {link.jax_view}")
    return made


def to_torch(links: Sequence[Link], jax_arrays: Arrays, torch_like: Arrays) -> dict[str, np.ndarray]:
    """Lay JAX's weights out as torch's: `to_jax` the other way round.

    Returns:
        New arrays by torch's names. Where several add up to one of JAX's, the first has it all and the others are zero.

    """
    made = {name: np.array(array) for name, array in torch_like.items()}
    begun: set[str] = set()
    for link in links:
        source, target = link.jax_view(np.asarray(jax_arrays[link.jax])), link.torch_view(made[link.torch])
        target[...] = 0 if link.adds and f"{link.jax} {link.jax_view}" in begun else source
        begun.add(f"{link.jax} {link.jax_view}")
    return made


def copy_weights(
    torch_model: "torch.nn.Module",
    flax_model: Any,
    weights: Mapping[str, str | None] | None = None,
    inputs: Any = None,
) -> Copied:
    """Give a Flax model the weights of a torch model, buffers too.

    Args:
        torch_model: Any module; it is not changed, and shares no memory with the result.
        flax_model: An `nnx.Module`, which is changed in place, or a pair `(linen_module, variables)`, which is not.
        weights: `{"torch name or regex": "flax/path"}` for what is not found by itself, as for `compare.check`.
        inputs: What the torch model takes: an array, a tuple (positional) or a dictionary (keyword). With it, the model
            is run once, to see the shapes of what its linear layers take flattened.

    Returns:
        The model with the weights, in its own shapes and dtypes, and the map.

    Raises:
        InputError: If anything is left without a partner or more than one would do, with a list of it; if an entry of
            `weights` fits nothing; if `flax_model` is neither.

    """
    import jax
    import jax.numpy as jnp
    import torch
    from flax import nnx

    def array(tensor: "torch.Tensor") -> np.ndarray:
        return tensor.detach().cpu().to(torch.float32 if tensor.dtype == torch.bfloat16 else tensor.dtype).numpy()

    layers = torch_layers(torch_model, None if inputs is None else flattened_features(torch_model, inputs))
    arrays = {name: array(tensor) for name, tensor in torch_model.state_dict().items()}
    if isinstance(flax_model, nnx.Module):
        links = find_links(layers, nnx_layers(flax_model), weights)
        variables = nnx_variables(flax_model)
        new = to_jax(links, arrays, {name: np.asarray(variable[...]) for name, variable in variables.items()})
        # Float64 stays float64, whether the caller has enabled it at this moment or not.
        with jax.enable_x64(True):
            for name, variable in variables.items():
                variable[...] = jnp.array(new[name])
        return Copied(flax_model, links)
    if not (isinstance(flax_model, tuple) and len(flax_model) == 2 and isinstance(flax_model[1], Mapping)):
        raise InputError(
            f"copy_weights takes an nnx module or a pair (linen_module, variables), not {type(flax_model).__name__}"
        )
    module, before = flax_model
    links = find_links(layers, linen_layers(before, module), weights)
    names = {path: name for name, path in linen_names(before).items()}
    old = {name: np.asarray(linen_value(before, path)) for path, name in names.items()}
    new = to_jax(links, arrays, old)

    def filled(tree: Any, path: tuple[str, ...]) -> Any:
        if isinstance(tree, Mapping):
            return {key: filled(value, (*path, key)) for key, value in tree.items()}
        if path not in names:
            return tree
        value = jnp.array(new[names[path]])
        return tree.replace_boxed(value) if hasattr(tree, "replace_boxed") else value

    with jax.enable_x64(True):
        return Copied((module, filled(before, ())), links)
