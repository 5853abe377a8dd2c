"""Finds draws of the torch side that have no effect, such as noise that is multiplied by 0."""

from collections.abc import Callable, Collection, Sequence

import numpy as np

from compare.step.batch import Batch
from compare.step.draws import Draw
from compare.step.observation import Observation, to_numpy
from compare.torch_side.control import ControlledRun
from compare.torch_side.run import TorchRun

_SEEDS = 2
"""How often they are drawn again: a boolean may be the same by accident."""


def change_nothing(start: Callable[[], TorchRun], batch: Batch, draws: Sequence[Draw], alone: Collection[int]) -> bool:
    """Return whether a step shows the same whatever some of its draws give.

    Args:
        start: Starts a run.
        batch: The step's.
        draws: What the step drew.
        alone: The numbers of the draws in question.

    """
    import torch

    shown = []
    with torch.random.fork_rng():
        for seed in range(_SEEDS + 1):
            torch.manual_seed(seed)
            with ControlledRun(replay=draws, anew=alone):
                shown.append(_numbers(start().step(batch)))
    first, *others = shown
    return all(
        one.keys() == first.keys() and all(np.array_equal(one[key], first[key], equal_nan=True) for key in first)
        for one in others
    )


def _numbers(seen: Observation) -> dict[str, np.ndarray]:
    """Return what a step computes from all that it draws: its outputs, its loss and its gradients."""
    last = {str(port): value for port, value in seen.forward.items() if port.path == "" and port.kind == "output"}
    loss = {} if seen.loss is None else {"loss": seen.loss}
    gradients = {f"gradient of {name}": value for name, value in seen.gradients.items()}
    return {name: np.array(to_numpy(value)) for name, value in (last | loss | gradients).items()}
