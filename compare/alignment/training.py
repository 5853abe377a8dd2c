"""Pairs everything of a training step outside the model: loss, gradients, optimizer, parameters, buffers."""

from collections.abc import Iterator, Mapping, Sequence
from typing import NamedTuple

import numpy as np

from compare.alignment.optimizer_state import Settings, align_state
from compare.alignment.pairings import NotCompared, Pairing, Read, align_tensors
from compare.errors import InputError
from compare.step.observation import Observation, to_numpy
from compare.step.stage import Stage
from compare.weights.links import Link, Parts, named
from compare.weights.units import View

_LOSS = Pairing(
    Stage.LOSS,
    "loss",
    "loss",
    lambda observation: to_numpy(observation.loss),
    lambda observation: to_numpy(observation.loss),
)


NO_PARTNER = "(no partner)"


class Constant(NamedTuple):
    """A buffer that only one side has."""

    side: str
    """Which has it: "torch" or "jax"."""
    name: str
    value: np.ndarray
    """What it holds before the first step, and must hold after each."""


def align_training(
    links: Sequence[Link],
    torch: Observation,
    jax: Observation,
    settings: Mapping[str, Settings],
    constants: Sequence[Constant] = (),
    left_out: Mapping[str, str] | None = None,
) -> tuple[list[Pairing], list[NotCompared]]:
    """Pair loss, gradients, optimizer state, updates, parameters and buffers, in order of computation.

    Args:
        links: Which tensor is which, in the torch side's order of execution.
        torch: The first step of the torch side, in float64.
        jax: The same step of the JAX side.
        settings: Of the torch optimizer, for each parameter.
        constants: The buffers that no step may change, since the other side has none such.
        left_out: The tensors of either side that need no partner, each with the reason.

    Raises:
        InputError: Where another gradient or parameter has no partner.

    """
    pairings = [] if torch.loss is None else [_LOSS]
    links = [link for link in links if link.compared]
    gradients, not_compared = _without_partner(links, torch, jax, constants, left_out or {})
    pairings += gradients
    trained = {link.jax for link in links if link.torch in torch.gradients}  # tied weights, by one of their names
    frozen = [link for link in links if link.jax in jax.gradients and link.jax not in trained]
    not_compared += [NotCompared("jax", f"gradient of {link.jax}", _UNTRAINED) for link in frozen]
    # Gradients are computed from the last module to the first.
    pairings += align_tensors(Stage.GRADIENT, "gradients", links[::-1], torch, jax)
    state, left = align_state(links, torch, jax, settings)
    pairings += state
    pairings += align_tensors(Stage.UPDATE, "updates", links, torch, jax)
    pairings += align_tensors(Stage.PARAMETERS, "parameters", links, torch, jax)
    pairings += _across(links, torch, jax)
    pairings += align_tensors(Stage.BUFFERS, "buffers", links, torch, jax)
    pairings += [
        _one_sided(Stage.BUFFERS, "buffers", *constant)
        for constant in constants
        if constant.name in (torch if constant.side == "torch" else jax).buffers
    ]
    return pairings, not_compared + left


_UNTRAINED = "torch does not train it: it is a buffer, or frozen by requires_grad=False"


def _across(links: Sequence[Link], torch: Observation, jax: Observation) -> Iterator[Pairing]:
    """Pair what is a parameter on one side and a buffer on the other: both must stay the same after each step."""

    def reader(field: str, name: str, view: View) -> Read:
        return lambda observation: view(to_numpy(getattr(observation, field)[name]))

    for link in links:
        for ours, theirs in (("parameters", "buffers"), ("buffers", "parameters")):
            if link.torch in getattr(torch, ours) and link.jax in getattr(jax, theirs):
                reads = reader(ours, link.torch, link.torch_view), reader(theirs, link.jax, link.jax_view)
                yield Pairing(Stage.PARAMETERS, named(link, "torch"), named(link, "jax"), *reads)


def _without_partner(
    links: Sequence[Link],
    torch: Observation,
    jax: Observation,
    constants: Sequence[Constant],
    left_out: Mapping[str, str],
) -> tuple[list[Pairing], list[NotCompared]]:
    """Compare the gradients of parameters without a partner with zero; list the buffers that are not compared.

    A parameter that the user leaves out by weights= may be unused, and then its gradient is zero. If it is not, the
    parameter is trained, and the other side lacks it.
    """
    pairings: list[Pairing] = []
    not_compared: list[NotCompared] = []
    held = {(constant.side, constant.name) for constant in constants}
    for side, seen in (("torch", torch), ("jax", jax)):
        linked = {getattr(link, side) for link in links}
        for field, what in (("gradients", "gradient"), ("parameters", "parameter")):
            if alone := [name for name in getattr(seen, field) if name not in linked and name not in left_out]:
                raise InputError(f"the {side} side has a {what} without a partner: {', '.join(alone)}")
        whole = [name for name in seen.gradients if name not in linked]
        # Parts that are left out are torch's: a tensor of the JAX side may have the same name.
        named = [name for name in left_out if side == "torch" and name not in seen.parameters]
        parts = [name for name in named if name.partition("[")[0] in seen.parameters]
        gradients = Parts(seen.gradients)
        pairings += [
            _one_sided(Stage.GRADIENT, "gradients", side, name, np.zeros(to_numpy(gradients[name]).shape))
            for name in (*whole, *(name for name in parts if name.partition("[")[0] in seen.gradients))
        ]
        alone = [name for name in seen.parameters if name not in linked]
        not_compared += [NotCompared(side, name, left_out[name]) for name in (*alone, *parts)]
        not_compared += [
            NotCompared(side, name, "a buffer that the other side does not have")
            for name in seen.buffers
            if name not in linked and (side, name) not in held
        ]
    return pairings, not_compared


def _one_sided(stage: Stage, field: str, side: str, name: str, value: np.ndarray) -> Pairing:
    """Hold a tensor that only one side has against a value."""

    def own(observation: Observation) -> np.ndarray:
        return to_numpy(Parts(getattr(observation, field))[name])

    def fixed(observation: Observation) -> np.ndarray:
        return value

    names, reads = (name, NO_PARTNER), (own, fixed)
    if side == "jax":
        names, reads = names[::-1], reads[::-1]
    return Pairing(stage, *names, *reads)
