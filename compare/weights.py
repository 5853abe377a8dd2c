"""Which tensor of a torch model is which of a JAX model, and how each lies: found by itself, or refused.

`find_links` gives one link for each tensor, or part of a tensor, that both sides have. It never guesses: where types,
names, order and shapes leave a choice, it says so and takes the user's `weights=` for those tensors alone.
"""

import dataclasses
import re
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from difflib import get_close_matches
from typing import TYPE_CHECKING, Any, NamedTuple, overload

import numpy as np

from compare import names
from compare.layers import (
    Layer,
    linen_layers,
    linen_names,
    linen_value,
    nnx_layers,
    nnx_variables,
    pytree_layers,
    pytree_names,
    torch_layers,
)
from compare.layouts import layouts, usual
from compare.pairing import Choice, Pair, Pairing, pair
from compare.problem import InputError
from compare.units import Slot, Unit, View, is_fused, jax_units, torch_units, units

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
    torch's tensors: the two biases of an LSTM of torch against the one of Flax. Each of their gradients is then equal to JAX's.
    Or it is not, and torch's tensors are one under several names, tied. The other way round, a torch tensor that has
    several links for the same part is tied, and JAX has copies of it, whose gradients add up to torch's.
    """

    torch: str
    """As in `state_dict()`, buffers too."""
    jax: str
    """The path joined by "/"; Linen's without the collection."""
    torch_view: View = View()
    jax_view: View = View()
    adds: bool = False


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
        rows = [(_part(link.torch, link.torch_view), _part(link.jax, link.jax_view)) for link in self.links]
        left = [f"not compared: {name}: {reason}" for name, reason in self.apart.items()]
        return "\n".join([_columns([("torch", "jax"), *rows]), *left, *self.notes])


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
    said = _Said.read(weights or {}, torch, jax)
    mine, theirs = (units([_without(layer, taken) for layer in side]) for side, taken in ((torch, said.torch), (jax, said.jax)))
    apart = dict(said.apart)
    for unit in mine:
        for leaf, (slot,) in list(unit.slots.items()):
            if reason := _no_partner(unit, slot):
                apart[slot.name] = reason
                del unit.slots[leaf]
    notes = _flattened(mine, theirs)
    places = (_places(torch, order and order[0]), _places(jax, order and order[1]))
    found = _pair(mine, theirs, places, said, notes)
    explicit = said.pairs(torch, jax)
    links, open_ = _links([*explicit, *found.pairs], explicit, values)
    links += _ties(torch, links)
    linked = {link.torch for link in links}
    missing = [unit for unit in found.torch if any(slot.name not in linked for slots in unit.slots.values() for slot in slots)]
    if missing or found.jax or found.ambiguous or open_:
        raise InputError(_explain(missing, found, open_))
    first = {name: at for at, name in enumerate(name for layer in torch for name in layer.tensors)}
    links.sort(key=lambda link: first[link.torch])
    return WeightMap(tuple(links), apart, tuple(notes))


def _without(layer: Layer, taken: set[str]) -> Layer:
    return layer._replace(tensors={name: shape for name, shape in layer.tensors.items() if name not in taken})


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
    torch: list[Unit], jax: list[Unit], places: tuple[dict[str, int], dict[str, int]], said: "_Said", notes: list[str]
) -> Pairing:
    """Pair the units, at first as they are, then with JAX's stacked layers taken apart."""
    fused = [any(is_fused(unit) for unit in side) for side in (torch, jax)]
    split = [fused[0] and not fused[1], fused[1] and not fused[0]]
    mine = [unit for unit in torch_units(torch, split=split[0]) if unit.slots]

    def attempt(layers: list[Unit]) -> Pairing:
        theirs = [unit for unit in jax_units(layers, split=split[1]) if unit.slots]
        order = tuple(_inherited(side, known) for side, known in zip((mine, theirs), places, strict=True))
        return pair(mine, theirs, (order[0], order[1]), said.allows)

    found = attempt(jax)
    if found.torch and found.jax and (stacks := _stacks(jax, found)):
        again = attempt([layer for unit in jax for layer in _unstacked(unit, stacks)])
        if not again.jax:
            notes += [f"{path or 'the JAX model'} holds {count} layers along its first axis" for path, count in stacks.items()]
            return again
    return found


