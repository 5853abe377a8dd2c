"""Edits of optimizers' settings: torch has one number, and the port may have another that is written into its program.

Where a step updates its parameters several times, as the epochs of PPO do, the single updates are not seen, and no
number can be fitted to them. But the port's program contains the numbers that it has. Each is tried in place of each
setting: nothing is fitted, and everything that both sides compute from there on must agree.
"""

import contextlib
import functools
from collections.abc import Collection, Iterator
from typing import Any
from unittest import mock

from compare.diagnosis.optimizers.explain import fixes_of
from compare.diagnosis.optimizers.settings import number_of, numbers_of, told_setting
from compare.diagnosis.optimizers.trial import set_setting
from compare.diagnosis.steps import clippings
from compare.diagnosis.steps.clippings import others
from compare.diagnosis.steps.edit import ALL, Edit
from compare.diagnosis.steps.loops import Loop
from compare.torch_side.program_run import TorchProgramRun
from compare.torch_side.rates import has_rate, rate_of


def edits(run: TorchProgramRun, numbers: Collection[float], gradients: Collection[str], loop: Loop) -> Iterator[Edit]:
    """Yield an edit for each setting of an optimizer that steps several times, and for each number of the port's.

    Args:
        run: Torch's, after a step.
        numbers: What is written into the port's program.
        gradients: The names of those that torch's optimizers are given in a step: "fc1.weight#2" the second time.
        loop: What the step does.

    """
    several = {name.partition("#")[0] for name in gradients if "#" in name}
    found = [
        edit
        for path, optimizer in run.optimizers.items()
        if any(run.name_of(each) in several for group in optimizer.param_groups for each in group["params"])
        for edit in _of_optimizer(path, optimizer, numbers)
    ]
    yield from found
    if found and loop.clipping is not None:
        yield from clippings.to_other_norms(*loop.clipping, numbers)
        # Most ports also clip as optax does. Neither change alone makes the two sides agree.
        alike = [each for each in clippings.edits(*loop.clipping) if each.name == clippings.EXACT]
        yield from (_both(edit, other) for other in alike for edit in found)


def _of_optimizer(path: str, optimizer: Any, numbers: Collection[float]) -> Iterator[Edit]:
    kind = type(optimizer).__name__
    for name in ("lr", *numbers_of(optimizer.param_groups[0])):
        groups = [group for group in optimizer.param_groups if name != "lr" or has_rate(group)]
        present = {number_of(group, name, 0.0) for group in groups}
        scheduled = name == "lr" and any("initial_lr" in group for group in groups)
        if len(present) != 1 or scheduled:
            continue
        (now,) = present
        without = [0.0] if now and name in ("momentum", "weight_decay") else []
        for number in (*without, *(each for each in others(numbers, now) if each < 1 or name not in _SHARES)):
            told = told_setting(kind, name, groups[0], number, rate_of(groups[0]))
            yield Edit(
                name=told.name,
                explanation=told.says,
                fix="; ".join(map(str, fixes_of(kind, [told]))),
                agrees=ALL,
                source=told.source,
                during=functools.partial(_with_setting, path=path, name=name, number=number),
            )


def _both(one: Edit, other: Edit) -> Edit:
    """Join two edits, neither of which has fitted numbers."""

    @contextlib.contextmanager
    def during(run: TorchProgramRun) -> Iterator[None]:
        with one.during(run), other.during(run):
            yield

    return Edit(
        name=f"{one.name} and {other.name}",
        explanation=f"{one.explanation}; {other.explanation}",
        fix=f"{one.fix}; and {other.fix}",
        agrees=ALL,
        source=one.source,
        during=during,
    )


_SHARES = ("betas[0]", "betas[1]", "alpha", "rho", "momentum")
"""Settings that are below 1."""


@contextlib.contextmanager
def _with_setting(run: TorchProgramRun, path: str, name: str, number: float) -> Iterator[None]:
    """Give a setting of an optimizer another number for one step."""
    with contextlib.ExitStack() as stack:
        for group in run.optimizers[path].param_groups:
            stack.enter_context(mock.patch.dict(group))  # as it is now, when the step is done
            set_setting(group, name, number)
        yield
