"""Values that take the place of a parameter within a step: a model may be applied to them.

After `fast = params - rate * gradients`, as in MAML, or after `optax.apply_updates`, the model that runs with the new
values is the one that runs with `params`. A value takes the place of a parameter if a sum, a product or a choice makes
it of that parameter and of no other. An average of the parameters of two models takes the place of neither.
"""

from collections.abc import Container, Sequence
from typing import Any

from compare.jax_side.primitives import ELEMENTWISE, FIRST_COUNTS
from compare.jax_side.program_state import Leaf, Role


def remembered_names(leaves: Sequence[Leaf]) -> frozenset[str]:
    """Name what optimizers remember: what they update with is made of it, and does not take its place."""
    return frozenset(leaf.name for leaf in leaves if leaf.role == Role.OPTIMIZER)


def succeeded(eqn: Any, names: Sequence[str | None], remembered: Container[str]) -> str | None:
    """Give the name of the parameter whose place the result of an operation takes; None if there is none.

    Args:
        eqn: The operation.
        names: For each of its arguments, the name of the parameter that it is, or whose place it takes.
        remembered: Names that do not count: see `remembered_names`.

    """
    names = [None if name in remembered else name for name in names]
    if eqn.primitive.name in FIRST_COUNTS:
        return names[0]
    known = {name for name in names if name is not None}
    return known.pop() if len(known) == 1 and eqn.primitive.name in ELEMENTWISE else None
