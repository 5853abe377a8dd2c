"""Finds out whether what one side alone has at a place is used: a padded part that is cut off later, as a rule."""

import itertools
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np

from compare.alignment.pairings import Pairing
from compare.comparison.runs import Runs
from compare.numerics.distance import distance

Shape = tuple[int, ...]

NUDGE = 1e-3
"""How much a value is changed to see what depends on it."""

_PLACES = 256
"""The largest number of places at which a smaller array is looked for in a larger one."""

_TRIED = 16
"""The largest number of places at which torch's step is taken."""


def surplus(whole: np.ndarray, part: np.ndarray, limit: float) -> np.ndarray | None:
    """Return the mask of all that a larger array has besides a smaller one; None if it does not have that as a block.

    Args:
        whole: The larger array.
        part: An array with as many axes, none of them longer.
        limit: The relative distance up to which they are equal.

    """
    for block in _blocks(whole.shape, part.shape, _PLACES):
        if distance(part, whole[block]) <= limit:
            return _besides(whole.shape, block)
    return None


def is_reduced(one: np.ndarray, other: np.ndarray, limit: float) -> bool:
    """Tell whether one of two arrays is the other one's mean, sum, maximum or minimum over an axis, or its first part.

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
    runs: Runs, pairing: Pairing, number: int, shapes: tuple[Shape, Shape], deciding: Sequence[Pairing]
) -> tuple[tuple[int, int], ...]:
    """Give how much of a module's output torch's step does not use, before and after, for each axis.

    Args:
        runs: Of the pair.
        pairing: The output.
        number: Of the step.
        shapes: Of the output on the torch side, and, in torch's layout, on the JAX side: what torch uses is as large.
        deciding: What must stay as it is.

    Returns:
        Nothing where torch uses all of it, or more than the JAX side has.

    """
    torch, jax = shapes
    for block in _blocks(torch, jax, _TRIED):
        if torch_ignores(runs, pairing, number, _besides(torch, block), deciding):
            return tuple((each.start, size - each.stop) for each, size in zip(block, torch, strict=True))
    return ()


def _blocks(whole: Shape, part: Shape, most: int) -> Iterator[tuple[slice, ...]]:
    """Yield the blocks of a shape within a larger one; nothing where there are more than that."""
    if len(whole) != len(part) or 0 in part or whole == part:
        return
    spare = np.subtract(whole, part)
    if (spare < 0).any() or np.prod(spare + 1) > most:
        return
    for start in itertools.product(*(range(each + 1) for each in spare)):
        yield tuple(slice(first, first + size) for first, size in zip(start, part, strict=True))


def _besides(shape: Shape, block: tuple[slice, ...]) -> np.ndarray:
    mask = np.ones(shape, bool)
    mask[block] = False
    return mask


def torch_ignores(runs: Runs, pairing: Pairing, number: int, mask: np.ndarray, deciding: Sequence[Pairing]) -> bool:
    """Tell whether torch's step is the same with other numbers in a part of what a module gives.

    Args:
        runs: Of the pair.
        pairing: An output of a module.
        number: Of the step.
        mask: Which part, in torch's layout.
        deciding: What must stay as it is.

    """
    import torch

    assert pairing.ports is not None
    port, found = pairing.ports[0], list[bool]()
    if port.kind != "output":
        return False

    def step(nudge: float) -> list[np.ndarray]:
        run, calls = runs.torch_run("float64"), itertools.count()
        stream = runs.stepper.whole(run)
        for _ in itertools.islice(stream, number):
            pass

        def nudged(_module: Any, _args: Any, output: Any) -> Any:
            if next(calls) != port.call or not isinstance(output, torch.Tensor):
                return output  # of several outputs, none is tried
            found.append(True)
            return output + nudge * torch.as_tensor(mask, dtype=output.dtype, device=output.device)

        hook = run.model.get_submodule(port.path).register_forward_hook(nudged)
        seen = next(stream)
        hook.remove()
        return [np.array(each.torch_array(seen)) for each in deciding]

    return all(map(np.array_equal, step(0.0), step(NUDGE))) and bool(found)
