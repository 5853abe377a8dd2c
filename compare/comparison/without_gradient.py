"""Finds out whether two sides differ because torch's optimizers leave out what has no gradient.

A layer of a branch that does not run has no gradient in torch: it is None, and the optimizer leaves the layer and its
moments as they are, and counts no step for it. In JAX the gradient is zero, and optax updates the layer by its moments.
"""

import copy
import itertools
from collections.abc import Callable, Sequence
from typing import Any

from compare.comparison.common_runs import CommonRuns
from compare.comparison.weighing import Weighing
from compare.diagnosis.optimizers.told_of_some import KEPT_WITHOUT_GRADIENT, WITHOUT_GRADIENT, left_out_at_some_steps
from compare.verdict.divergence import Cause
from compare.verdict.following import Followed


def left_out(runs: CommonRuns, followed: Followed, jax: Any) -> Cause | None:
    """Take all steps with gradients of zero in torch for those that are None; if both sides agree then, say so.

    Args:
        runs: Of both sides.
        followed: What following both sides has found.
        jax: A run of the JAX side in float64 that is compiled already.

    """
    run, jax = runs.torch_run("float64"), runs.again(copy.copy(jax))
    filled: dict[str, None] = {}
    for optimizer in run.optimizers.values():
        optimizer.register_step_pre_hook(_filling(run, filled))
    weighing = Weighing(followed)
    steps = zip(itertools.cycle(runs.pair.batches), runs.stepper.draws, runs.stepper.whole(run), strict=False)
    for batch, draws, torch in itertools.islice(steps, followed.steps):
        if any(True for _ in weighing.differing(torch, jax.step(batch, draws))):
            return None
    return _cause(list(filled), followed.steps) if filled else None


def _filling(run: Any, filled: dict[str, None]) -> Callable[..., None]:
    """Give the hook that gives an optimizer gradients of zero, and notes the names of their parameters."""

    def fill(optimizer: Any, args: Any, kwargs: Any) -> None:
        if any(map(callable, (*args[1:], *kwargs.values()))):
            return  # a closure, which has yet to compute them
        names = {id(parameter): name for name, parameter in run.parameters.items()}
        for parameter in (each for group in optimizer.param_groups for each in group["params"]):
            if parameter.grad is None and parameter.requires_grad:
                parameter.grad = parameter.detach() * 0
                filled[names.get(id(parameter), "a tensor without a name")] = None

    return fill


def _cause(names: Sequence[str], steps: int) -> Cause:
    over = f"all {steps} steps" if steps > 1 else "this step"
    return Cause(
        WITHOUT_GRADIENT,
        f"{WITHOUT_GRADIENT}: {left_out_at_some_steps(names)}. With gradients of zero in torch, both sides agree at "
        f"{over}",
        KEPT_WITHOUT_GRADIENT,
        "https://docs.pytorch.org/docs/stable/generated/torch.optim.Optimizer.zero_grad.html",
    )
