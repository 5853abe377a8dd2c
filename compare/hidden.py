"""What shapes hide: layers stacked by a scan, and features flattened from an image."""

import dataclasses
import re
from collections.abc import Iterable, Iterator, Mapping

from compare.units import Unit


def flattened(torch: list[Unit], jax: list[Unit]) -> tuple[list[Unit], list[str]]:
    """Find the linear layers that take a flattened image, whose features torch and Flax order differently.

    A run tells it for certain, in the setting `flattened`. Without one, such a layer comes right after a convolution,
    and has more inputs than that has channels. Its image is taken to be a square or a cube; `unknown` is set where it
    cannot be. Where JAX's convolutions have channels first, as Equinox's, nothing is permuted.

    Returns:
        torch's units with those settings, and what was concluded so.

    """
    kernels = [slot for unit in jax for (slot,) in unit.slots.values() if unit.kind in ("conv", "transposed", "")]
    channels_last = any(slot.leaf in ("kernel", "w") and len(slot.shape) > 2 for slot in kernels)
    made, notes = [], []
    channels = spatial = 0
    for unit in torch:
        settings = dict(unit.settings)
        if not channels_last:
            settings.setdefault("flattened", ())
        if "weight" in unit.slots and unit.kind not in ("norm", "prelu"):
            shape = unit.slots["weight"][0].shape
            if unit.kind in ("conv", "transposed"):
                spatial = len(shape) - 2
                channels = shape[0] if unit.kind == "conv" else shape[1] * unit.settings.get("groups", 1)
            else:
                points, rest = divmod(shape[-1], channels) if channels else (1, 0)
                if unit.kind == "linear" and "flattened" not in settings and points > 1 and not rest:
                    side = round(points ** (1 / spatial))
                    if side**spatial == points:
                        settings["flattened"] = (channels, *(side,) * spatial)
                        notes.append(
                            f"{unit.path} is taken to flatten {settings['flattened']}, and its partner to have the "
                            "channels last"
                        )
                    else:
                        settings["unknown"] = (channels, points)
                channels = 0
        made.append(dataclasses.replace(unit, settings=settings))
    return made, notes


def stacks(torch: Iterable[Unit], jax: Iterable[Unit], left: Iterable[Unit]) -> dict[str, int]:
    """Find what looks like layers that a scan or vmap stacked along an axis before all others.

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
    lengths = {len(found) for found in numbers.values()}
    first: dict[str, set[int]] = {}
    for unit in jax:
        for prefix in prefixes(unit.path):
            for (slot,) in unit.slots.values():
                first.setdefault(prefix, set()).add(slot.shape[0] if slot.shape else 0)
    wanted = {prefix for unit in left for prefix in prefixes(unit.path)}
    found: dict[str, int] = {}
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
    # The place in the stack is the number that counts, unless the stacks themselves are told apart by a number.
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
