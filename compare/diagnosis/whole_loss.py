"""Finds out whether a call is torch's whole loss: a function of the model's output and the target only.

Only then may the JAX side's loss be written anew as that function. Where it is one term of several, or takes a part of
the output, or is weighted or scaled afterwards, the rest of the port's loss would be lost.
"""

import math
from typing import Any

import numpy as np

from compare.diagnosis.conventions.base import LOSSES
from compare.diagnosis.rewriting import Call, Rerun
from compare.errors import InputError, Signal
from compare.step.observation import to_numpy


def is_term(rerun: Rerun, call: Call) -> bool:
    """Return whether a call is of a loss, and is not the whole loss."""
    return call.name in LOSSES and not _is_whole(rerun, call)


def _is_whole(rerun: Rerun, call: Call) -> bool:
    """Return whether a call takes the model's only output and the target as they are, and gives the loss as it is."""
    try:
        seen, loss = rerun.to_the_end()({}), call.run()
    except (Signal, InputError):
        return False
    outputs = [each for port, each in seen.forward.items() if (port.path, port.kind) == ("", "output")]
    taken, target, *_ = call.arguments.values()
    if len(outputs) != 1 or seen.loss is None or _merged(loss, seen.loss) != ():
        return False
    # The numbers decide: whatever a program does between, it has done nothing if all three are what they were. Examples
    # and positions may be one axis, as cross entropy takes them, if they are so in the output and in the target.
    merged = _merged(taken, outputs[0])
    return merged is not None and merged == _merged(target, rerun.batch.target)


def _merged(one: Any, other: Any) -> tuple[int, ...] | None:
    """Return the first axes of `other` that are joined in `one`, () if none are; None if the numbers differ."""
    if not hasattr(one, "shape") or not hasattr(other, "shape"):  # such as a tuple of a teacher's output and labels
        return None
    a, b = np.asarray(to_numpy(one), np.float64), np.asarray(to_numpy(other), np.float64)
    first = b.shape[: b.ndim - a.ndim + 1] if a.ndim < b.ndim else ()
    if a.shape != ((math.prod(first), *b.shape[len(first) :]) if first else b.shape):
        return None
    return first if np.allclose(a.ravel(), b.ravel(), rtol=1e-6, atol=0, equal_nan=True) else None
