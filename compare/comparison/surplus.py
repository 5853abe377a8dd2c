"""Finds out whether what one side alone has at a place is used: a padded part that is cut off later, as a rule."""

import itertools
from collections.abc import Sequence
from typing import Any

import numpy as np

from compare.alignment.pairings import Pairing
from compare.comparison.common_runs import CommonRuns
from compare.numerics.blocks import blocks
from compare.numerics.distance import distance
from compare.step.observation import Observation

Shape = tuple[int, ...]

NUDGE = 1e-3
"""How much a value is changed to see what depends on it."""

_TRIED = 16
"""The largest number of places at which torch's step is taken."""


def surplus(whole: np.ndarray, part: np.ndarray, limit: float) -> np.ndarray | None:
    """Return the mask of all that a larger array has besides a smaller one; None if it does not have that as a block.

    Args:
        whole: The larger array.
        part: An array with as many axes, none of them longer.
        limit: The relative distance up to which they are equal.

    """
    if not part.size:
        return None
    for block in blocks(whole.shape, part.shape):
        if distance(part, whole[block]) <= limit:
            return _besides(whole.shape, block)
    return None


def is_reduced(one: np.ndarray, other: np.ndarray, limit: float) -> bool:
    """Tell whether one of two arrays is the other's mean, sum, maximum or minimum over an axis, or an end of it.

    One side may reduce what the other has reduced already, as a mean over the embeddings of a bag.
    """
    large, small = (one, other) if one.ndim > other.ndim else (other, one)
    if large.ndim != small.ndim + 1 or not large.size:
        return False
    for axis in (axis for axis in range(large.ndim) if np.delete(large.shape, axis).tolist() == list(small.shape)):
        made = (reduce(large, axis=axis) for reduce in (np.mean, np.sum, np.max, np.min))
        parts = (np.take(large, at, axis) for at in (0, -1))
        if any(distance(each, small) <= limit for each in (*made, *parts)):
            return True
    return False


def cut_off(
    runs: CommonRuns, pairing: Pairing, number: int, shape: Shape, deciding: Sequence[Pairing], seen: Observation
) -> tuple[tuple[int, int], ...]:
    """Give how much of a module's output torch's step does not use, before and after, for each axis.

    Args:
        runs: Of the pair.
        pairing: The output.
        number: Of the step.
        shape: Of the output on the JAX side, in torch's layout: what torch uses is as large.
        deciding: What must stay as it is.
        seen: The step of the torch side.

    Returns:
        Nothing where torch uses all of it, or more than the JAX side has.

    """
    torch, jax = np.shape(pairing.torch_array(seen)), shape
    for block in blocks(torch, jax, _TRIED) if 0 not in jax else ():
        if torch_ignores(runs, pairing, number, _besides(torch, block), deciding, seen):
            return tuple((each.start, -(each.stop or 0)) for each in block)
    return ()


def _besides(shape: Shape, block: tuple[slice, ...]) -> np.ndarray:
    mask = np.ones(shape, bool)
    mask[block] = False
    return mask


def torch_ignores(
    runs: CommonRuns, pairing: Pairing, number: int, mask: np.ndarray, deciding: Sequence[Pairing], seen: Observation
) -> bool:
    """Tell whether torch's step is the same with other numbers in a part of what a module gives.

    Args:
        runs: Of the pair.
        pairing: An output of a module.
        number: Of the step.
        mask: Which part, in torch's layout.
        deciding: What must stay as it is.
        seen: The step of the torch side.

    """
    import torch

    assert pairing.ports is not None
    port, calls, found = pairing.ports[0], itertools.count(), list[bool]()
    if port.kind != "output":
        return False
    run = runs.torch_run("float64")
    stream = runs.stepper.whole(run)
    for _ in itertools.islice(stream, number):
        pass

    def nudged(_module: Any, _args: Any, output: Any) -> Any:
        if next(calls) != port.call or not isinstance(output, torch.Tensor):
            return output  # of several outputs, none is tried
        found.append(True)
        return output + NUDGE * torch.as_tensor(mask, dtype=output.dtype, device=output.device)

    run.model.get_submodule(port.path).register_forward_hook(nudged)
    other = next(stream)
    same = (np.array_equal(each.torch_array(other), each.torch_array(seen)) for each in deciding)
    return all(same) and bool(found)
