"""Holds edits against all gradients of a step at once, where no value of the step shows what they change."""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from compare.diagnosis.held_out import MARGIN
from compare.diagnosis.rewriting import Rerun
from compare.diagnosis.structure.edit import Context, Edit
from compare.diagnosis.structure.editing import edited
from compare.diagnosis.structure.graph import FAILURES
from compare.diagnosis.structure.recording import Operations
from compare.diagnosis.structure.step import changes
from compare.numerics.distance import distance, norm
from compare.verdict.divergence import Cause
from compare.verdict.first_difference import Found

CONFIRMATIONS = 2
"""Other steps at which edits must hold."""


class Proved(NamedTuple):
    """The edits that all gradients prove."""

    cause: Cause | None
    edited: Operations | None = None
    """The operations of torch's step that they change."""


class Elsewhere(NamedTuple):
    """Another step."""

    rerun: Rerun
    """Of torch."""
    theirs: np.ndarray
    """The JAX side's gradients there, as one vector."""


def leaves(
    found: Found, rerun: Rerun, edits: Sequence[Edit], context: Context, elsewhere: Sequence[Elsewhere]
) -> float | None:
    """Return how far torch's gradients are from the JAX side's with edits; None if that is not rounding at each step.

    Args:
        found: What differs: its pairing reads all gradients as one vector.
        rerun: The torch side's step.
        edits: Of its operations.
        context: In which the edits were listed.
        elsewhere: Other steps.

    """
    assert found.target is not None
    apart = _apart(found, rerun, edits, context, found.target)
    # Where the sides differ by little more than rounding, as by 1e-12 that a port adds, edits without effect hold too.
    if apart > MARGIN * found.limit or MARGIN * apart > _apart(found, rerun, (), context, found.target):
        return None
    # Weights that are moved have rounding of their own: its margin is counted once more.
    near = MARGIN**2 * found.limit
    holds = all(_apart(found, other, edits, context, theirs) <= near for other, theirs in elsewhere)
    return apart if holds else None


def agreeing(found: Found, rerun: Rerun, edits: Sequence[Edit], context: Context) -> np.ndarray:
    """Tell which elements of torch's gradients are the JAX side's with edits; none where the step fails with them."""
    assert found.target is not None
    ours = _gradients(found, rerun, edits, context)
    if ours is None or ours.shape != found.target.shape:
        return np.zeros(found.target.shape, bool)
    near: np.ndarray = np.abs(ours - found.target) <= MARGIN * found.limit * norm(found.target)
    return near


def _apart(found: Found, rerun: Rerun, edits: Sequence[Edit], context: Context, theirs: np.ndarray) -> float:
    ours = _gradients(found, rerun, edits, context)
    return distance(ours, theirs) if ours is not None and ours.shape == theirs.shape else np.inf


def _gradients(found: Found, rerun: Rerun, edits: Sequence[Edit], context: Context) -> np.ndarray | None:
    try:
        return found.pairing.torch_array(edited(rerun, changes(edits), context.graph))
    except FAILURES:
        return None
