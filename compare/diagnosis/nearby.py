"""Changes that are nearly those that fit: what fits as well is not determined."""

from collections.abc import Sequence
from typing import Any

import numpy as np

from compare.diagnosis.changes import Changed
from compare.diagnosis.rewriting import Call, Rewrite
from compare.errors import NotApplicable

NEARBY = 1e-3
"""The relative change of a fitted number that must show."""


def nearby(rewrite: Rewrite, by: float) -> Rewrite:
    """Move each number that a rewrite gives by a random part of itself.

    This does not apply to a call that gives integers or booleans, only zeros, or its result in place.

    Args:
        rewrite: A rewrite of one call.
        by: The largest relative movement.

    """

    def moved(tensor: Any) -> Any:
        import torch

        if not isinstance(tensor, torch.Tensor):
            return tensor
        if not tensor.is_floating_point() or not tensor.any():
            raise NotApplicable("no real numbers")
        noise = np.random.default_rng(0).uniform(-1, 1, tuple(tensor.shape))
        return tensor * (1 + by * torch.as_tensor(noise, dtype=tensor.dtype, device=tensor.device))

    def run(call: Call) -> Any:
        if call.in_place:
            raise NotApplicable(f"{call.name} is in place")
        given = rewrite(call)
        return type(given)(map(moved, given)) if isinstance(given, tuple | list) else moved(given)

    return run


def otherwise(changed: Sequence[Changed]) -> list[Changed]:
    """Give changes with other values in place of those that were fitted."""
    made: list[Changed] = []
    for group, value in changed:
        # Of a number that is fitted to 0, such as no smoothing, torch's own gives the scale.
        size = max(abs(value or 0.0), abs(group[0].value or 0.0))
        made.append((group, None if value is None else value + NEARBY * size))
    return made
