"""Experiments of the search for causes: steps of the torch side, run with changes."""

import dataclasses
import itertools
import warnings
from collections.abc import Container, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from compare.diagnosis.changes import Changed, combined, identity
from compare.diagnosis.counterfactuals import FUNCTIONS, Counterfactual, counterfactuals
from compare.diagnosis.nearby import nearby, otherwise
from compare.diagnosis.rewriting import Call, Repeatable, Rerun, Rewrite, Window
from compare.diagnosis.structure.edit import WHOLE
from compare.diagnosis.structure.edit import Kind as Structure
from compare.errors import InputError, Signal
from compare.numerics.distance import distance
from compare.numerics.relations import Relation
from compare.step.draws import Draw
from compare.step.observation import Observation, Port
from compare.step.stage import Stage
from compare.verdict.first_difference import Found

if TYPE_CHECKING:
    import torch


def rerun_at(found: Found, run: Repeatable, batch: Any, draws: Sequence[Draw]) -> Rerun:
    """Give the part of a step in which a divergence arises, to be run again as often as wanted."""
    part = run.without_update(loss=found.divergence.stage not in (Stage.FORWARD, Stage.BUFFERS))
    return Rerun(part, batch, draws, window_of(found), FUNCTIONS)


def whole_step(run: Repeatable, batch: Any, draws: Sequence[Draw]) -> Observation:
    """Give what torch's step shows without a change, with its loss and gradients."""
    return Rerun(run.without_update(), batch, draws, Window(), FUNCTIONS)({})


SLIGHTLY = 1e-6
"""The relative movement of what a call gives that a place shows."""

CLEARLY = 1e-4
"""A movement that a place shows in proportion, where its rounding hides a smaller one."""

PROPORTIONAL = 0.02
"""How near to 2 the quotient of two effects must be, of which one has twice the other's movement."""


class Experiment:
    """A step of the torch side that is run with changes, and what the JAX side gives there."""

    def __init__(self, found: Found, rerun: Rerun, target: np.ndarray) -> None:
        self.found, self.rerun, self.target = found, rerun, target

    def calls(self) -> list[Call]:
        """List the calls that may be changed: of a buffer, those of the module that has it."""
        calls = self.rerun.calls()
        if self.found.outside:  # what the modules before it give is right, but for those that it is in
            ports = self.found.pairing.ports
            path = f"{ports[0].path}." if ports else ""
            within = ["", *(call.module for call in calls if path.startswith(f"{call.module}."))]
            return [call if call.module in within else dataclasses.replace(call, name="") for call in calls]
        if self.found.divergence.stage == Stage.BUFFERS:
            path = self.found.pairing.torch.rpartition(".")[0]
            # A running mean is written by its own norm alone. The other calls keep their numbers, and without a
            # name no convention applies to them.
            return [call if call.module == path else dataclasses.replace(call, name="") for call in calls]
        return calls

    def candidates(self, numbers: Container[int] | None = None) -> list[Counterfactual]:
        """List what may be otherwise: in all calls, or in those of these numbers."""
        calls, gradient = self.calls(), self.found.divergence.stage == Stage.GRADIENT
        if numbers is not None:
            calls = [call if n in numbers else dataclasses.replace(call, name="") for n, call in enumerate(calls)]
        every = counterfactuals(calls, gradient=gradient)
        if gradient and not self.rerun.shows_values:
            every = itertools.chain(every, counterfactuals(calls, gradient=False))
        # BatchNorm with momentum=None gives all batches equal weight: its call takes another number at each step,
        # which no constant momentum reproduces.
        every = (each for each in every if each.name != "momentum" or not self.rerun.averages_all(each.call.module))
        return [each for each in every if each.name != Structure.STOPPED]  # which is proved by all gradients at once

    def determines(self, changed: Sequence[Changed]) -> bool:
        """Tell whether changes show at the place as numbers: what is only rounded or compared there is one of many."""
        if any(value is not None for _, value in changed):
            return self._apart(combined(otherwise(changed))) > 1
        # A norm writes its statistics and does not give them. Another rounding, or order, is no number itself.
        written = self.found.divergence.stage in (Stage.BUFFERS, Stage.STATE)
        if written or all(each.call.name in WHOLE for group, _ in changed for each in group):
            return True
        if self._moved(changed, SLIGHTLY) > 1:
            return True
        # In a large step, one number may move what the place has by less than rounding. What is rounded or compared
        # does not move in proportion.
        one, two = (self._moved(changed, by) for by in (CLEARLY, 2 * CLEARLY))
        return one > 1 and abs(two / one - 2) < PROPORTIONAL

    def _moved(self, changed: Sequence[Changed], by: float) -> float:
        return self._apart({number: nearby(each, by) for number, each in combined(changed).items()})

    def _apart(self, rewrites: Mapping[int, Rewrite]) -> float:
        """Give how far the step is from the JAX side, in limits; infinity where the rewrites do not apply."""
        given = self.observe(rewrites)
        return np.inf if given is None else distance(given, self.target) / self.found.limit

    def observe(self, rewrites: Mapping[int, Rewrite]) -> np.ndarray | None:
        """Run the step; None where a rewrite does not apply."""
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")  # of what is tried: the user's own program has warned already
                seen = self.found.pairing.torch_array(self.rerun(rewrites))
        except (Signal, InputError, KeyError):  # KeyError: the step no longer reaches the place
            return None
        return np.array(seen, np.float64)


