"""Finds modules that the two sides run in another order.

A norm before attention in place of after it changes the input of every module in the layer. Each of them would be a
finding, and all of them together are one: the order.
"""

import dataclasses
from collections.abc import Iterator, Mapping, Sequence
from typing import NamedTuple

import numpy as np

from compare.alignment.pairings import Pairing, shown
from compare.comparison.from_torch import Repeated
from compare.comparison.surplus import NUDGE
from compare.numerics.distance import distance
from compare.step.observation import Observation, Port
from compare.verdict.divergence import Cause
from compare.verdict.first_difference import Found

LATEST = 2
"""How many outputs are tried as the source of a module's input: the latest before it."""


class Moved(NamedTuple):
    """A module on the JAX side that takes the output of another, which in torch runs after it."""

    torch: str
    """The path of the module that contains both."""
    jax: str
    between: frozenset[Port]
    """Torch's, from where the one begins to what takes what the other gives: what the order changes."""
    cause: Cause


def moved(
    pairings: Sequence[Pairing],
    wrong: Mapping[int, float],
    torch: Observation,
    jax: Observation,
    again: Repeated,
) -> Iterator[Moved]:
    """Yield such modules, of those that differ in what they take.

    Args:
        pairings: Of both sides.
        wrong: The numbers of the places that differ by themselves, and for each the distance that rounding explains.
        torch: A step of the torch side.
        jax: The same step of the JAX side, from torch's values.
        again: Takes that step again.

    """
    rank = {port: number for number, port in enumerate(torch.forward)}
    order = list(jax.forward)
    by_jax = {each.ports[1]: each.ports[0] for each in pairings if each.ports and each.to_jax}
    for number, limit in wrong.items():
        ours, theirs = pairings[number].ports or (None, None)
        if ours is None or theirs is None or ours.kind != "input" or not ours.path or theirs not in order:
            continue
        earlier = [
            port
            for port in order[: order.index(theirs)]
            if port.kind == "output" and port in by_jax and rank.get(by_jax[port], -1) > rank.get(ours, len(rank))
        ]
        for other in earlier[: -LATEST - 1 : -1]:
            if _depends(pairings[number], other, limit, jax, again):
                begins, ends = rank[ours], rank[by_jax[other]]
                yield _moved((ours, theirs), (by_jax[other], other), list(torch.forward)[begins : ends + 2])
                break


def _depends(pairing: Pairing, other: Port, limit: float, jax: Observation, again: Repeated) -> bool:
    """Return whether a module takes the output of another: it changes with it, all else being as it was."""
    before = np.array(pairing.jax_array(jax))
    given = again.given
    # An experiment in place of a look into the program: a value is a source if changing it changes the
    # input. It sees through residual sums and reshapes, and needs no trace of the JAX side.
    ports = {**given.ports, other: np.asarray(given.ports[other]) * (1 + NUDGE)}
    after = shown(pairing.jax_array, again(given._replace(ports=ports)))
    return after is not None and distance(after, before) > limit


def _moved(taking: tuple[Port, Port], giving: tuple[Port, Port], between: Sequence[Port]) -> Moved:
    """Describe a module that takes what another gives, each by its ports on the torch and on the JAX side."""
    explanation = (
        f"order of modules: on the JAX side {taking[1].module} takes the output of {giving[1].module}, which runs "
        f"before it. In torch {taking[0].module} runs before {giving[0].module}"
    )
    cause = Cause("order of modules", explanation, "", "docs/verdict.md#what-differs-inside-and-is-undone")
    torch, jax = (_parent(taking[n].path, giving[n].path, "./"[n]) for n in (0, 1))
    return Moved(torch, jax, frozenset(between), cause)


def _parent(one: str, other: str, separator: str) -> str:
    """Return the path of the innermost module that contains both."""
    parts = []
    for a, b in zip(one.split(separator)[:-1], other.split(separator)[:-1], strict=False):
        if a != b:
            break
        parts.append(a)
    return separator.join(parts)


def merged(found: Sequence[Found], moves: Sequence[Moved]) -> list[Found]:
    """Return one finding for each module whose parts run in another order, in place of all that follow from it.

    What a part computes from its own right input stays a finding of its own.
    """
    kept: list[Found] = []
    seen: set[str] = set()
    for each in found:
        move = next((move for move in moves if _follows(each, move)), None)
        if move is None:
            kept.append(each)
        elif move.torch not in seen:
            seen.add(move.torch)
            torch, jax = move.torch or "the model", move.jax or "the model"
            place = dataclasses.replace(
                each.divergence, torch=torch, jax=jax, cause=move.cause, modules=(move.torch, move.jax)
            )
            kept.append(each._replace(divergence=place, known=True))
    return kept


def _follows(found: Found, move: Moved) -> bool:
    """Return whether a finding is what a part of a module takes, or what the module itself gives."""
    if found.pairing.ports is None:
        return False
    port = found.pairing.ports[0]
    inside = port.kind == "input" and port.path.startswith(f"{move.torch}." if move.torch else "")
    return (inside and port in move.between) or (port.path == move.torch and port.kind == "output")
