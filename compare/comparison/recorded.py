"""Searches the JAX side's program for constants that are torch's weights, outputs, gradients or updates."""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np

from compare.comparison.elsewhere import scattered
from compare.comparison.second_answers import DOCS
from compare.errors import InputError
from compare.jax_side.reading import arrays
from compare.step.draws import Draw
from compare.step.observation import Observation, to_numpy
from compare.torch_side.control import ControlledRun
from compare.verdict.divergence import Cause

_SAMPLE = 8
"""Elements that are looked for first: most arrays have none of another's."""


def recorded(pair: Any, program: Any, draws: Sequence[Draw]) -> str:
    """Say which constant of the JAX side's program is torch's weight, output, gradient or update; nothing if none is.

    Args:
        pair: Both sides, models or programs.
        program: The JAX side's, as it was traced in float32.
        draws: The random numbers of the first step.

    """
    held = [array for array in arrays(program) if _telling(array)]
    if not held:
        return ""
    for name, value in _numbers(pair, draws).items():
        for array in held:
            if array.size >= value.size and _telling(value) and _contains(array, value):
                return f"a constant of shape {array.shape} in the JAX side's program contains torch's {name}"
    return ""


def numbers_of_torch(held: str) -> list[Cause]:
    """Make a cause of what `recorded` says, where nothing else shows that the port computes its numbers."""
    advice = "compute it from the program's weights and inputs"
    return [Cause("the JAX side's program contains torch's numbers", held, advice, DOCS)] if held else []


def _numbers(pair: Any, draws: Sequence[Draw]) -> dict[str, np.ndarray]:
    """Return torch's weights, and what its first step shows and changes with them."""
    run = pair.torch_run("float32")
    given: Mapping[str, np.ndarray] = run.arrays()
    weights = {link.torch for link in pair.links if link.torch in given and pair.movable(link.torch)}
    with ControlledRun(replay=draws):
        seen = dict(_shown(run.step(pair.batches[0])))
    # What is the same with other weights is a table, such as positions: both sides compute it, or have it.
    other = pair.torch_run("float32")
    other.load(scattered(given, weights, near=True))
    try:
        with ControlledRun(replay=draws):
            elsewhere = dict(_shown(other.step(pair.batches[0])))
    except InputError:
        return {}
    found = {n: value for n, value in seen.items() if n in elsewhere and not np.array_equal(value, elsewhere[n])}
    return {name: np.asarray(given[name]) for name in weights if name in run.parameters} | found


def _shown(seen: Observation) -> Iterator[tuple[str, np.ndarray]]:
    for port, value in seen.forward.items():
        if port.kind == "output":
            yield str(port), np.array(to_numpy(value))
    for what in ("gradients", "updates"):
        for name, value in getattr(seen, what).items():
            yield f"{what.removesuffix('s')} of {name}", np.array(to_numpy(value))


def _telling(array: np.ndarray) -> bool:
    """Return whether an array's numbers could not be another's by accident."""
    return array.size > 1 and bool(np.isfinite(array).all()) and len(np.unique(np.abs(array))) > 2


def _contains(array: np.ndarray, value: np.ndarray) -> bool:
    """Return whether all of an array's numbers are among those of another, in any layout."""
    kept, sought = array.astype(np.float32), value.astype(np.float32).ravel()
    return bool(np.isin(sought[:_SAMPLE], kept).all() and np.isin(sought, kept).all())
