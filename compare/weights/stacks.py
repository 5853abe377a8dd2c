"""Layers that a scan or vmap stacked along a new first axis."""

import dataclasses
import re
from collections import Counter
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from typing import NamedTuple

from compare.weights.links import Link, layer_of
from compare.weights.roots import likeness
from compare.weights.units import Unit


def find_stacks(torch: Iterable[Unit], jax: Sequence[Unit], left: Iterable[Unit]) -> dict[str, list[str]]:
    """Find layers that a scan or vmap has probably stacked along a new first axis.

    Args:
        torch: Units without a partner, among whose numbered modules are the layers.
        jax: All layers of the JAX side.
        left: Those without a partner.

    Returns:
        The outermost paths under which all tensors have such an axis, and what torch calls the layers along it: "0" to
        "11" for "layers.0" to "layers.11", "q1" and "q2" for "critic.q1" and "critic.q2".

    """
    # torch has "layers.0" to "layers.11". A stack of 12 on the JAX side has 12 along the first axis of
    # all its tensors.
    series = _series(torch)
    first: dict[str, set[int]] = {}
    for unit in jax:
        for prefix in prefixes(unit.path):
            for (slot,) in unit.slots.values():
                first.setdefault(prefix, set()).add(slot.shape[0] if slot.shape else 0)
    inside = {prefix: frozenset(unit.path for unit in jax if prefix in prefixes(unit.path)) for prefix in first}
    alike: dict[frozenset[str], list[str]] = {}
    for prefix, units in inside.items():
        alike.setdefault(units, []).append(prefix)
    # Of paths around the same layers, the one is meant that torch has numbers under: "layers", and not the whole model.
    named = {each.path.replace(".", "/") for each in series}
    best = {max(same, key=lambda prefix: (prefix in named, -len(prefix))) for same in alike.values()}
    wanted = {prefix for unit in left for prefix in prefixes(unit.path)}
    known: dict[str, _Series] = {}
    for prefix in (prefix for prefix in first if prefix in best & wanted):
        if fitting := [each for each in series if {len(each.sizes)} == first[prefix]]:
            known[prefix] = max(fitting, key=lambda each: (each.fits(prefix, inside), each.likeness(prefix)))
    found: dict[str, list[str]] = {}
    # First what torch has numbers under, as "critics" and "targets", and not what holds both. Then from the outermost
    # path inwards, so that a stack of whole blocks is not taken for a stack of each of its layers.
    for prefix, meant in sorted(known.items(), key=lambda item: (-item[1].fits(item[0], inside), len(item[0]))):
        if not any(prefix in prefixes(other) or other in prefixes(prefix) for other in found):
            found[prefix] = [*meant.sizes]
    return found


def stacked(links: Iterable[Link]) -> dict[str, int]:
    """Give the JAX side's modules whose tensors are all stacks of as many layers, by path, and how many layers."""
    layers: dict[str, set[int | None]] = {}
    for link in links:
        for prefix in prefixes(link.jax.rpartition("/")[0]):
            layers.setdefault(prefix, set()).add(layer_of(link))
    return {path: len(of) for path, of in layers.items() if None not in of and len(of) > 1}


class _Series(NamedTuple):
    """Modules of torch's that differ by a number in their name."""

    path: str
    """What they are in."""
    sizes: Mapping[str, int]
    """How many units each has, by its name, in the order of the numbers."""

    def fits(self, prefix: str, inside: Mapping[str, Collection[str]]) -> int:
        """Count what speaks for a stack: that it has as many units as each of these modules, and their path."""
        same_size = set(self.sizes.values()) == {len(inside[prefix])}
        return same_size + (self.path.replace(".", "/") == prefix != "")

    def likeness(self, prefix: str) -> int:
        """Say how alike the names are."""
        return likeness(f"{self.path} {next(iter(self.sizes))}", prefix)


def _series(torch: Iterable[Unit]) -> list[_Series]:
    """List the numbered modules: "layers.0" and "layers.1", "q1" and "q2", "q1_target" and "q2_target"."""
    found: dict[tuple[str, str, str], Counter[tuple[int, str]]] = {}
    for unit in torch:
        parts = unit.path.split(".")
        for at, part in enumerate(parts):
            if name := re.fullmatch(r"(\D*)(\d+)(\D*)", part):
                before, number, after = name.groups()
                found.setdefault((".".join(parts[:at]), before, after), Counter())[int(number), part] += 1
    return [
        _Series(path, {part: size for (_, part), size in sorted(sizes.items())})
        for (path, _, _), sizes in found.items()
    ]


def unstacked(unit: Unit, stacks: Mapping[str, Sequence[str]]) -> Iterator[Unit]:
    """Take a layer apart if it is in a stack: "Block_0/Dense_0" into "Block/0/Dense_0", "Block/1/Dense_0" and so on."""
    prefix = next((prefix for prefix in prefixes(unit.path) if prefix in stacks), None)
    if prefix is None:
        yield unit
        return
    # Linen calls a stack "Block_0", which counts stacks and not layers. Its number is dropped, unless there are several
    # stacks that differ by it alone.
    bare = {other: re.sub(r"_?\d+$", "", other) for other in stacks}
    base = bare[prefix] if list(bare.values()).count(bare[prefix]) == 1 else prefix
    for at, name in enumerate(stacks[prefix]):
        path = "/".join(filter(None, (base, name, unit.path.removeprefix(prefix).strip("/"))))
        slots = {leaf: tuple(slot.cut(at) for slot in several) for leaf, several in unit.slots.items()}
        yield dataclasses.replace(unit, path=path, slots=slots)


def prefixes(path: str) -> list[str]:
    """List the paths around one, from "" to itself."""
    parts = path.split("/") if path else []
    return ["/".join(parts[:at]) for at in range(len(parts) + 1)]