def _inherited(units: list[Unit], known: dict[str, int]) -> dict[str, int]:
    """Give each unit the place of the nearest module around it that has one."""
    places = {}
    for unit in units:
        path = unit.path
        while path and path not in known:
            path = re.sub(r"(^|[./])[^./]*$", "", path)
        if path in known:
            places[unit.path] = known[path]
    return places


def _stacks(jax: list[Unit], found: Pairing) -> dict[str, int]:
    """Find what looks like layers stacked by a scan or vmap: an axis before all others, as long as a list of torch's."""
    counts = set(Counter(prefix for unit in found.torch for prefix in _containers(unit.path)).keys())
    numbers: dict[str, set[str]] = {}
    for prefix, number in counts:
        numbers.setdefault(prefix, set()).add(number)
    lengths = {len(number) for number in numbers.values()}
    first: dict[str, set[int]] = {}
    for unit in jax:
        for prefix in _prefixes(unit.path):
            for (slot,) in unit.slots.values():
                first.setdefault(prefix, set()).add(slot.shape[0] if slot.shape else 0)
    left = [unit.path for unit in found.jax]
    stacks: dict[str, int] = {}
    for prefix, sizes in sorted(first.items(), key=lambda item: len(item[0])):
        inside = any(path == prefix or path.startswith(f"{prefix}/") or not prefix for path in left)
        covered = any(prefix.startswith(f"{outer}/") or not outer for outer in stacks)
        if inside and not covered and len(sizes) == 1 and sizes <= lengths:
            stacks[prefix] = next(iter(sizes))
    return stacks


def _containers(path: str) -> list[tuple[str, str]]:
    parts = path.split(".")
    return [(".".join(parts[:at]), part) for at, part in enumerate(parts) if part.isdigit()]


def _prefixes(path: str) -> list[str]:
    parts = path.split("/") if path else []
    return ["/".join(parts[:at]) for at in range(len(parts) + 1)]


def _unstacked(unit: Unit, stacks: dict[str, int]) -> Iterator[Unit]:
    prefix = next((prefix for prefix in _prefixes(unit.path) if prefix in stacks), None)
    if prefix is None:
        yield unit
        return
    # "Block_0/Dense_0" becomes "Block/2/Dense_0": the place in the stack is the number that counts.
    alone = sum(re.sub(r"_?\d+$", "", other) == re.sub(r"_?\d+$", "", prefix) for other in stacks) == 1
    base = re.sub(r"_?\d+$", "", prefix) if alone else prefix
    for at in range(stacks[prefix]):
        path = "/".join(filter(None, (base, str(at), unit.path.removeprefix(prefix).strip("/"))))
        slots = {leaf: (slot.cut(at),) for leaf, (slot,) in unit.slots.items()}
        yield dataclasses.replace(unit, path=path, slots=slots)


def _flattened(torch: list[Unit], jax: list[Unit]) -> list[str]:
    """Find the linear layers that take a flattened image, whose features torch and Flax order differently.

    A run tells it for certain, in the setting `flattened`. Without one, such a layer comes right after a convolution, and has
    more inputs than that has channels. Where JAX's convolutions have channels first, as Equinox's, nothing is permuted.
    """
    kernels = [slot for unit in jax for slots in unit.slots.values() for slot in slots if unit.kind in ("conv", "transposed", "")]
    channels_last = any(slot.leaf in ("kernel", "w") and len(slot.shape) > 2 for slot in kernels)
    notes, channels, spatial = [], 0, 0
    for unit in torch:
        weight = unit.slots.get("weight", (None,))[0]
        if weight is None or unit.kind in ("norm", "prelu"):
            continue
        if unit.kind in ("conv", "transposed"):
            turned = unit.kind == "transposed"
            channels = weight.shape[1] * unit.settings.get("groups", 1) if turned else weight.shape[0]
            spatial = len(weight.shape) - 2
            continue
        if unit.kind == "linear" and "flattened" not in unit.settings and channels and channels_last:
            points, rest = divmod(weight.shape[-1], channels)
            side = round(points ** (1 / spatial))
            if points > 1 and not rest:
                known = (channels, *(side,) * spatial) if side**spatial == points else None
                unit.settings = {**unit.settings, "flattened": known or (), "unknown": (channels, points) if not known else ()}
                if known:
                    notes.append(f"{unit.path}: takes {known}, flattened; in JAX with the channels last")
        channels = 0
        if not channels_last:
            unit.settings = {**unit.settings, "flattened": ()}
    return notes


