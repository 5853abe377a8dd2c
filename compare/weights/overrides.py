"""Reads `weights=`: the pairs of tensors and modules that the user gives."""

import dataclasses
import itertools
import math
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from difflib import get_close_matches
from typing import NamedTuple

from compare.errors import InputError
from compare.weights.into_units import units
from compare.weights.layers import Layer
from compare.weights.layouts import layouts
from compare.weights.links import Link, part
from compare.weights.matching import Choice, Pair
from compare.weights.stacks import prefixes
from compare.weights.units import ROLES, Slot, Unit, View

Index = tuple[slice | int, ...]
"""Of the first axes of a tensor, with both ends of each slice; () for all of it."""

Box = list[tuple[int, int]]
"""The start and the end of a part along each axis."""

_INDEX = re.compile(r"(?P<name>.+?)\[(?P<index>[\d:, ]+)\](?P<turned>\.T)?")


class Said(NamedTuple):
    """One tensor of torch, or a part of it, and its partner."""

    torch: str
    torch_index: Index
    jax: str
    jax_index: Index
    turned: bool
    """The partner is to be transposed."""

    @property
    def names(self) -> tuple[str, str]:
        """Name both tensors, with their parts."""
        return part(self.torch, View(self.torch_index)), part(self.jax, View(self.jax_index))


@dataclass
class Overrides:
    """The entries of `weights=`, each with what it fits."""

    tensors: list[Said] = field(default_factory=list)
    modules: dict[str, str] = field(default_factory=dict)
    """torch's module to JAX's."""
    apart: set[str] = field(default_factory=set)
    """Tensors of either side that have no partner."""
    parts: dict[str, tuple[str, Index]] = field(default_factory=dict)
    """Parts of torch's tensors that have none, by the name that `links.part` gives them: the tensor and the index."""

    def without(self, layers: list[Layer]) -> list[Layer]:
        """Leave out of the layers of one side the tensors that an entry names."""
        named = {*(said.torch for said in self.tensors), *(said.jax for said in self.tensors), *self.apart}
        return [
            layer._replace(tensors={name: shape for name, shape in layer.tensors.items() if name not in named})
            for layer in layers
        ]

    def check_left_out(self, links: Iterable[Link], torch: list[Layer]) -> None:
        """Check that no part that is left out has a partner.

        Raises:
            InputError: If one has.

        """
        shapes = {name: shape for layer in torch for name, shape in layer.tensors.items()}
        for link in links:
            for part_name, (name, index) in self.parts.items():
                if link.torch == name and _overlap(
                    *(_box(each, shapes[name]) for each in (index, link.torch_view.index))
                ):
                    raise InputError(f"weights= leaves out {part_name!r}, which has the partner {link.jax!r}")

    def allows(self, torch: Unit, jax: Unit) -> bool:
        """Whether a pair agrees with the pairs of modules that `weights=` gives."""
        return all(
            # Both or neither: a layer inside a module that has a partner must find its own inside that partner.
            (torch.path == mine or torch.path.startswith(f"{mine}."))
            == (jax.path == theirs or jax.path.startswith(f"{theirs}/"))
            for mine, theirs in self.modules.items()
        )

    def pairs(self, torch: list[Layer], jax: list[Layer]) -> list[Pair]:
        """Pair the tensors that an entry pairs, one by one.

        Raises:
            InputError: If their shapes do not allow it.

        """
        made = []
        for said in self.tensors:
            mine, a = _alone(said.torch, said.torch_index, torch)
            theirs, b = _alone(said.jax, said.jax_index, jax)
            (role,) = mine.slots
            options = layouts(mine, theirs, role, a, b)
            if said.turned:
                options = {"turned": (a.view(), b.view(axes=(1, 0)))} if a.shape == b.shape[::-1] else {}
            if not options:
                names = said.names
                raise InputError(
                    f"weights= has {names[0]!r}, of shape {a.shape} in torch, as {names[1]!r}, of shape {b.shape} in "
                    "JAX: no layout of a layer of this kind makes them equal. Rows 0 to 8 of a tensor are "
                    f"{said.torch + '[0:8]'!r}"
                )
            made.append(Pair(mine, theirs, [Choice(role, a, b, options, adds=False)]))
        return made


class _Names(NamedTuple):
    """All that an entry can fit."""

    torch: dict[str, tuple[int, ...]]
    """Tensors and their shapes."""
    torch_modules: list[str]
    jax: dict[str, tuple[int, ...]]
    jax_modules: list[str]


