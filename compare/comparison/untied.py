"""Explains a gradient of a weight that torch has once, under several names, and the JAX side once for each name."""

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import TYPE_CHECKING

import numpy as np

from compare.numerics.distance import distance
from compare.step.observation import Observation, to_numpy
from compare.verdict.divergence import Cause
from compare.verdict.first_difference import Found
from compare.weights.links import Link, to_torch

if TYPE_CHECKING:
    import torch

UNTIED = "tied weights"


def untied(
    model: "torch.nn.Module",
    links: Iterable[Link],
    found: Found,
    torch_step: Callable[[], Observation],
    jax: Observation,
) -> Cause | None:
    """Say so where the gradients of several parameters of the JAX side add up to that of one of torch's.

    Args:
        model: All modules of the torch side.
        links: What the weights of both sides are paired by.
        found: A difference of a gradient.
        torch_step: Takes the step at which it was found on the torch side.
        jax: The same step on the JAX side, from the same values.

    """
    tensors = dict(model.named_parameters(remove_duplicate=False))
    name = found.divergence.torch
    if name not in tensors:
        return None
    names = [other for other, tensor in tensors.items() if tensor is tensors[name]]
    each = {link.jax: link for link in links if link.torch in names and link.jax in jax.gradients}
    if len(each) < 2:
        return None
    seen = torch_step()
    # JAX may clip inside of the optimizer, and its gradients are then those of torch's backward pass.
    wholes = [to_numpy(shown[name]) for shown in (seen.gradients, seen.accumulated) if name in shown]
    parts = _in_torch([*each.values()], {key: to_numpy(jax.gradients[key]) for key in each}, wholes[0])
    apart = min(distance(np.sum(parts, axis=0), whole) for whole in wholes)
    if apart > found.limit:
        return None
    return Cause(
        UNTIED,
        f"{UNTIED}: {' and '.join(names)} are one parameter in torch, and {' and '.join(each)} are several on the JAX "
        f"side. The sum of their gradients differs from torch's gradient by {apart:.1e}",
        "use one parameter in both places, as embedding.attend(x) does",
    )


def _in_torch(links: Sequence[Link], arrays: Mapping[str, np.ndarray], like: np.ndarray) -> list[np.ndarray]:
    return [to_torch([link], arrays, {link.torch: np.zeros_like(like)})[link.torch] for link in links]
