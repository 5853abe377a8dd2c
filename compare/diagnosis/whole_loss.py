"""Whether a call is torch's whole loss: a function of the model's output and the target, and of nothing else.

Only then may the JAX side's loss be written anew as that function. Where it is one term of several, or takes a part of
the output, or is weighted or scaled afterwards, the rest of the port's loss would be lost.
"""

from typing import Any

import numpy as np

from compare.diagnosis.conventions.base import LOSSES
from compare.diagnosis.rewriting import Call, Rerun
from compare.errors import InputError, Signal
from compare.step.observation import to_numpy


def is_term(rerun: Rerun, call: Call) -> bool:
    """Tell whether a call is of a loss, and is not the whole loss."""
    return call.name in LOSSES and not _is_whole(rerun, call)


def _is_whole(rerun: Rerun, call: Call) -> bool:
    """Tell whether a call takes the model's only output and the target as they are, and gives the loss as it is."""
    try:
        seen, loss = rerun.to_the_end()({}), call.run()
    except (Signal, InputError):
        return False
    outputs = [each for port, each in seen.forward.items() if (port.path, port.kind) == ("", "output")]
    taken, target, *_ = call.arguments.values()
    # The numbers decide: whatever a program does between, it has done nothing if all three are what they were.
    return (
        len(outputs) == 1
        and seen.loss is not None
        and _same(taken, outputs[0])
        and _same(target, rerun.batch.target)
        and _same(loss, seen.loss)
    )


def _same(one: Any, other: Any) -> bool:
    if not hasattr(one, "shape") or not hasattr(other, "shape"):  # such as a tuple of a teacher's output and labels
        return False
    a, b = np.asarray(to_numpy(one), np.float64), np.asarray(to_numpy(other), np.float64)
    return a.shape == b.shape and bool(np.allclose(a, b, rtol=1e-6, atol=0, equal_nan=True))
