"""Both sides through the same steps, in both precisions, and what differs first."""

import dataclasses
import itertools
import operator
from collections.abc import Callable, Iterable, Sequence
from typing import NamedTuple

import numpy as np

from compare.alignment import Alignment, NotCompared, Pairing, to_numpy
from compare.observation import Observation, Port, Stream
from compare.problem import InputError
from compare.report import Divergence
from compare.verdict import FACTOR, Quantity


class Streams(NamedTuple):
    """Four runs of the same steps. They are taken in this order: torch's randomness comes before its replay."""

    torch32: Stream
    torch64: Stream
    jax64: Stream
    jax32: Stream


class Followed(NamedTuple):
    """What following both sides found."""

    pairings: list[Pairing]
    """In order of computation within a step."""
    quantities: list[Quantity]
    """One for each pairing."""
    losses: dict[str, np.ndarray]
    """Of each stream, shape `(steps,)`."""
    not_compared: list[NotCompared]


SoFar = Callable[[], Followed]


def follow(
    streams: Streams,
    align: Callable[[Observation, Observation], Alignment],
    steps: int,
    progress: Callable[[int, SoFar], None] = lambda _step, _so_far: None,
) -> Followed:
    """Take all runs through `steps` steps, and weigh each step as it comes: nothing is kept but distances.

    Args:
        streams: The four runs.
        align: Pairs the first step of the torch side and of the JAX side, in float64.
        steps: How many. There are fewer where a loss stops being finite on one side.
        progress: Called before every step, with its number and with what gives all that the steps before it found.

    Raises:
        InputError: Where the loss overflows on both sides.

    """
    pairings: list[Pairing] = []
    quantities: list[Quantity] = []
    losses: list[list[np.ndarray]] = []
    not_compared: list[NotCompared] = []

    def so_far() -> Followed:
        done = len(losses)
        columns = np.array(losses[:done]).T if done and losses[0] else np.empty((4, 0))
        return Followed(
            pairings, _cut(quantities, done), dict(zip(Streams._fields, columns, strict=True)), not_compared
        )

    for step in range(steps):
        progress(step, so_far)
        torch32, torch64 = next(streams.torch32), next(streams.torch64)
        if step == 0:
            jax64 = next(streams.jax64)
            pairings, not_compared = align(torch64, jax64)
            quantities = _quantities(pairings)
        loss = [torch32.loss, torch64.loss]
        for pairing, quantity in zip(pairings, quantities, strict=True):
            operands = pairing.operands and pairing.operands(torch64)
            quantity.add_torch(pairing.torch_array(torch32), pairing.torch_array(torch64), operands)
        del torch32
        if step > 0:
            jax64 = next(streams.jax64)
        for pairing, quantity in zip(pairings, quantities, strict=True):
            quantity.add_difference(pairing.jax_array(jax64), pairing.torch_array(torch64))
        del torch64
        jax32 = next(streams.jax32)
        for pairing, quantity in zip(pairings, quantities, strict=True):
            quantity.add_jax(pairing.jax_array(jax32), pairing.jax_array(jax64))
        loss += [jax64.loss, jax32.loss]
        del jax64, jax32
        losses.append([np.asarray(to_numpy(value)) for value in loss if value is not None])
        if not _finite(step, losses[-1]):
            break
    return so_far()


def _quantities(pairings: list[Pairing]) -> list[Quantity]:
    return _linked([Quantity(pairing.stage, pairing.torch, pairing.jax, pairing.decides) for pairing in pairings])


def _cut(quantities: list[Quantity], steps: int) -> list[Quantity]:
    """Copy what was weighed in the first steps: another step, or its noise, may be half done."""
    per_step = ("error64", "error_torch", "error_jax", "cancellation")
    return _linked(
        [
            dataclasses.replace(
                quantity,
                **{name: getattr(quantity, name)[:steps] for name in per_step},
                noise=quantity.noise if len(quantity.noise) == steps else [],
            )
            for quantity in quantities
        ]
    )


def _linked(quantities: list[Quantity]) -> list[Quantity]:
    updates = {quantity.torch: quantity for quantity in quantities if quantity.stage == "update"}
    for quantity in quantities:
        if quantity.stage == "parameters":
            quantity.update = updates.get(quantity.torch)
    return quantities


def _finite(step: int, losses: list[np.ndarray]) -> bool:
    """Tell whether all losses are finite; raise InputError where one is not on both sides at once."""
    if not losses:
        return True
    torch32, torch64, jax64, jax32 = (bool(np.isfinite(loss)) for loss in losses)
    for dtype, torch, jax in (("float64", torch64, jax64), ("float32", torch32, jax32)):
        if not torch and not jax:
            raise InputError(
                f"the loss is not finite at step {step}, in {dtype} on both sides: "
                "the steps from there on would prove nothing. Lower the learning rate, or take fewer steps"
            )
    return torch32 and torch64 and jax32 and jax64


def weigh_noise(followed: Followed, moved: Sequence[Stream], side: str) -> None:
    """Measure what float64 rounding does to one side, by runs that are moved by some, each in its own way.

    Where a gradient is zero in exact arithmetic, as that of a bias that feeds BatchNorm, it is nothing but rounding,
    and Adam makes whole steps of it, in float64 as in float32. Rounding does not shrink there, and these runs say how
    large it is: as far as any two of them come apart.

    Args:
        followed: What following both sides has found, to which this is added.
        moved: The runs.
        side: Which one's they are, "torch" or "jax".

    """
    read = operator.attrgetter(f"{side}_array")
    steps = max((len(quantity.error64) for quantity in followed.quantities), default=0)
    for step, seen in enumerate(itertools.islice(zip(*moved, strict=False), steps)):
        for pairing, quantity in zip(followed.pairings, followed.quantities, strict=True):
            for one, other in itertools.combinations(map(read(pairing), seen), 2):
                quantity.add_noise(step, one, other)


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
    fresh = [dataclasses.replace(quantity, error64=[], size=None) for quantity in followed.quantities]
    found: list[Found | None] = [None] * len(fresh)
    for step, (torch, jax) in enumerate(steps):
        before: Pairing | None = None
        for number, (pairing, quantity) in enumerate(zip(followed.pairings, fresh, strict=True)):
            if skipped(pairing):
                continue
            theirs, ours = pairing.jax_array(jax), pairing.torch_array(torch)
            quantity.add_difference(theirs, ours)
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
