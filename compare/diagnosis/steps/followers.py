"""Tensors that follow the weights: copied at other steps, or averaged after the update where torch does it before.

What the JAX side does is read from its own numbers, at all steps: no number is fitted.
"""

import contextlib
import weakref
from collections.abc import Iterator, Mapping, Sequence
from itertools import pairwise
from typing import Any

import numpy as np

from compare.diagnosis.steps.averages import decay_of, holds
from compare.diagnosis.steps.edit import Edit, Tensors
from compare.torch_side.program_run import TorchProgramRun

History = Sequence[Mapping[str, np.ndarray]]
"""The tensors of a side before the first step and after each, by torch's names, in torch's layout."""


def edits(name: str, torch: History, jax: History) -> Iterator[Edit]:
    """Give what the JAX side does with a tensor and all others of its root that follow the weights of one model.

    Args:
        name: Of the tensor that differs first.
        torch: The torch side's tensors.
        jax: The JAX side's; the same before the first step.

    """
    root, _, leaf = name.partition(".")
    for other in {each.partition(".")[0] for each in torch[0] if each.partition(".")[2] == leaf and each != name}:
        pairs = {
            f"{root}.{each}": f"{other}.{each}"
            for each in (full.partition(".")[2] for full in torch[0] if full.partition(".")[0] == root)
            if f"{other}.{each}" in torch[0] and torch[0][f"{other}.{each}"].shape == torch[0][f"{root}.{each}"].shape
        }
        if name in pairs:  # of the same shape
            yield from _copied(root, other, name, pairs, torch, jax)
            yield from _averaged(root, other, name, pairs, torch, jax)


def _copied(root: str, other: str, name: str, pairs: Mapping[str, str], torch: History, jax: History) -> Iterator[Edit]:
    ours, theirs = _steps_of_copies(torch, name, pairs[name]), _steps_of_copies(jax, name, pairs[name])
    if not ours or theirs is None or ours == theirs:
        return
    yield Edit(
        name="copied at other steps",
        explanation=f"torch copies {other} to {root} at {at_steps(ours)}, and the JAX side "
        + (f"at {at_steps(theirs)}" if theirs else "at none of these steps"),
        fix=f"copy it at the same steps: {where(ours, len(torch) - 1)}",
        after=_Copies(pairs, frozenset(theirs)),
    )


def _averaged(
    root: str, other: str, name: str, pairs: Mapping[str, str], torch: History, jax: History
) -> Iterator[Edit]:
    """Look for an average of the weights from before the update that is one of those from after it."""
    found = [decay_of(now[name], before[name], before[pairs[name]]) for before, now in pairwise(torch)]
    decays = [decay for decay in found if decay is not None]
    if not decays or not 0 < decays[0] < 1:
        return
    decay = float(f"{decays[0]:.9g}")
    if not all(holds(decay, now[name], before[name], before[pairs[name]]) for before, now in pairwise(torch)):
        return
    if not all(
        holds(decay, now[own], before[own], now[source])
        for own, source in pairs.items()
        for before, now in pairwise(jax)
    ):
        return
    late = _Late(pairs, decay)
    yield Edit(
        name="average after the update",
        explanation=f"torch updates {root} with the weights of {other} from before the optimizer's update, and "
        "the JAX step with those from after it",
        fix="update the average before the optimizer's update",
        during=late.restored,
        after=late,
    )


def _steps_of_copies(history: History, name: str, source: str) -> list[int] | None:
    """Give the steps after which a tensor equals another; None where it is neither that nor as it was before."""
    steps = []
    for number, (before, now) in enumerate(pairwise(history)):
        if np.array_equal(now[name], now[source]) and not np.array_equal(now[name], before[name]):
            steps.append(number)
        elif not np.array_equal(now[name], before[name]):
            return None
    return steps


def at_steps(steps: Sequence[int]) -> str:
    """Name steps."""
    return f"step{'s' if len(steps) > 1 else ''} {', '.join(map(str, steps))}"


def where(steps: Sequence[int], count: int) -> str:
    """Say which steps these are: by a number that divides their count, where there is one."""
    for period in range(1, count + 1):
        for offset in range(period):
            if len(steps) > 1 and list(range(offset, count, period)) == list(steps):
                if period == 1:
                    return "at every step"
                counted = "count" if offset == 0 else f"(count + {period - offset})"
                return f"where {counted} % {period} == 0, with a count from 0"
    return ", ".join(map(str, steps))


class _Copies:
    """Copies the weights at given steps alone."""

    def __init__(self, pairs: Mapping[str, str], steps: frozenset[int]) -> None:
        self.pairs, self.steps = pairs, steps
        self.done: weakref.WeakKeyDictionary[TorchProgramRun, int] = weakref.WeakKeyDictionary()
        """How many steps a run has taken."""

    def __call__(self, run: TorchProgramRun, before: Tensors) -> None:
        number = self.done.get(run, 0)
        self.done[run] = number + 1
        now = run.floating()
        for own, source in self.pairs.items():
            now[own].data.copy_(now[source].data if number in self.steps else before[own])


class _Late:
    """Shows averages as they are after the update that torch makes at the beginning of the next step."""

    def __init__(self, pairs: Mapping[str, str], decay: float) -> None:
        self.pairs, self.decay = pairs, decay
        self.kept: weakref.WeakKeyDictionary[TorchProgramRun, dict[str, Any]] = weakref.WeakKeyDictionary()
        """The values with which a run continues, instead of its own."""

    @contextlib.contextmanager
    def restored(self, run: TorchProgramRun) -> Iterator[None]:
        """Go on with the averages as torch's own step has left them."""
        now = run.floating()
        for name, value in self.kept.pop(run, {}).items():
            now[name].data.copy_(value)
        yield

    def __call__(self, run: TorchProgramRun, _: Tensors) -> None:
        now = run.floating()
        self.kept[run] = {own: now[own].detach().clone() for own in self.pairs}
        for own, source in self.pairs.items():
            now[own].data.mul_(self.decay).add_((1 - self.decay) * now[source].data)