def read(weights: Mapping[str, str | None], torch: list[Layer], jax: list[Layer]) -> Overrides:
    """Find out what each entry of `weights=` fits.

    Raises:
        InputError: If an entry fits nothing, or is no regular expression; if two entries give one tensor of JAX's, or
            if entries name parts of a tensor and not all of it.

    """
    for name, partner in weights.items():
        if not isinstance(name, str) or not isinstance(partner, str | None):
            raise InputError(
                f"weights= has {name!r}: {partner!r}: both must be names, or the second None for no partner"
            )
    mine, theirs = ({name: shape for layer in side for name, shape in layer.tensors.items()} for side in (torch, jax))
    names = _Names(
        mine,
        list(dict.fromkeys(".".join(name.split(".")[:at]) for name in mine for at in range(1, name.count(".") + 1))),
        theirs,
        sorted({prefix for name in theirs for prefix in prefixes(name)[1:-1]}),
    )
    said = Overrides()
    for key, target in weights.items():
        if target is None and (cut := _part_of(key, names.torch)):
            pattern, index = cut
            if not (fitting := _fitting(pattern, names.torch)):
                raise InputError(
                    _no_such(f"weights= has {key!r}, which matches no tensor of torch's", key, [*names.torch])
                )
            for name in fitting:
                place = _index(name, index, names.torch[name])
                said.parts[part(name, View(place))] = name, place
        elif target is None:
            said.apart.update(_left_out(key, names))
        else:
            _read_partner(key, target, names, said)
    tied = {name: first for layer in torch for name, first in layer.settings.get("tied", {}).items()}
    _check_parts(said, names, tied)
    return said


def _left_out(key: str, names: _Names) -> list[str]:
    """List the tensors of either side that an entry with None names, and those in the modules that it names."""
    tensors = _fitting(key, names.torch)
    around = {} if tensors else _fitting(key, names.torch_modules)
    found = [
        *tensors,
        *(name for name in names.torch if any(name.startswith(f"{module}.") for module in around)),
        *(name for name in names.jax if key in prefixes(name)),
    ]
    found = found or list(_fitting(key, names.jax))
    if not found:
        problem = f"weights= has {key!r}, which matches no tensor of either side"
        raise InputError(_no_such(problem, key, [*names.torch, *names.jax]))
    return found


def _read_partner(key: str, target: str, names: _Names, said: Overrides) -> None:
    """Read an entry that gives tensors, parts of them, or modules a partner."""
    pattern, index = _part_of(key, names.torch) or (key, "")
    tensors = _fitting(pattern, names.torch)
    around = {} if tensors else _fitting(pattern, names.torch_modules)
    if not tensors and not around:
        problem = f"weights= has {key!r}, which matches no tensor and no module of the torch model"
        raise InputError(_no_such(problem, key, [*names.torch, *names.torch_modules]))
    if around and index:
        raise InputError(f"weights= has {key!r}: only a tensor has parts, as in {pattern + '.weight[' + index + ']'!r}")
    for name, match in {**tensors, **around}.items():
        path = match.expand(target) if match.re.groups else target
        if name in tensors:
            new = _partner(name, index, path, names)
            # Of two entries for the same tensor the later one counts, as in a dict of settings that is extended.
            said.tensors = [each for each in said.tensors if each[:2] != new[:2]] + [new]
        elif path in names.jax_modules:
            said.modules[name] = path
        else:
            raise InputError(_not_there(name, path, names.jax_modules))


def _part_of(key: str, tensors: Iterable[str]) -> tuple[str, str] | None:
    """Read the name of a part of torch's tensors: the pattern of these, and the index; None if it is no part.

    "fc[12]" is a regular expression, "fc.weight[0:8]" a part of a tensor. Only a part has a colon in its brackets.
    """
    cut = _INDEX.fullmatch(key)
    if cut is None or ":" not in cut["index"] or cut["turned"] or key in tensors:
        return None
    return cut["name"], cut["index"]


def _partner(name: str, index: str, target: str, names: _Names) -> Said:
    """Read a tensor's partner: "path", "path.T", "path[0:8]" or "path[0:8].T"."""
    path, theirs, turned = target, "", False
    if path not in names.jax:
        if cut := _INDEX.fullmatch(path):
            path, theirs, turned = cut["name"], cut["index"], bool(cut["turned"])
        elif path.endswith(".T"):
            path, turned = path.removesuffix(".T"), True
    if path not in names.jax:
        raise InputError(_not_there(name, path, list(names.jax)))
    return Said(name, _index(name, index, names.torch[name]), path, _index(path, theirs, names.jax[path]), turned)


