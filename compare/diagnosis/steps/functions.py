"""Edits of the functions of torch that a step calls: the settings, variants and constants that a model's search knows.

Calls are those of the user's step, and neither of its optimizers nor of what watches it.
"""

import contextlib
import functools
import sys
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from types import FrameType
from typing import Any

import numpy as np

from compare.diagnosis.changes import in_words, together
from compare.diagnosis.conventions.settings import CONSTANT
from compare.diagnosis.counterfactuals import FUNCTIONS, Counterfactual, counterfactuals
from compare.diagnosis.place import Place
from compare.diagnosis.rewriting import Call, Rewrite, Window, rewriting
from compare.diagnosis.steps.edit import Edit
from compare.numerics.distance import distance
from compare.numerics.fitting import fitted
from compare.step.user_code import of_a_library
from compare.torch_side.program_run import TorchProgramRun
from compare.verdict.fix import written

_Site = tuple[str, int]
"""A function, and which call of it within the step."""


class Calls:
    """The calls of a step, in order of execution."""

    def __init__(self) -> None:
        self.calls: list[Call] = []
        self.sites: list[_Site] = []
        self.users: list[bool] = []
        """Whether the user's code makes each."""

    def clear(self) -> None:
        """Forget the calls of another step."""
        self.calls, self.sites, self.users = [], [], []

    def listing(self, run: TorchProgramRun) -> contextlib.AbstractContextManager[Any]:
        """List the calls of the step that runs while this lasts."""
        self.clear()

        def listed(call: Call, site: _Site) -> Any:
            self.calls.append(call)
            self.sites.append(site)
            self.users.append(is_users(sys._getframe(1)))
            return call.run()

        return _observing(run, listed)


def edits(
    calls: Calls,
    observe: Callable[[Edit], np.ndarray | None],
    target: np.ndarray,
    near: float,
    gradients: Sequence[bool],
) -> Iterator[Edit]:
    """Give what may be otherwise in the calls of a step.

    Args:
        calls: Those of the step at which the two sides first differ.
        observe: Gives what torch has at the place of the difference with an edit; None where it cannot be made.
        target: What the JAX side has there.
        near: The distance that rounding explains.
        gradients: Whether to list what shows in values, and what shows in gradients alone.

    """
    for gradient in gradients:
        listed = counterfactuals(calls.calls, gradient=gradient)
        candidates = [each for each in listed if calls.users[each.number]]
        for group in (*together(candidates), *([each] for each in candidates)):
            if group[0].of is None:
                yield _edit(calls, group, None)
            elif (value := _fitted(calls, group, observe, target, near)) is not None:
                yield _edit(calls, group, value)


def _fitted(
    calls: Calls,
    group: Sequence[Counterfactual],
    observe: Callable[[Edit], np.ndarray | None],
    target: np.ndarray,
    near: float,
) -> float | None:
    """Find the value of a setting with which torch gives what the JAX side has; None if there is none."""
    first = group[0]
    assert first.value is not None

    def apart(given: np.ndarray | None) -> float:
        return np.inf if given is None or given.shape != target.shape else distance(given, target) / near

    left, value = fitted(first.value, lambda number: observe(_edit(calls, group, number)), target, apart)
    # What a user writes is a short number, and many constants could be fitted to any difference.
    long = first.name == CONSTANT and abs(float(f"{value:.4g}") - value) > 1e-9 * abs(value)
    return None if left > 1 or long or value == first.value else value


def _edit(calls: Calls, group: Sequence[Counterfactual], value: float | None) -> Edit:
    first = group[0]
    rewrites = {
        calls.sites[each.number]: each.rewrite if each.of is None or value is None else each.of(value) for each in group
    }
    fix = first.fix(first.call, Place())
    return Edit(
        name=first.name,
        explanation=in_words(first, value),
        fix=fix if isinstance(fix, str) else written(fix) if fix else "",
        agrees=2,
        during=functools.partial(_rewritten, rewrites=rewrites),
        free=int(value is not None),
        source=first.source,
    )


def _rewritten(run: TorchProgramRun, rewrites: Mapping[_Site, Rewrite]) -> contextlib.AbstractContextManager[Any]:
    return _observing(run, lambda call, site: rewrites.get(site, Call.run)(call))


def _observing(run: TorchProgramRun, give: Callable[[Call, _Site], Any]) -> contextlib.AbstractContextManager[Any]:
    counts: Counter[str] = Counter()

    def rewrite(call: Call) -> Any:
        site = call.name, counts[call.name]
        counts[call.name] += 1
        return give(call, site)

    return rewriting(Window(), run.overwritten, lambda _: rewrite, FUNCTIONS)


def is_users(frame: FrameType | None) -> bool:
    """Tell whether a call of torch comes from the user's code: not from an optimizer, nor from what watches a step."""
    while frame := frame.f_back if frame else None:
        file = Path(frame.f_code.co_filename)
        if "optim" in file.parts or (file.parent.name == "torch_side" and "compare" in file.parts):
            return False
        if not of_a_library(str(file)):
            return True
    return False
