"""Edits of what a training step does with torch's own objects: zeroing, schedules, detaching.

None of them has a number that is fitted. Each is made for a whole run, from the first step on, and is a cause only if
every tensor then agrees up to the step at which the two sides first differed.
"""

import contextlib
from collections.abc import Iterator
from typing import Any
from unittest import mock

from compare.diagnosis.steps.edit import Edit
from compare.torch_side.program_run import TorchProgramRun

_SCHEDULES = "https://optax.readthedocs.io/en/latest/api/optimizer_schedules.html"


@contextlib.contextmanager
def _not_zeroed(run: TorchProgramRun) -> Iterator[None]:
    """Leave gradients where they are: those of the next step are added to them."""
    import torch

    with contextlib.ExitStack() as stack:
        # On the classes, as a step may call `zero_grad` of the model as well as of the optimizer, and a user's
        # optimizer may have its own.
        for cls in {torch.optim.Optimizer, torch.nn.Module, *map(type, run.optimizers.values())}:
            if "zero_grad" in vars(cls):
                stack.enter_context(mock.patch.object(cls, "zero_grad"))
        yield


@contextlib.contextmanager
def _not_detached(_: TorchProgramRun) -> Iterator[None]:
    import torch

    original = torch.Tensor.detach

    def detach(tensor: Any) -> Any:
        follows = torch.is_grad_enabled() and tensor.requires_grad and not tensor.is_leaf
        return tensor if follows else original(tensor)

    with mock.patch.object(torch.Tensor, "detach", detach):
        yield


@contextlib.contextmanager
def _updated_twice(run: TorchProgramRun) -> Iterator[None]:
    with contextlib.ExitStack() as stack:
        for optimizer in run.optimizers.values():
            original = optimizer.step

            def twice(*args: Any, original: Any = original, **kwargs: Any) -> Any:
                original(*args, **kwargs)
                return original(*args, **kwargs)

            stack.enter_context(mock.patch.object(optimizer, "step", twice))
        yield


def _counting(run: TorchProgramRun) -> list[Any]:
    """Return the schedulers that count steps: `ReduceLROnPlateau` is stepped with a value, and not by a count."""
    from torch.optim.lr_scheduler import ReduceLROnPlateau

    return [each for each in _schedulers(run) if not isinstance(each, ReduceLROnPlateau)]


def _schedulers(run: TorchProgramRun) -> list[Any]:
    from torch.optim.lr_scheduler import LRScheduler

    return list(run.state.parts(LRScheduler).values())


@contextlib.contextmanager
def _never_scheduled(run: TorchProgramRun) -> Iterator[None]:
    with contextlib.ExitStack() as stack:
        for scheduler in _schedulers(run):
            stack.enter_context(mock.patch.object(scheduler, "step"))
        yield


@contextlib.contextmanager
def _scheduled_ahead(run: TorchProgramRun) -> Iterator[None]:
    """Step each scheduler once before the first step of the run."""
    for scheduler in _counting(run) if not run.taken else ():
        scheduler.step()
    yield


@contextlib.contextmanager
def _scheduled_behind(run: TorchProgramRun) -> Iterator[None]:
    """Leave out the first step of each scheduler."""
    with contextlib.ExitStack() as stack:
        for scheduler in _schedulers(run):

            def later(*args: Any, scheduler: Any = scheduler, original: Any = scheduler.step, **kwargs: Any) -> None:
                if vars(scheduler).setdefault("netparity_behind", 0):
                    original(*args, **kwargs)
                vars(scheduler)["netparity_behind"] += 1

            stack.enter_context(mock.patch.object(scheduler, "step", later))
        yield


@contextlib.contextmanager
def _scheduled_at_each_update(run: TorchProgramRun) -> Iterator[None]:
    """Step each scheduler after each step of the program, and not where the user does."""
    steps = [scheduler.step for scheduler in _counting(run)]
    # The steps were bound before they are taken away, and are taken after the step: where the user's own would stand.
    with _never_scheduled(run):
        yield
    for step in steps:
        step()


NOT_DETACHED = Edit(
    name="stop_gradient",
    explanation="torch detaches a tensor, and the JAX step differentiates through it",
    fix="pass the tensor that torch detaches through jax.lax.stop_gradient",
    during=_not_detached,
    source="https://docs.jax.dev/en/latest/_autosummary/jax.lax.stop_gradient.html",
)
"""It does not say which tensor: where all gradients are seen, a search of the step's operations does."""

EDITS = (
    Edit(
        name="gradients not zeroed",
        explanation="torch zeroes the gradients in each step, and the JAX step adds them to those of the steps before",
        fix="use only the gradients of the current step",
        during=_not_zeroed,
    ),
    NOT_DETACHED,
    Edit(
        name="second update",
        explanation="the JAX step updates twice where torch updates once",
        fix="call the optimizer's update once for each of torch's optimizer.step()",
        during=_updated_twice,
    ),
    Edit(
        name="schedule",
        explanation="torch's schedule changes the learning rate, and the JAX step keeps its first value",
        fix="pass the optax optimizer the schedule instead of a number",
        during=_never_scheduled,
        source=_SCHEDULES,
    ),
    Edit(
        name="schedule one step ahead",
        explanation="the JAX step's learning rate is the one that torch has one step later",
        fix="the schedule must return the rate of torch's first step at count 0",
        during=_scheduled_ahead,
        source=_SCHEDULES,
    ),
    Edit(
        name="schedule one step behind",
        explanation="the JAX step's learning rate is the one that torch had one step earlier",
        fix="the schedule must return the rate of torch's step n, counted from 0, at count n",
        during=_scheduled_behind,
        source=_SCHEDULES,
    ),
    Edit(
        name="schedule per step",
        explanation="torch steps its schedule less often than every step, such as once per epoch, and the JAX "
        "side's schedule advances at each update",
        fix="count updates per epoch in the schedule: schedule(count // steps_per_epoch)",
        during=_scheduled_at_each_update,
        source=_SCHEDULES,
    ),
)
"""The edits that are tried for every program."""
