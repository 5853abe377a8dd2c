"""Finds weights that the user's own conversion has converted wrongly."""

import numpy as np

from compare.numerics.relations import Kind, Relation, relation
from compare.verdict.divergence import Cause, Part
from compare.verdict.fix import Code
from compare.weights.links import Link

_COPY = Code("compare.copy_weights", ("torch_model", "flax_model"))


def misconverted(link: Link, ours: np.ndarray, theirs: np.ndarray, limit: float) -> Cause | None:
    """Say how a weight was converted, and how it should have been.

    Args:
        link: Which weight it is.
        ours: As torch has it.
        theirs: As the port came with it, in torch's layout.
        limit: The distance that is near enough.

    """
    how = relation(ours, theirs, limit)
    if not how:
        return None
    moved = "" if link.jax_view.axes is None else f".transpose{link.jax_view.axes}"
    return Cause(
        "converted weight",
        f"converted weight: the port's own value is {how}",
        f"{link.jax}{moved} must equal {link.torch}: {_COPY} copies it that way",
        "https://flax.readthedocs.io/en/latest/guides/converting_and_upgrading/convert_pytorch_to_flax.html",
        (_COPY,),
        () if how.kind in (Kind.ORDER, Kind.MASKED) else (_converted(how),),
    )


def _converted(how: Relation) -> Part:
    """Describe the conversion without the weight's name: it is the same mistake for all that were converted so."""
    return Part("converted weight", f"the port's own value is {how}", f"{_COPY} converts each weight correctly")
