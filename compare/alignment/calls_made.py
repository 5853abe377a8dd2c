"""Finds the modules that the step of one side calls for more examples than the other side's does.

A port that omits a part of a computation may still match. For example, it may use one of two critics where torch uses
the lower value, as long as the other critic's value is never the lower one. One that makes a turn of a loop too few, or
too many, does not, and no change of torch's operations is its cause.
"""

from collections.abc import Iterable, Sequence
from typing import NamedTuple

from compare.alignment.partners import Call, weighted
from compare.step.observation import Observation, to_numpy
from compare.weights.links import Link


class Called(NamedTuple):
    """How often torch calls a module, and the JAX side the one with the same weights."""

    module: str
    torch: int
    jax: int


def called_otherwise(links: Sequence[Link], torch: Observation, jax: Observation) -> list[Called]:
    """Return the modules of which one side computes more, without those inside them."""
    ours, theirs = weighted(links, *(dict.fromkeys((port.path, port.call) for port in s.forward) for s in (torch, jax)))
    found: list[Called] = []
    for weights, modules in ours.items():
        if not (others := theirs.get(weights, [])):
            continue
        most, other = max(modules, key=len), max(others, key=len)
        # Calls are counted by their numbers: what torch.func.vmap calls is not seen.
        called = [max(number for _, number in each) + 1 for each in (most, other)]
        # A port may take two batches as one, or use a result twice: it has fewer calls, and computes as much.
        if (called[0] - called[1]) * (_computed(torch, most) - _computed(jax, other)) > 0:
            found.append(Called(most[0][0], *called))
    names = [each.module for each in found]
    return [each for each in found if not any(each.module.startswith(f"{name}.") for name in names)]


def _computed(seen: Observation, calls: Iterable[Call]) -> int:
    """Count the numbers that these calls give, equal results once."""
    wanted = set(calls)
    given = (
        to_numpy(value)
        for port, value in seen.forward.items()
        if (port.path, port.call) in wanted and port.kind == "output"
    )
    return sum({(array.shape, array.tobytes()): array.size for array in given}.values())