class HeldOutExperiment(Experiment):
    """A held-out step. Its candidates are listed again, because they depend on its data, such as a mask."""

    def measure(self, hypothesis: Sequence[Changed] | Relation | None) -> float | None:
        """Give how far torch is from the JAX side with a hypothesis; None where it does not apply."""
        if isinstance(hypothesis, Relation):
            ours = self.observe({})
            try:
                # A factor or an order must be the same here; only which elements are masked may depend on the data.
                given = None if ours is None else hypothesis.again(ours, self.target).apply(ours)
            except (ValueError, IndexError):
                return None
        elif hypothesis is None:
            given = self.observe({})
        else:
            numbers = {each.number for group, _ in hypothesis for each in group}
            own = {identity(each): each for each in self.candidates(numbers)}
            # A hypothesis from another step refers to that step's calls. It is found again here by what it
            # changes and where, and keeps its fitted value: nothing is fitted at a held-out step.
            keys = [(identity(each), value) for group, value in hypothesis for each in group]
            if any(key not in own for key, _ in keys):
                return None
            given = self.observe(combined([([own[key]], value) for key, value in keys]))
        return None if given is None else distance(given, self.target)


def seen_with(
    rerun: Rerun, changed: Sequence[Changed], *, everywhere: bool = False
) -> "Mapping[Port, torch.Tensor] | None":
    """Give what modules take and give in the whole step with changes of its calls; None where there is no change.

    Args:
        rerun: A part of the step.
        changed: The changes, of calls in that part.
        everywhere: Whether to change all calls of the same lines in the same module, as in the other turns of a loop.

    """
    whole, rewrites = rerun.to_the_end(from_start=everywhere), combined(changed)
    try:
        if everywhere:
            lines = {_line(each.call): rewrites[each.number] for group, _ in changed for each in group}
            alike = ((number, lines.get(_line(call))) for number, call in enumerate(whole.calls()))
            rewrites = {number: rewrite for number, rewrite in alike if rewrite is not None}
        return whole(rewrites).forward if changed else None
    except (Signal, InputError):
        return None


def _line(call: Call) -> tuple[Any, ...]:
    return call.site, call.name, call.module


def window_of(found: Found) -> Window:
    """Give the part of the step in which a divergence arises."""
    stage = found.divergence.stage
    ports = found.pairing.ports
    if found.outside:
        return Window(None, ports and ports[0])
    if ports is not None:
        return Window(found.before.ports[0] if found.before and found.before.ports else None, ports[0])
    if stage == Stage.LOSS and found.before and found.before.ports:
        return Window(found.before.ports[0])
    return Window()
