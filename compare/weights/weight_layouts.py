"""The layouts of weights on both sides: noise that a step draws for each weight may have its layout."""

from collections.abc import Mapping, Sequence

import numpy as np

from compare.step.draws import Weight
from compare.weights.links import Link


def weight_layouts(
    links: Sequence[Link], models: Sequence[Mapping[str, tuple[int, ...]]], jax: Mapping[str, np.ndarray]
) -> tuple[tuple[Weight, ...], ...]:
    """List the layouts of each model's weights, in torch's order.

    A model is left out if a weight of it is a part of an array on one side: its noise has other shapes there.

    Args:
        links: From `find_links`.
        models: The shapes of each torch model's parameters by name, in torch's order.
        jax: The JAX side's arrays by name, in the order of its leaves.

    """
    of_torch: dict[str, list[Link]] = {}
    of_jax: dict[str, list[Link]] = {}
    for link in links:
        of_torch.setdefault(link.torch, []).append(link)
        of_jax.setdefault(link.jax, []).append(link)
    order = {name: number for number, name in enumerate(jax)}
    found = []
    for shapes in models:
        alone = [
            each[0] for name in shapes if len(each := of_torch.get(name, [])) == 1 and len(of_jax[each[0].jax]) == 1
        ]
        if not shapes or len(alone) < len(shapes) or any(_is_part(link) for link in alone):
            continue
        places = np.argsort(np.argsort([order[link.jax] for link in alone]))
        found.append(
            tuple(
                Weight(shapes[link.torch], jax[link.jax].shape, _axes(link, jax[link.jax].ndim), int(place))
                for link, place in zip(alone, places, strict=True)
            )
        )
    return tuple(found)


def _is_part(link: Link) -> bool:
    return any(view.index or view.shape is not None or view.flip for view in (link.torch_view, link.jax_view))


def _axes(link: Link, axes: int) -> tuple[int, ...]:
    """Give the axis of torch's that each axis of JAX's is: both views give the same array."""
    ours, theirs = (tuple(range(axes)) if view.axes is None else view.axes for view in (link.torch_view, link.jax_view))
    return tuple(ours[place] for place in map(int, np.argsort(theirs)))
