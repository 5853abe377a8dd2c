"""Handles what two right programs may do at different places of a step, such as clipping, and still be the same.

Torch's loop clips gradients before it passes them to the optimizer, and optax's chain clips them inside the optimizer.
Then the gradients before clipping are compared, and the effect of clipping is compared in moments and updates. And a
module may do what torch does before it, as to divide an image by 255: its input differs, and all that it gives agrees.
So may a loss do what torch's model does at its end, as to take a sigmoid.
"""

import dataclasses
from collections.abc import Callable, Collection, Sequence

import numpy as np

from compare.alignment.pairings import NotCompared, Pairing, Read, shown
from compare.numerics.blocks import NEARLY, block
from compare.numerics.distance import norm
from compare.step.observation import Observation
from compare.step.stage import Stage
from compare.verdict.divergence import Divergence
from compare.verdict.following import Followed
from compare.verdict.ratio import FACTOR, Quantity


class Gradients:
    """The gradients of torch's as its optimizers are given them, and as the backward pass left them."""

    def __init__(self) -> None:
        self._accumulated: list[Pairing] = []
        self.chosen: frozenset[str] = frozenset()
        """The models whose gradients are compared as the backward pass left them."""

    def both(self, pairings: list[Pairing]) -> list[Pairing]:
        """Add to each pairing of a gradient one that reads it as the backward pass left it."""
        found = []
        for pairing in pairings:
            found.append(pairing)
            if pairing.stage == Stage.GRADIENT:
                found.append(pairing._replace(torch_array=_as_accumulated(pairing.torch_array)))
                self._accumulated.append(found[-1])
        return found

    def compared(self, followed: Followed) -> Followed:
        """Leave of both that which agrees with the JAX side's for longer, for all gradients of a model at once."""
        both: dict[tuple[str, bool], list[Quantity]] = {}
        pairs = list(zip(followed.pairings, followed.quantities, strict=True))
        accumulated = {id(pairing) for pairing in self._accumulated}
        for pairing, quantity in pairs:
            if pairing.stage == Stage.GRADIENT:
                both.setdefault((_model(pairing), id(pairing) in accumulated), []).append(quantity)
        # All gradients of a model at once: one that agrees either way must not hide another that agrees in neither.
        agree = {key: _agreement(each) for key, each in both.items()}
        models = {model for model, _ in agree}
        self.chosen = frozenset(model for model in models if agree[model, True] > agree[model, False])
        left = [
            (pairing, quantity)
            for pairing, quantity in pairs
            if pairing.stage != Stage.GRADIENT or (id(pairing) in accumulated) == (_model(pairing) in self.chosen)
        ]
        # A gradient that one side alone is given at some step says nothing: see `compare.verdict.following`.
        alone = [NotCompared("jax", f"gradient of {p.jax}", _OTHER_STEPS) for p, q in left if q.decides < p.decides]
        left = [(pairing, quantity) for pairing, quantity in left if quantity.decides or not pairing.decides]
        return followed._replace(
            pairings=[p for p, _ in left],
            quantities=[q for _, q in left],
            not_compared=[*followed.not_compared, *alone],
        )


def nearer_reading(pairings: Sequence[Pairing], torch: Observation, jax: Observation) -> Observation:
    """Return a step of torch's in which each model's gradients are read as they are nearer to the JAX side's."""
    chosen = nearer_as_accumulated(pairings, torch, jax)
    left = {name: value for name, value in torch.accumulated.items() if name.partition(".")[0] in chosen}
    return torch._replace(gradients={**torch.gradients, **left}, accumulated={})


def nearer_as_accumulated(pairings: Sequence[Pairing], torch: Observation, jax: Observation) -> set[str]:
    """Name the models whose gradients are nearer to the JAX side's as the backward pass left them.

    `Gradients.compared` chooses for the steps that were followed. With a fault mended, the other reading may be meant.
    """
    readings = torch._replace(accumulated={}), torch._replace(gradients={**torch.gradients, **torch.accumulated})
    apart: dict[str, np.ndarray] = {}
    for pairing in pairings:
        if pairing.stage == Stage.GRADIENT and (theirs := shown(pairing.jax_array, jax)) is not None:
            both = [shown(pairing.torch_array, reading) for reading in readings]
            # Of a model all gradients are read in one way, and are weighed together: one that is nothing but rounding
            # is as far away in either.
            squares = [np.inf if each is None else norm(theirs - each) ** 2 for each in both]
            apart[_model(pairing)] = apart.get(_model(pairing), np.zeros(2)) + squares
    return {model for model, (given, accumulated) in apart.items() if accumulated < given}


_OTHER_STEPS = "the two optimizers get gradients at different steps: only their updates and state are compared"


def _agreement(quantities: Sequence[Quantity]) -> tuple[int, int, bool]:
    """Say how many steps gradients agree, how many of them in the next, and whether the others nearly do there.

    In the next, the first updates of several in a step may agree.
    """
    wrong = np.array([quantity.ratio > FACTOR for quantity in quantities])
    bad: np.ndarray = np.any(wrong, axis=0)
    if not bad.any():
        return len(bad), 0, True
    first = int(np.argmax(bad))
    nearly = all(quantity.error64[first] < NEARLY for quantity in quantities)
    return first, -int(wrong[:, first].sum()), nearly


def _as_accumulated(read: Read) -> Read:
    def accumulated(seen: Observation) -> np.ndarray:
        return read(seen._replace(gradients={**seen.gradients, **seen.accumulated}))

    return accumulated


