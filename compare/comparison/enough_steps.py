"""Computes the number of steps that are needed to compare an optimizer and its schedule."""

import itertools
import warnings

from compare.comparison.model_pair import ModelPair
from compare.comparison.program_pair import ProgramPair
from compare.comparison.steps import Stepper
from compare.step.observation import to_numpy

LEAST = 3
"""At the first step an optimizer has no momentum, and its corrections for that are still large at the second."""

MOST = 32
"""How far ahead to look for a change of settings."""


def schedule_change(pair: ModelPair) -> int | None:
    """Return the first step, from 0, at which torch's settings are not those of the first; None if within `MOST` steps.

    Without gradients, a step of the optimizer updates nothing, and is one of the schedule alone.
    """
    run = pair.torch_run("float32")
    if run.optimizer is None:
        return None
    # Not the parameters: the settings of all groups, without their tensors.
    before = _settings(run.optimizer)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        for step in range(1, MOST):
            try:
                run.optimizer.step()
            except Exception:  # noqa: BLE001 - of the user's own hooks, which may need gradients: then it is not known
                return None
            if _settings(run.optimizer) != before:
                return step
    return None


def _settings(optimizer: object) -> str:
    groups = getattr(optimizer, "param_groups", [])
    return repr([{key: value for key, value in group.items() if key != "params"} for group in groups])


def default_steps(pair: ModelPair, change: int | None) -> int:
    """Return how many steps to take where the user does not say."""
    batches = len(pair.batches)
    if pair.torch.optimizer is None:
        return batches
    return max(batches, LEAST, change + 1 if change else 0, _until_rectified(pair.torch_run("float32").optimizer))


def program_steps(pair: ProgramPair) -> int:
    """Return how many steps of a program to take where the user does not say: two of its optimizers', at least.

    A step that accumulates gradients updates nothing at first. What an optimizer remembers shows at its second update.
    """
    least, run = max(len(pair.batches), LEAST), pair.torch_run("float32")
    if run.optimizers:
        steps = itertools.islice(Stepper(pair.batches, pair.size).whole(run), MOST // 2)
        for number, seen in enumerate(steps):
            if any(to_numpy(update).any() for update in seen.updates.values()):
                return max(least, 2 * (number + 1))
    return least


def _until_rectified(optimizer: object) -> int:
    """Return the number of steps until RAdam divides by its variance; 0 for any other optimizer."""
    if type(optimizer).__name__ != "RAdam":
        return 0
    betas = [float(group["betas"][1]) for group in getattr(optimizer, "param_groups", [])]
    return max((_rectified(beta) for beta in betas if 0 < beta < 1), default=0)


def _rectified(beta: float) -> int:
    # The length of the average at step t, rho_t = rho - 2 t b^t / (1 - b^t) with rho = 2 / (1 - b) - 1, has to exceed
    # 5. Before that a step is momentum alone, and optax's, which divides from another length on, may look like it.
    steps = range(1, MOST)
    lengths = (2 / (1 - beta) - 1 - 2 * step * beta**step / (1 - beta**step) for step in steps)
    return next((step for step, length in zip(steps, lengths, strict=True) if length > 5), 0)
