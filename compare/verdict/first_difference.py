"""The first place at which two sides differ, and what differs besides by itself."""

import dataclasses
from collections.abc import Callable, Iterable, Sequence
from typing import NamedTuple

import numpy as np

from compare.alignment.pairings import Pairing
from compare.step.observation import Observation, Port
from compare.verdict.divergence import Divergence
from compare.verdict.following import Followed
from compare.verdict.quantity import FACTOR, Quantity


class Target(NamedTuple):
    """What the JAX side gives from the torch side's values, and how near is near enough."""

    pairing: Pairing
    array: np.ndarray
    """In torch's layout."""
    limit: float
    """The distance that rounding would explain, with the safety factor."""


class Found(NamedTuple):
    """A divergence, and what there is to explain it by."""

    divergence: Divergence
    pairing: Pairing
    before: Pairing | None
    """The last thing that did not differ."""
    limit: float
    """The float64 difference that rounding would explain, with the safety factor."""
    target: np.ndarray | None = None
    """What the JAX side gives from the torch side's values, in torch's layout."""
    update: Sequence[Target] = ()
    """All that the JAX side's optimizer gives at that step, where that is what differs."""


def first_divergence(followed: Followed) -> Found | None:
    """The first difference beyond rounding, in order of computation; None if nothing that decides differs.

    What goes into a module counts only where what comes out differs too, or the gradient of its parameters, which is
    all that shows where these are zero: a mask may be written in another way.
    """
    wrong = [quantity.ratio > FACTOR for quantity in followed.quantities]
    deciding = [int(np.argmax(w)) for p, w in zip(followed.pairings, wrong, strict=True) if p.decides and w.any()]
    if not deciding:
        return None
    step = min(deciding)
    at_step = [pairing for pairing, w in zip(followed.pairings, wrong, strict=True) if w[step]]
    outputs = {pairing.ports[0][:2] for pairing in at_step if pairing.ports and pairing.ports[0].kind == "output"}
    names = [name for pairing in at_step if pairing.stage == "gradient" for name in pairing.torch.split(" + ")]
    felt = {name.partition("[")[0].rpartition(".")[0] for name in names}
    before: Pairing | None = None
    for pairing, quantity, w in zip(followed.pairings, followed.quantities, wrong, strict=True):
        port = pairing.ports and pairing.ports[0]
        if w[step] and (port is None or port.kind == "output" or port[:2] in outputs or port.path in felt):
            return _found(step, pairing, quantity, before)
        before = pairing
    return None


def _found(
    step: int, pairing: Pairing, quantity: Quantity, before: Pairing | None, target: np.ndarray | None = None
) -> Found:
    place, error32 = _place(pairing, before), float(quantity.rounding[step])
    opinion = ""
    if (lost := quantity.lost_by(step)) is not None:
        opinion = f"in float32 the {lost} side alone is not finite there: are its numbers too large for float32?"
    divergence = Divergence(step, pairing.stage, *place, quantity.error64[step], error32, opinion=opinion)
    return Found(divergence, pairing, before, FACTOR * float(quantity.expected[step]), target)


def independent_divergences(
    followed: Followed, steps: Iterable[tuple[Observation, Observation]], skipped: Callable[[Pairing], bool]
) -> list[Found]:
    """The first step at which each quantity differs where every part of a step starts from the torch side's values.

    Args:
        followed: What following both sides has found: torch's rounding.
        steps: Of the torch and the JAX side, in float64, each part of the JAX side's from torch's values.
        skipped: What these steps do not show.

    """
    fresh = [dataclasses.replace(quantity, error64=[]) for quantity in followed.quantities]
    found: list[Found | None] = [None] * len(fresh)
    for step, (torch, jax) in enumerate(steps):
        before: Pairing | None = None
        for number, (pairing, quantity) in enumerate(zip(followed.pairings, fresh, strict=True)):
            if skipped(pairing):
                continue
            theirs, ours = pairing.jax_array(jax), pairing.torch_array(torch)
            quantity.add_difference(theirs, ours, pairing.operands and pairing.operands(torch))
            if found[number] is None and quantity.ratio[-1] > FACTOR:
                found[number] = _found(step, pairing, quantity, before, np.array(theirs))
            before = pairing
        new = [number for number, each in enumerate(found) if each and each.divergence.step == step]
        if updated := [number for number in new if followed.pairings[number].stage == "update"]:
            targets = [
                Target(pairing, np.array(pairing.jax_array(jax)), FACTOR * float(quantity.expected[step]))
                for pairing, quantity in zip(followed.pairings, fresh, strict=True)
                if pairing.stage == "update"
            ]
            for number in updated:
                each = found[number]
                found[number] = each and each._replace(update=targets)
    return [each for each in found if each is not None]


def _place(pairing: Pairing, before: Pairing | None) -> tuple[str, str]:
    """Name a place on both sides: a tensor, a module, or what lies between two modules."""
    if pairing.ports is None:
        return pairing.torch, pairing.jax
    if before is None or before.ports is None:
        before = pairing
    ours, theirs = (_between(*ends) for ends in zip(before.ports or pairing.ports, pairing.ports, strict=True))
    return ours, theirs


def _between(before: Port, port: Port) -> str:
    if before[:2] == port[:2]:
        return port.module
    start = before.module if before.kind == "output" else f"the start of {before.module}"
    end = port.module if port.kind == "input" else f"the end of {port.module}"
    return f"between {start} and {end}"
