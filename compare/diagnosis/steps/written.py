"""Edits of optimizers' settings: torch has one number, and the port may have another that is written into its program.

Where a step updates its parameters several times, as the epochs of PPO do, the single updates are not seen, and no
number can be fitted to them. But the port's program contains the numbers that it has. Each is tried in place of each
setting: nothing is fitted, and everything that both sides compute from there on must agree.
"""

import contextlib
import functools
from collections.abc import Collection, Iterator, Mapping
from typing import Any
from unittest import mock

from compare.diagnosis.optimizers.names import ARGUMENTS, OPTIMIZERS, in_words, lacking, named, optimizer_call
from compare.diagnosis.optimizers.settings import number_of, numbers_of
from compare.diagnosis.steps import clippings
from compare.diagnosis.steps.clippings import others
from compare.diagnosis.steps.edit import ALL, Edit
from compare.diagnosis.steps.loops import Loop
from compare.torch_side.program_run import TorchProgramRun
from compare.torch_side.rates import has_rate


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
            yield Edit(
                name=in_words(name),
                explanation=f"{named(kind)} has {name}={now:g}, and the JAX side steps as torch would with {number:g}",
                fix=_fix(kind, name, now),
                agrees=ALL,
                source=OPTIMIZERS,
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


def _fix(kind: str, name: str, value: float) -> str:
    argument = ARGUMENTS.get(kind, {}).get(name)
    return str(optimizer_call(kind, {argument: value})) if argument else lacking(kind, name, f"{value:g}")


@contextlib.contextmanager
def _with_setting(run: TorchProgramRun, path: str, name: str, number: float) -> Iterator[None]:
    """Give a setting of an optimizer another number for one step."""
    with contextlib.ExitStack() as stack:
        for group in run.optimizers[path].param_groups:
            stack.enter_context(mock.patch.dict(group, _changed(group, name, number)))
        yield


def _changed(group: Mapping[str, Any], name: str, number: float) -> dict[str, Any]:
    key, _, place = name.partition("[")
    if not place:
        return {key: number}
    at = int(place.rstrip("]"))
    return {key: tuple(number if each == at else value for each, value in enumerate(group[key]))}
