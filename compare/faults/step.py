"""Faults of a program's step: what a loop leaves out or does twice, gradients and averages that are a little off."""

import dataclasses
from collections.abc import Iterator, Mapping
from typing import Any

from compare.diagnosis.steps.clippings import left_out
from compare.diagnosis.steps.library_calls import EDITS
from compare.faults.planted_run import SIZE, Fault, PlantedProgramRun
from compare.step.observation import Observation

_LEFT_OUT = ("clipping", "schedule")
"""Edits that leave out what they are named for."""


def of_step(run: PlantedProgramRun, seen: Observation) -> Iterator[Fault]:
    """List what can be wrong in a step, besides its functions and its optimizers.

    Args:
        run: A run that has not begun.
        seen: The first step.

    """
    from torch.optim.lr_scheduler import LRScheduler

    absent = ["stop_gradient"]  # each of torch's calls of detach is a fault of its own
    absent += [] if run.state.parts(LRScheduler) else [edit.name for edit in EDITS if edit.name.startswith("schedule")]
    absent += [] if seen.accumulated else ["clipping"]
    for edit in (*EDITS, dataclasses.replace(left_out(), name="clipping")):
        if edit.name in absent:
            continue

        def plant(run: PlantedProgramRun, _: float, edit: Any = edit) -> None:
            run.during.append(edit.during)

        what = f"{edit.name} left out" if edit.name in _LEFT_OUT else edit.name
        yield Fault(edit.name, what, "the step", plant, sized=False, unread="nothing in the step does that")
    for name in sorted(run.trained):
        yield Fault("gradient", f"gradient times {1 + SIZE:.7g}", name, _longer_gradient(name))
    for name in run.floating():
        if name not in run.trained:
            off = _other_state(name)
            yield Fault("state", f"change of the state times {1 + SIZE:.7g}", name, off, unread="no step changes it")


def _longer_gradient(name: str) -> Any:
    def plant(run: PlantedProgramRun, times: float) -> None:
        run.floating()[name].register_hook(lambda gradient: gradient * (1 + times * SIZE))

    return plant


def _other_state(name: str) -> Any:
    """Let a step change a tensor of the state, such as an average of weights, a little more than it does."""

    def plant(run: PlantedProgramRun, times: float) -> None:
        def after(run: Any, before: Mapping[str, Any]) -> None:
            tensor = run.floating().get(name)
            if tensor is not None and tensor.shape == before[name].shape:
                tensor.data.add_(times * SIZE * (tensor.data - before[name]))

        run.after.append(after)

    return plant