def _model(pairing: Pairing) -> str:
    return pairing.torch.partition(".")[0]


def without_undone(followed: Followed) -> Followed:
    """Leave out what a module takes where all that it gives of it agrees when it first differs."""
    pairs = list(zip(followed.pairings, followed.quantities, strict=True))
    given: dict[tuple[str, int], list[np.ndarray]] = {}
    for pairing, quantity in pairs:
        if pairing.ports is not None and pairing.ports[0].kind == "output":
            given.setdefault(pairing.ports[0][:2], []).append(quantity.ratio > FACTOR)

    def undone(pairing: Pairing, wrong: np.ndarray) -> bool:
        if pairing.ports is None or pairing.ports[0].kind != "input" or pairing.decides or not wrong.any():
            return False
        outputs, first = given.get(pairing.ports[0][:2], []), int(np.argmax(wrong))
        return bool(outputs) and not any(output[first] for output in outputs)

    left = [(pairing, quantity) for pairing, quantity in pairs if not undone(pairing, quantity.ratio > FACTOR)]
    return followed._replace(pairings=[p for p, _ in left], quantities=[q for _, q in left])


def cut_to_size(pairing: Pairing, torch: Observation, jax: Observation) -> Pairing:
    """Read of what a module gives the part that the other side has, where one program cuts off the rest.

    Torch pads a causal convolution at both ends and leaves out the last elements; JAX pads it at the start alone.
    """
    if pairing.ports is None or pairing.decides:
        return pairing
    ours, theirs = shown(pairing.torch_array, torch), shown(pairing.jax_array, jax)
    if ours is None or theirs is None:
        return pairing
    if (of_torch := block(ours, theirs)) is not None:
        return pairing._replace(torch_array=_part(pairing.torch_array, of_torch))
    if (of_jax := block(theirs, ours)) is not None:
        return pairing._replace(jax_array=_part(pairing.jax_array, of_jax))
    return pairing


def _part(read: Read, slices: tuple[slice, ...]) -> Read:
    return lambda seen: read(seen)[slices]


_MADE_UP_FOR = (
    "it differs, but the loss, the gradients and the updates agree. Leave the loss out of the check to compare it"
)


def without_undone_outputs(followed: Followed, read_by_loss: Callable[[], Collection[str]]) -> Followed:
    """Leave out what the model gives where nothing else that decides differs: loss, gradients and updates agree.

    `read_by_loss` gives the names of the outputs that torch's loss reads; it is called only where an output differs.
    """
    pairs = list(zip(followed.pairings, followed.quantities, strict=True))
    wrong = [pairing for pairing, quantity in pairs if pairing.decides and np.any(quantity.ratio > FACTOR)]
    # Gradients are the stronger witness: they hold as many equations as there are weights, and a loss of another output
    # has the same ones only if it is the same function of the weights.
    seen = {pairing.stage for pairing, quantity in pairs if any(size for size, _ in quantity.sizes)}
    proved = {Stage.LOSS, Stage.GRADIENT} <= seen  # a loss alone is one number, and zero gradients say nothing
    if not wrong or not proved or any(pairing.stage != Stage.FORWARD for pairing in wrong):
        return followed
    # If the model gets different inputs, such as a transposed image, a loss that agrees does not depend on the
    # difference.
    if any(np.any(quantity.ratio > FACTOR) for pairing, quantity in pairs if not pairing.decides):
        return followed
    # A loss that does not read an output, such as attention weights that are returned as well, would agree whatever
    # that output is.
    known = read_by_loss()
    undone = [each for each in wrong if each.ports is None or each.ports[0].leaf in known]
    not_compared = [*followed.not_compared, *(NotCompared("torch", each.torch, _MADE_UP_FOR) for each in undone)]
    return without(followed, undone)._replace(not_compared=not_compared)


_UNDONE = "it differs, and the rest of the step makes up for the difference"


def without_undone_inside(followed: Followed) -> Followed:
    """Leave out of a match what differs inside the model, as logits do where torch's model gives probabilities."""
    pairs = zip(followed.pairings, followed.quantities, strict=True)
    inner = [each for each in pairs if not each[0].decides and not each[0].accepted]
    undone = [pairing for pairing, quantity in inner if np.any(quantity.ratio > FACTOR)]
    not_compared = [*followed.not_compared, *(NotCompared("torch", each.torch, _UNDONE) for each in undone)]
    return without(followed, undone)._replace(not_compared=not_compared)


def without(followed: Followed, left_out: Sequence[Pairing]) -> Followed:
    """Leave out what some pairings read."""
    pairs = zip(followed.pairings, followed.quantities, strict=True)
    left = [(pairing, quantity) for pairing, quantity in pairs if not any(pairing is each for each in left_out)]
    return followed._replace(pairings=[p for p, _ in left], quantities=[q for _, q in left])


def without_formula(found: Divergence) -> Divergence:
    """Leave out torch's formula as the fix of a loss that takes another output than torch's does, such as logits."""
    if found.stage != Stage.LOSS or found.cause is None:
        return found
    if not found.cause.code and "jnp." not in found.cause.fix:
        return found
    parts = tuple(dataclasses.replace(part, fix="", code=None) for part in found.cause.parts)
    return dataclasses.replace(found, cause=dataclasses.replace(found.cause, fix="", code=(), parts=parts))
