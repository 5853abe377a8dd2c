"""Everything of a training step but what happens inside the model: loss, gradients, optimizer, parameters, buffers."""

from collections.abc import Mapping, Sequence

from compare.alignment.optimizer_state import Settings, align_state
from compare.alignment.pairings import NotCompared, Pairing, align_tensors
from compare.errors import InputError
from compare.step.observation import Observation, to_numpy
from compare.weights.links import Link

_LOSS = Pairing(
    "loss",
    "loss",
    "loss",
    lambda observation: to_numpy(observation.loss),
    lambda observation: to_numpy(observation.loss),
)


def align_training(
    links: Sequence[Link], torch: Observation, jax: Observation, settings: Mapping[str, Settings]
) -> tuple[list[Pairing], list[NotCompared]]:
    """Pair loss, gradients, optimizer state, updates, parameters and buffers, in order of computation.

    Args:
        links: Which tensor is which, in the torch side's order of execution.
        torch: The first step of the torch side, in float64.
        jax: The same step of the JAX side.
        settings: Of the torch optimizer, for each parameter.

    Raises:
        InputError: Where a gradient or a parameter has no partner.

    """
    pairings = [] if torch.loss is None else [_LOSS]
    not_compared: list[NotCompared] = []
    for field, what in (("gradients", "gradient"), ("parameters", "parameter"), ("buffers", "buffer")):
        for side, seen in (("torch", torch), ("jax", jax)):
            linked = {getattr(link, side) for link in links}
            alone = [name for name in getattr(seen, field) if name not in linked]
            if alone and field != "buffers":
                raise InputError(f"the {side} side has a {what} without a partner: {', '.join(alone)}")
            not_compared += [NotCompared(side, name, "a buffer that the other side has not") for name in alone]
    frozen = [link for link in links if link.torch not in torch.gradients and link.jax in jax.gradients]
    not_compared += [
        NotCompared("jax", f"gradient of {link.jax}", "torch's parameter is frozen, requires_grad=False")
        for link in frozen
    ]
    # Gradients are computed from the last module to the first.
    pairings += align_tensors("gradient", "gradients", links[::-1], torch, jax)
    state, left = align_state(links, torch, jax, settings)
    pairings += state
    pairings += align_tensors("update", "updates", links, torch, jax)
    pairings += align_tensors("parameters", "parameters", links, torch, jax)
    pairings += align_tensors("buffers", "buffers", links, torch, jax)
    return pairings, not_compared + left
