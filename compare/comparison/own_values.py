"""Tables that both sides keep constant: the port's own values, which the check replaces by torch's.

A run of the JAX side starts from torch's values, buffers included. For a table that the port computes itself, such as
a filter bank or a window, its own values are those that its users have. Where a conversion of the weights may bring
torch's, the headline says so. `state_dict()` has no buffer with `persistent=False`, so that no conversion brings it.

A table is a buffer on the torch side, or a frozen parameter that the port holds as something other than a parameter.
"""

from collections.abc import Collection, Iterator, Mapping
from typing import NamedTuple

import numpy as np

from compare.numerics.distance import EPSILON32, ULPS, distance
from compare.step.stage import Stage
from compare.torch_side.layers import is_statistic
from compare.verdict.divergence import Cause
from compare.verdict.following import Followed
from compare.verdict.ratio import FACTOR
from compare.weights.links import Link, WeightMap, to_jax

DOCS = "docs/weights.md#what-is-matched-automatically"

_KEPT = (Stage.PARAMETERS, Stage.BUFFERS, Stage.STATE)
"""Stages that compare what is kept from step to step."""

_SHOWN = 3
"""Tables that are named."""


class OwnValues(NamedTuple):
    """What is to be said of the port's own tables."""

    limits: list[str]
    """As clauses of the headline."""
    unproved: list[Cause]


def other_own_values(
    links: WeightMap,
    followed: Followed,
    start: Mapping[str, np.ndarray],
    given: Mapping[str, np.ndarray],
    parameters: Mapping[str, bool],
    buffers: Collection[str],
    unsaved: Collection[str],
) -> OwnValues:
    """Find the tables of which the port came with other values than torch's.

    Args:
        links: Which tensor of one side is which of the other.
        followed: What the steps have shown.
        start: What the torch side starts from.
        given: The arrays that the port came with.
        parameters: Whether each of torch's parameters may be trained: a port's own are initial values, and mean
            nothing.
        buffers: The names of what the port keeps beside its parameters.
        unsaved: The names of torch's buffers with `persistent=False`.

    """
    tables = [*_tables(links, followed, start, parameters, buffers)]
    names = {link.jax for link in tables} & given.keys()
    own = {name: given[name].astype(np.float64) for name in names if given[name].dtype.kind in "fiub"}
    tables = [link for link in tables if link.jax in own]
    converted = to_jax(tables, start, own)
    saved_apart, own_apart = dict[str, float](), dict[str, float]()
    for link in tables:
        far = distance(own[link.jax], converted[link.jax])
        if far > FACTOR * ULPS * EPSILON32:
            (own_apart if link.torch in unsaved else saved_apart)[link.jax] = far
    limits, unproved = list[str](), list[Cause]()
    if saved_apart:
        says = f"although the port came with other values than torch's of {_named(saved_apart)}"
        limits.append(f"{says}: the check starts from torch's")
    if own_apart:
        unproved.append(
            Cause(
                "the port came with another table",
                f"its values of {_named(own_apart)} are not torch's. Torch's buffer has persistent=False and is in no "
                "state_dict(), so that no conversion of the weights brings its values to the port",
                "compute the table as torch does",
                DOCS,
            )
        )
    return OwnValues(limits, unproved)


def _tables(
    links: WeightMap,
    followed: Followed,
    start: Mapping[str, np.ndarray],
    parameters: Mapping[str, bool],
    buffers: Collection[str],
) -> Iterator[Link]:
    """List the tables that no step changes; the arguments are those of `other_own_values`."""
    sizes = {each.torch: each.sizes for each in followed.quantities if each.stage in _KEPT}
    constant = {name for name, of_steps in sizes.items() if np.ptp([size for size, _ in of_steps]) == 0}
    # What a step changes has no values of its own, unless it starts from one number, such as 0.
    constant |= {
        name
        for name in (sizes.keys() & start.keys()) - parameters.keys()
        if start[name].dtype.kind == "f" and is_one_number(start[name])
    }
    # A program's integers are compared by what they lead to.
    constant |= {name for name in start.keys() - sizes.keys() - parameters.keys() if start[name].dtype.kind in "iub"}
    return (
        link
        for link in links
        if link.torch in constant and not is_statistic(link.torch)
        if link.torch not in parameters or (not parameters[link.torch] and link.jax in buffers)
    )


def is_one_number(array: np.ndarray) -> bool:
    """Return whether all elements are one number."""
    return bool(array.size and (array == array.flat[0]).all())


def _named(apart: Mapping[str, float]) -> str:
    more = f" and {len(apart) - _SHOWN} more" if len(apart) > _SHOWN else ""
    return ", ".join(f"{name} ({far:.1e})" for name, far in list(apart.items())[:_SHOWN]) + more
