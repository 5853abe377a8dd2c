"""Finds where the shapes of two models' activations first differ, to explain weights of different shapes."""

import math
from collections.abc import Iterable, Mapping

from compare.step.observation import Port
from compare.weights.links import Link

Shapes = Mapping[Port, tuple[int, ...]]
"""Of what each module takes and gives, in order of execution."""


def first_difference(links: Iterable[Link], torch: Shapes, jax: Shapes) -> str:
    """Name the first layer whose input or output has another number of elements than its partner's; "" if none has.

    A kernel after a flattened image has another shape if an earlier layer has other padding: that layer is to be
    reported. Sizes are compared, and not shapes, because the sides may order their axes in different ways.

    Args:
        links: The weights that have partners, which say what layers are partners.
        torch: The shapes of the torch side.
        jax: The shapes of the JAX side.

    """
    partners = {
        link.torch.rpartition(".")[0]: link.jax.rpartition("/")[0]
        for link in links
        if not (link.torch_view.index or link.jax_view.index)  # parts of a layer give other sizes than the whole
    }
    for port, shape in torch.items():
        path = partners.get(port.path, "")
        theirs = jax.get(port._replace(path=path)) if path else None
        if theirs is not None and math.prod(shape) != math.prod(theirs):
            return (
                f"the shapes of activations first differ at the {port.kind} of {port.path} {shape} in torch, "
                f"and of {path} {theirs} in JAX: check padding, strides and sizes there"
            )
    return ""