@dataclass
class _Said:
    """The user's `weights=`, read."""

    tensors: dict[str, tuple[str, bool]]
    """torch's tensor to JAX's, and whether that is turned."""
    modules: dict[str, str]
    """torch's module to JAX's."""
    apart: dict[str, str]

    @property
    def torch(self) -> set[str]:
        return {*self.tensors, *self.apart}

    @property
    def jax(self) -> set[str]:
        return {path for path, _ in self.tensors.values()} | self.apart.keys()

    @classmethod
    def read(cls, weights: Mapping[str, str | None], torch: list[Layer], jax: list[Layer]) -> "_Said":
        said = cls({}, {}, {})
        mine, theirs = ({name for layer in side for name in layer.tensors} for side in (torch, jax))
        around = {prefix for name in mine for prefix in _prefixes(name.replace(".", "/"))[1:-1]}
        modules = {prefix.replace("/", ".") for prefix in around}
        inside = {prefix for name in theirs for prefix in _prefixes(name)[1:-1]}
        for key, target in weights.items():
            tensor_hits = [(name, match) for name in sorted(mine) if (match := _match(key, name))]
            module_hits = [(name, match) for name in sorted(modules) if (match := _match(key, name))]
            if target is None:
                own = [name for name in theirs if key == name]
                gone = own + [name for name, _ in tensor_hits]
                gone += [name for module, _ in module_hits for name in mine if name.startswith(f"{module}.")]
                if not gone:
                    raise InputError(_nothing(key, mine | modules | theirs))
                said.apart |= dict.fromkeys(gone, "left out by weights=")
                continue
            if not tensor_hits and not module_hits:
                raise InputError(_nothing(key, mine | modules))
            for name, match in tensor_hits:
                path = match.expand(target) if match.re.groups else target
                turned = path.endswith(".T") and path not in theirs
                if path.removesuffix(".T" if turned else "") not in theirs:
                    raise InputError(_nowhere(name, path, theirs))
                said.tensors[name] = (path.removesuffix(".T" if turned else ""), turned)
            for name, match in module_hits if not tensor_hits else []:
                path = match.expand(target) if match.re.groups else target
                if path not in inside:
                    raise InputError(_nowhere(name, path, inside))
                said.modules[name] = path
        return said

    def allows(self, torch: Unit, jax: Unit) -> bool:
        """Tell whether a pair agrees with what is said of the modules around both."""
        return all(
            (torch.path == mine or torch.path.startswith(f"{mine}."))
            == (jax.path == theirs or jax.path.startswith(f"{theirs}/"))
            for mine, theirs in self.modules.items()
        )

    def pairs(self, torch: list[Layer], jax: list[Layer]) -> list[Pair]:
        """Pair the tensors that the user paired."""
        made = []
        for name, (path, turned) in self.tensors.items():
            (mine, a), (theirs, b) = _unit(name, torch), _unit(path, jax)
            role = next(iter(torch_units([mine], split=False)[0].slots), "weight") if len(a.shape) < 2 else "weight"
            options = layouts(mine, theirs, role, a, b)
            if turned:
                options = {"turned": (a.view(), b.view(axes=(1, 0)))} if a.shape == b.shape[::-1] else {}
            if not options:
                raise InputError(
                    f"weights= has {name!r}, of shape {a.shape} in torch, as {path!r}, of shape {b.shape} in JAX: "
                    "no transposition or reshaping of a layer of this kind makes them equal"
                )
            made.append(Pair(mine, theirs, [Choice(role, a, b, options, False)]))
        return made


def _unit(name: str, layers: list[Layer]) -> tuple[Unit, Slot]:
    layer = next(layer for layer in layers if name in layer.tensors)
    only = layer._replace(tensors={name: layer.tensors[name]})
    unit = units([only])[0]
    (slot,) = next(iter(unit.slots.values()))
    unit.slots["weight"] = (slot,)
    return unit, slot


def _match(key: str, name: str) -> re.Match[str] | None:
    if key == name:
        return re.fullmatch(re.escape(key), name)
    try:
        return re.fullmatch(key, name)
    except re.error as error:
        raise InputError(f"weights= has {key!r}, which is no regular expression: {error}") from error


