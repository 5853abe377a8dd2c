"""How many steps an optimizer and its schedule need to show themselves."""

import warnings

from compare.comparison.mapped_pair import MappedPair

LEAST = 3
"""At the first step an optimizer has no momentum, and its corrections for that are still large at the second."""

MOST = 32
"""How far ahead to look for a change of settings."""


def schedule_change(pair: MappedPair) -> int | None:
    """Give the first step, from 0, at which torch's settings are others than at the first; None within `MOST` steps.

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


def default_steps(pair: MappedPair, change: int | None) -> int:
    """Give how many steps to take where the user does not say."""
    batches = len(pair.batches)
    if pair.torch.optimizer is None:
        return batches
    return max(batches, LEAST, change + 1 if change else 0)
