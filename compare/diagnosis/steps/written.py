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
from compare.diagnosis.steps.edit import ALL, Edit
from compare.torch_side.program_run import TorchProgramRun
from compare.torch_side.rates import has_rate


def edits(run: TorchProgramRun, numbers: Collection[float], gradients: Collection[str]) -> Iterator[Edit]:
    """Yield an edit for each setting of an optimizer that steps several times, and for each number of the port's.

    Args:
        run: Torch's, after a step.
        numbers: What is written into the port's program.
        gradients: The names of those that torch's optimizers are given in a step: "fc1.weight#2" the second time.

    """
    several = {name.partition("#")[0] for name in gradients if "#" in name}
    for path, optimizer in run.optimizers.items():
        if not any(run.name_of(each) in several for group in optimizer.param_groups for each in group["params"]):
            continue
        kind = type(optimizer).__name__
        for name in ("lr", *numbers_of(optimizer.param_groups[0])):
            groups = [group for group in optimizer.param_groups if name != "lr" or has_rate(group)]
            present = {number_of(group, name, 0.0) for group in groups}
            scheduled = name == "lr" and any("initial_lr" in group for group in groups)
            if len(present) != 1 or scheduled or not groups:
                continue
            (now,) = present
            tried = sorted({abs(number) for number in numbers} - {now})
            for number in (each for each in tried if 0 < each < 1 or name not in _SHARES):
                yield Edit(
                    name=in_words(name),
                    explanation=f"{named(kind)} has {name}={now:g}, and the JAX side steps as torch would with "
                    f"{number:g}",
                    fix=_fix(kind, name, now),
                    agrees=ALL,
                    source=OPTIMIZERS,
                    during=functools.partial(_with_setting, path=path, name=name, number=number),
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