def _nothing(key: str, among: set[str]) -> str:
    close = get_close_matches(key, sorted(among), n=3)
    return f"weights= has {key!r}, which fits no tensor and no module of the torch model" + (
        f"; did you mean {' or '.join(map(repr, close))}?" if close else ""
    )


def _nowhere(name: str, path: str, among: set[str]) -> str:
    close = get_close_matches(path, sorted(among), n=3)
    return f"weights= has {name!r} as {path!r}, which the JAX model does not have" + (
        f"; did you mean {' or '.join(map(repr, close))}?" if close else ""
    )


def _links(
    pairs: list[Pair], explicit: list[Pair], values: tuple[Arrays, Arrays] | None
) -> tuple[list[Link], list[tuple[Pair, Choice]]]:
    """Choose the layouts: the only one that fits, that of all layers of the same types, or the framework's."""
    seen: dict[tuple[str, str], set[str]] = {}
    for pair_ in pairs:
        for choice in pair_.choices:
            if len(choice.options) == 1 and len(choice.torch.shape) > 1:
                seen.setdefault((pair_.torch.type, pair_.jax.type), set()).update(choice.options)
    links, open_ = [], []
    for pair_ in pairs:
        for choice in pair_.choices:
            convention = usual(pair_.torch, pair_.jax, choice.role, choice.jax)
            agreed = seen.get((pair_.torch.type, pair_.jax.type), set()) & choice.options.keys()
            chosen = next(iter(choice.options)) if len(choice.options) == 1 else None
            if chosen is None and values is not None:
                chosen = _by_value(choice, values)
            if chosen is None and len(agreed) == 1 and not pair_.jax.kind:
                chosen = agreed.pop()
            if chosen is None and not agreed and convention in choice.options:
                chosen = convention
            if chosen is None and pair_ in explicit:
                chosen = next(iter(choice.options))
            unknown = pair_.torch.settings.get("unknown") and choice.role == "weight" and pair_ not in explicit
            if chosen is None or unknown:
                open_.append((pair_, choice))
            else:
                views = choice.options[chosen]
                links.append(Link(choice.torch.name, choice.jax.name, *views, adds=choice.adds))
    return links, open_


def _by_value(choice: Choice, values: tuple[Arrays, Arrays]) -> str | None:
    a, b = values[0][choice.torch.name], values[1][choice.jax.name]
    equal = [name for name, (mine, theirs) in choice.options.items() if np.array_equal(mine(a), theirs(b))]
    return equal[0] if len(equal) == 1 else None


def _ties(torch: list[Layer], links: list[Link]) -> list[Link]:
    """Link the other names of what is linked under one name."""
    first = {name: leader for layer in torch for name, leader in layer.settings.get("tied", {}).items()}
    linked = {link.torch for link in links}
    by_leader: dict[str, list[Link]] = {}
    for link in links:
        by_leader.setdefault(first.get(link.torch, ""), []).append(link)
    more = []
    for name, leader in first.items():
        if name not in linked and (known := by_leader.get(leader)):
            more += [dataclasses.replace(link, torch=name) for link in known if link.torch == known[0].torch]
    return more


def _explain(missing: list[Unit], found: Pairing, open_: list[tuple[Pair, Choice]]) -> str:
    """List what is left on both sides, likely partners beside one another."""
    rows: list[tuple[str, str]] = []
    if missing or found.jax:
        rows += [("without a partner in torch", "without a partner in JAX")]
        rest = list(found.jax)
        paths = {id(unit): path for side in (missing, rest) for unit, path in zip(side, names.read((u.path, u.kind) for u in side), strict=True)}
        for unit in missing:
            best = max(rest, key=lambda other: (names.likeness(paths[id(unit)], paths[id(other)]), unit.sizes == other.sizes), default=None)
            if best is not None:
                rest.remove(best)
            rows += _beside(unit, best)
        rows += [row for unit in rest for row in _beside(None, unit)]
    if found.ambiguous:
        rows += [("which is which in torch", "which is which in JAX")]
        unclear = {id(pair_.torch): pair_ for both in found.ambiguous for pair_ in both}
        rows += [row for pair_ in unclear.values() for row in _beside(pair_.torch, pair_.jax)]
    if open_:
        rows += [("in what order or orientation, in torch", "in JAX")]
        for pair_, choice in open_:
            rows.append((f"  {choice.torch.name} {choice.torch.shape}", f"{choice.jax.name} {choice.jax.shape}"))
            if unknown := pair_.torch.settings.get("unknown"):
                rows.append((f"    takes {unknown[0]} channels of {unknown[1]} points, of unknown height and width", ""))
    return (
        "the weights cannot be matched without guessing:\n"
        f"{_columns(rows)}\n"
        'pass weights={"torch name or regex": "jax/path"} for these, tensors or modules; "path.T" for a matrix that is '
        "turned, None for what has no partner"
    )


