"""Layers that a scan or vmap stacked along a new first axis."""

import dataclasses
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence

from compare.weights.units import Unit


def find_stacks(torch: Iterable[Unit], jax: Sequence[Unit], left: Iterable[Unit]) -> dict[str, int]:
    """Find layers that a scan or vmap has probably stacked along a new first axis.

    Args:
        torch: Units without a partner, among whose numbered modules are the layers.
        jax: All layers of the JAX side.
        left: Those without a partner.

    Returns:
        The outermost paths under which all tensors have such an axis, and its length.

    """
    numbers: dict[str, set[str]] = {}
    for unit in torch:
        parts = unit.path.split(".")
        for at, part in enumerate(parts):
            if part.isdigit():
                numbers.setdefault(".".join(parts[:at]), set()).add(part)
    # torch has "layers.0" to "layers.11". A stack of 12 on the JAX side has 12 along the first axis of
    # all its tensors.
    lengths = {len(found) for found in numbers.values()}
    first: dict[str, set[int]] = {}
    for unit in jax:
        for prefix in prefixes(unit.path):
            for (slot,) in unit.slots.values():
                first.setdefault(prefix, set()).add(slot.shape[0] if slot.shape else 0)
    alike: dict[frozenset[str], list[str]] = {}
    for prefix in first:
        inside = frozenset(unit.path for unit in jax if prefix in prefixes(unit.path))
        alike.setdefault(inside, []).append(prefix)
    # Of paths around the same layers, the one is meant that torch has numbers under: "layers", and not the whole model.
    named = {path.replace(".", "/") for path in numbers}
    best = {max(same, key=lambda prefix: (prefix in named, -len(prefix))) for same in alike.values()}
    first = {prefix: sizes for prefix, sizes in first.items() if prefix in best}
    wanted = {prefix for unit in left for prefix in prefixes(unit.path)}
    found: dict[str, int] = {}
    # From the outermost path inwards, so that a stack of whole blocks is not taken for a stack of each of
    # its layers.
    for prefix, sizes in sorted(first.items(), key=lambda item: len(item[0])):
        if prefix in wanted and len(sizes) == 1 and sizes <= lengths and not found.keys() & set(prefixes(prefix)):
            found[prefix] = next(iter(sizes))
    return found


def unstacked(unit: Unit, stacks: Mapping[str, int]) -> Iterator[Unit]:
    """Take a layer apart if it is in a stack: "Block_0/Dense_0" into "Block/0/Dense_0", "Block/1/Dense_0" and so on."""
    prefix = next((prefix for prefix in prefixes(unit.path) if prefix in stacks), None)
    if prefix is None:
        yield unit
        return
    # Linen calls a stack "Block_0", which counts stacks and not layers. Its number is dropped, unless there are several
    # stacks that differ by it alone.
    bare = {other: re.sub(r"_?\d+$", "", other) for other in stacks}
    base = bare[prefix] if list(bare.values()).count(bare[prefix]) == 1 else prefix
    for at in range(stacks[prefix]):
        path = "/".join(filter(None, (base, str(at), unit.path.removeprefix(prefix).strip("/"))))
        slots = {leaf: tuple(slot.cut(at) for slot in several) for leaf, several in unit.slots.items()}
        yield dataclasses.replace(unit, path=path, slots=slots)


def prefixes(path: str) -> list[str]:
    """List the paths around one, from "" to itself."""
    parts = path.split("/") if path else []
    return ["/".join(parts[:at]) for at in range(len(parts) + 1)]