def _index(name: str, written: str, shape: tuple[int, ...]) -> Index:
    """Read "0:8" or ":, 2:4", as NumPy would, for a tensor of that shape."""
    found: list[slice | int] = []
    pieces = written.split(",") if written else []
    for piece, size in zip(pieces, shape, strict=False):
        start, colon, stop = piece.strip().partition(":")
        if not colon:
            found.append(int(start) if start.isdigit() else -1)
        elif ":" in stop:
            raise InputError(f"weights= has {f'{name}[{written}]'!r}: a part is a range of rows, without a step")
        else:
            found.append(slice(int(start or 0), int(stop or size)))
    ends = [(each.start, each.stop) if isinstance(each, slice) else (each, each + 1) for each in found]
    fits = all(0 <= start < stop <= size for (start, stop), size in zip(ends, shape, strict=False))
    if len(pieces) > len(shape) or not fits:
        raise InputError(f"weights= has {f'{name}[{written}]'!r}, but {name!r} has the shape {shape}")
    return tuple(found)


def _check_parts(every: Overrides, names: _Names, tied: Mapping[str, str]) -> None:
    """Check that no part of a tensor is named twice, and that the parts of each are all of it."""
    left_out: dict[str, list[Box]] = {}
    for name, index in every.parts.values():
        left_out.setdefault(name, []).append(_box(index, names.torch[name]))
    for side, shapes in (("torch", names.torch), ("jax", names.jax)):
        of: dict[str, list[Said]] = {}
        for said in every.tensors:
            of.setdefault(getattr(said, side), []).append(said)
        for name, entries in of.items():
            boxes = [_box(getattr(said, f"{side}_index"), shapes[name]) for said in entries]
            for (one, a), (other, b) in itertools.combinations(zip(entries, boxes, strict=True), 2):
                same = (tied.get(one.torch, one.torch), one.torch_index) == (
                    tied.get(other.torch, other.torch),
                    other.torch_index,
                )
                if _overlap(a, b) and not (side == "jax" and same):
                    here, there = (0, 1) if side == "jax" else (1, 0)
                    raise InputError(
                        f"weights= has {one.names[here]!r} and {other.names[here]!r} both as {other.names[there]!r}: "
                        "each needs its own"
                    )
            # No two boxes overlap at this point, so that they are the whole tensor if and only if their volumes
            # add up to it.
            alone = left_out.get(name, []) if side == "torch" else []
            if any(_overlap(box, other) for box in boxes for other in alone):
                parts = ", ".join(said.names[0] for said in entries)
                raise InputError(f"weights= has {parts} and leaves out some of it: name each part of {name!r} once")
            covered = sum(map(_volume, [*boxes, *alone]))
            if covered < math.prod(shapes[name]):
                parts = ", ".join(said.names[side == "jax"] for said in entries)
                raise InputError(
                    f"weights= has {parts}, but not the rest of {name!r}, of shape {shapes[name]}: name all its parts"
                )


def _volume(box: Box) -> int:
    return math.prod(stop - start for start, stop in box)


def _overlap(one: Box, other: Box) -> bool:
    """Tell whether two boxes overlap: their intervals do so along every axis."""
    return all(max(x[0], y[0]) < min(x[1], y[1]) for x, y in zip(one, other, strict=True))


def _box(index: Index, shape: tuple[int, ...]) -> Box:
    """Return the start and the end of a part along each axis."""
    sizes = zip(index, shape, strict=False)
    ends = [each.indices(size)[:2] if isinstance(each, slice) else (each, each + 1) for each, size in sizes]
    return [*ends, *((0, size) for size in shape[len(index) :])]


def _fitting(key: str, names: Iterable[str]) -> dict[str, re.Match[str]]:
    names = list(names)
    try:
        # A name is taken literally: the dots in "layers.0.weight" would match any character otherwise.
        expression = re.compile(re.escape(key) if key in names else key)
    except re.error as error:
        raise InputError(f"weights= has {key!r}, which is neither a name nor a regular expression: {error}") from error
    return {name: match for name in names if (match := expression.fullmatch(name))}


def _not_there(name: str, path: str, among: list[str]) -> str:
    return _no_such(f"weights= has {name!r} as {path!r}, which is not in the JAX model", path, among)


def _no_such(problem: str, name: str, among: list[str]) -> str:
    close = get_close_matches(name, among, n=3)
    return f"{problem}; did you mean {' or '.join(map(repr, close))}?" if close else problem


def _alone(name: str, index: Index, layers: list[Layer]) -> tuple[Unit, Slot]:
    """Make a unit of one tensor, or of a part of it, whose rows are taken as they are."""
    layer = next(layer for layer in layers if name in layer.tensors)
    settings = {**layer.settings, "flattened": ()}
    (unit,) = units([layer._replace(tensors={name: layer.tensors[name]}, settings=settings)])
    ((leaf, (slot,)),) = unit.slots.items()
    slot = slot.part(index) if index else slot
    role = ROLES.get(leaf, "bias" if "bias" in leaf else "weight")
    return dataclasses.replace(unit, slots={role: (slot,)}), slot