def _beside(torch: Unit | None, jax: Unit | None) -> list[tuple[str, str]]:
    roles = dict.fromkeys([*(torch.slots if torch else ()), *(jax.slots if jax else ())])
    rows = []
    for role in roles:
        left, right = (
            [f"{_part(slot.name, View(slot.index))} {slot.shape}" for slot in (unit.slots.get(role, ()) if unit else ())]
            for unit in (torch, jax)
        )
        rows += [
            (f"  {left[at] if at < len(left) else ''}", right[at] if at < len(right) else "")
            for at in range(max(len(left), len(right)))
        ]
    return rows


def _part(name: str, view: View) -> str:
    def written(index: slice | int) -> str:
        if isinstance(index, int):
            return str(index)
        return ":" if index.start is None else f"{index.start}:{index.stop}"

    return f"{name}[{', '.join(map(written, view.index))}]" if view.index else name


def _columns(rows: list[tuple[str, str]]) -> str:
    width = max((len(left) for left, _ in rows), default=0)
    return "\n".join(f"{left:{width}}  {right}".rstrip() for left, right in rows)


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
    begun: set[tuple[str, View]] = set()
    for link in links:
        source, target = link.torch_view(np.asarray(torch_arrays[link.torch])), link.jax_view(made[link.jax])
        if link.adds and (link.jax, link.jax_view) in begun:
            target += source
        else:
            target[...] = source
        begun.add((link.jax, link.jax_view))
    return made


def to_torch(links: Sequence[Link], jax_arrays: Arrays, torch_like: Arrays) -> dict[str, np.ndarray]:
    """Lay JAX's weights out as torch's: `to_jax` the other way round.

    Returns:
        New arrays by torch's names. Where several add up to one of JAX's, the first has it all and the others are zero.

    """
    made = {name: np.array(array) for name, array in torch_like.items()}
    begun: set[tuple[str, View]] = set()
    for link in links:
        source, target = link.jax_view(np.asarray(jax_arrays[link.jax])), link.torch_view(made[link.torch])
        target[...] = 0 if link.adds and (link.jax, link.jax_view) in begun else source
        begun.add((link.jax, link.jax_view))
    return made


def copy_weights(torch_model: "torch.nn.Module", flax_model: Any, weights: Mapping[str, str | None] | None = None) -> Copied:
    """Give a Flax model the weights of a torch model, buffers too.

    Args:
        torch_model: Any module; it is not changed, and shares no memory with the result.
        flax_model: An `nnx.Module`, which is changed in place, or a pair `(linen_module, variables)`, which is not.
        weights: As for `find_links`.

    Returns:
        The model with the weights, in its own dtypes, and the map.

    Raises:
        InputError: As `find_links`, and if `flax_model` is neither.

    """
    import jax
    import jax.numpy as jnp
    import torch
    from flax import nnx

    def array(tensor: "torch.Tensor") -> np.ndarray:
        return tensor.detach().cpu().to(torch.float32 if tensor.dtype == torch.bfloat16 else tensor.dtype).numpy()

    arrays = {name: array(tensor) for name, tensor in torch_model.state_dict().items()}
    if isinstance(flax_model, nnx.Module):
        links = find_links(torch_layers(torch_model), nnx_layers(flax_model), weights)
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
    links = find_links(torch_layers(torch_model), linen_layers(before, module), weights)
    names = {path: name for name, path in linen_names(before).items()}
    old = {name: np.asarray(linen_value(before, path)) for path, name in names.items()}
    new = to_jax(links, arrays, old)

    def filled(tree: Any, path: tuple[str, ...]) -> Any:
        if isinstance(tree, Mapping):
            return type(tree)({key: filled(value, (*path, key)) for key, value in tree.items()})
        if path not in names:
            return tree
        value = jnp.array(new[names[path]])
        return tree.replace_boxed(value) if hasattr(tree, "replace_boxed") else value

    with jax.enable_x64(True):
        return Copied((module, filled(before, ())), links)
