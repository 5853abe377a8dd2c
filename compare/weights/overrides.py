"""What the user says of the map with `weights=`."""

import dataclasses
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from difflib import get_close_matches

from compare.errors import InputError
from compare.weights.cutting import units
from compare.weights.layers import Layer
from compare.weights.layouts import layouts
from compare.weights.matching import Choice, Pair
from compare.weights.stacks import prefixes
from compare.weights.units import ROLES, Slot, Unit


@dataclass
class Overrides:
    """The entries of `weights=`, each with what it fits."""

    tensors: dict[str, str] = field(default_factory=dict)
    """torch's tensor to JAX's."""
    turned: set[str] = field(default_factory=set)
    """Those of torch's tensors whose partner is to be transposed."""
    modules: dict[str, str] = field(default_factory=dict)
    """torch's module to JAX's."""
    apart: set[str] = field(default_factory=set)
    """Tensors of either side that have no partner."""

    def without(self, layers: list[Layer]) -> list[Layer]:
        """Leave out of the layers of one side the tensors that an entry names."""
        named = {*self.tensors, *self.tensors.values(), *self.apart}
        return [
            layer._replace(tensors={name: shape for name, shape in layer.tensors.items() if name not in named})
            for layer in layers
        ]

    def allows(self, torch: Unit, jax: Unit) -> bool:
        """Tell whether a pair agrees with what is said of the modules around both."""
        return all(
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
        for name, path in self.tensors.items():
            (mine, a), (theirs, b) = _alone(name, torch), _alone(path, jax)
            (role,) = mine.slots
            options = layouts(mine, theirs, role, a, b)
            if name in self.turned:
                options = {"turned": (a.view(), b.view(axes=(1, 0)))} if a.shape == b.shape[::-1] else {}
            if not options:
                raise InputError(
                    f"weights= has {name!r}, of shape {a.shape} in torch, as {path!r}, of shape {b.shape} in JAX: "
                    "no layout of a layer of this kind makes them equal"
                )
            made.append(Pair(mine, theirs, [Choice(role, a, b, options, adds=False)]))
        return made


def read(weights: Mapping[str, str | None], torch: list[Layer], jax: list[Layer]) -> Overrides:
    """Find out what each entry of `weights=` fits.

    Raises:
        InputError: If an entry fits nothing, or is no regular expression; if two entries give one tensor of JAX's.

    """
    said = Overrides()
    mine, theirs = ([name for layer in side for name in layer.tensors] for side in (torch, jax))
    modules = dict.fromkeys(".".join(name.split(".")[:at]) for name in mine for at in range(1, name.count(".") + 1))
    inside = {prefix for name in theirs for prefix in prefixes(name)[1:-1]}
    for key, target in weights.items():
        tensors = _fitting(key, mine)
        around = {} if tensors else _fitting(key, modules)
        if target is None:
            lone = [name for name in theirs if key in prefixes(name)]
            found = [
                *tensors,
                *(name for name in mine if any(name.startswith(f"{module}.") for module in around)),
                *lone,
            ]
            if not found:
                raise InputError(
                    _no_such(f"weights= has {key!r}, which fits no tensor of either side", key, [*mine, *theirs])
                )
            said.apart.update(found)
            continue
        if not tensors and not around:
            problem = f"weights= has {key!r}, which fits no tensor and no module of the torch model"
            raise InputError(_no_such(problem, key, [*mine, *modules]))
        for name, match in {**tensors, **around}.items():
            path = match.expand(target) if match.re.groups else target
            if name in tensors and path not in theirs and path.endswith(".T"):
                said.turned.add(name)
                path = path.removesuffix(".T")
            among = theirs if name in tensors else sorted(inside)
            if path not in among:
                raise InputError(
                    _no_such(f"weights= has {name!r} as {path!r}, which is not in the JAX model", path, among)
                )
            (said.tensors if name in tensors else said.modules)[name] = path
    tied = {name: first for layer in torch for name, first in layer.settings.get("tied", {}).items()}
    for path in said.tensors.values():
        several = [name for name, other in said.tensors.items() if other == path]
        if len({tied.get(name, name) for name in several}) > 1:
            raise InputError(f"weights= has {' and '.join(map(repr, several))} both as {path!r}: each needs its own")
    return said


def _fitting(key: str, names: Iterable[str]) -> dict[str, re.Match[str]]:
    names = list(names)
    try:
        expression = re.compile(re.escape(key) if key in names else key)
    except re.error as error:
        raise InputError(f"weights= has {key!r}, which is no name and no regular expression: {error}") from error
    return {name: match for name in names if (match := expression.fullmatch(name))}


def _no_such(problem: str, name: str, among: list[str]) -> str:
    close = get_close_matches(name, among, n=3)
    return f"{problem}; did you mean {' or '.join(map(repr, close))}?" if close else problem


def _alone(name: str, layers: list[Layer]) -> tuple[Unit, Slot]:
    """Make a unit of one tensor, whose rows are taken as they are."""
    layer = next(layer for layer in layers if name in layer.tensors)
    settings = {**layer.settings, "flattened": ()}
    (unit,) = units([layer._replace(tensors={name: layer.tensors[name]}, settings=settings)])
    ((leaf, (slot,)),) = unit.slots.items()
    role = ROLES.get(leaf, "bias" if "bias" in leaf else "weight")
    return dataclasses.replace(unit, slots={role: (slot,)}), slot
