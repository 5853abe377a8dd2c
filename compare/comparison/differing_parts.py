"""Finds the parts of steps that differ by themselves: each part starts from the values that torch has there."""

import functools
from collections.abc import Callable, Collection, Sequence
from typing import NamedTuple

from compare.alignment.pairings import Pairing
from compare.comparison.common_runs import CommonRuns
from compare.comparison.from_torch import FromTorch, Repeated
from compare.comparison.lasting_places import LastingPlaces, port
from compare.comparison.module_order import Moved, moved
from compare.comparison.surplus import torch_ignores
from compare.step.observation import Observation
from compare.step.stage import Stage
from compare.verdict.first_difference import Found, StepDifferences
from compare.verdict.following import Followed


class Step(NamedTuple):
    """A step of both sides."""

    number: int
    torch: Observation
    again: Repeated
    """The same step of the JAX side, from the start of torch's."""


def _nothing(_different: Collection[int], _places: LastingPlaces) -> Sequence[Pairing]:
    return ()


class DifferingParts:
    """Lists what differs, step by step. What differs inside a model counts only if it lasts: see `verdict.lasting`.

    Args:
        runs: Of the pair.
        followed: What following both sides has found: torch's rounding.
        from_torch: The run of the JAX side that takes the steps.
        skipped: Tells what these steps do not show.
        made_up_for: Gives what the JAX side makes up for later, of what differs at a step.

    """

    def __init__(
        self,
        runs: CommonRuns,
        followed: Followed,
        from_torch: FromTorch,
        skipped: Callable[[Pairing], bool],
        made_up_for: Callable[[Collection[int], LastingPlaces], Sequence[Pairing]] = _nothing,
    ) -> None:
        self._followed, self._from_torch, self._made_up_for = followed, from_torch, made_up_for
        self._differences, self._carried = (
            StepDifferences(followed, lambda pairing: pairing.accepted or skipped(pairing)) for _ in range(2)
        )
        """What differs where all that uses a variable has torch's value, and where its modules alone have it."""
        self._ignores = functools.partial(torch_ignores, runs)
        self._kept: set[int] = set()
        self._undone: set[int] = set()
        self._tried: set[int] = set()
        """The places of which it is known whether what comes after them is to have torch's value."""
        self.moves: list[Moved] = []
        """Modules that the two sides run in another order."""

    def add(self, step: Step) -> Observation:
        """Take the next step, and give what the JAX side shows in it."""
        followed, differences, kept = self._followed, self._differences, self._kept
        shown = step.again(step.again.given)
        # New differences inside the model at this step: whether they last is found by experiment once, and then known.
        different = set(differences.at(step.torch, shown))
        inner = {n for n in different if not followed.pairings[n].decides} - self._undone
        places = LastingPlaces(followed, step.number, step.torch, step.again, sorted(inner), self._ignores)
        if not inner <= kept:
            lasting = places.found()
            kept |= set(lasting)
            if not inner <= kept:
                self._undone |= (inner - kept).union(places.carrying(lasting))
                # Where the JAX side corrects a difference later, torch's value would itself be wrong in that place.
                self._leave_out(step, [followed.pairings[n] for n in self._undone])
                shown = step.again(step.again.given)
            wrong = {n: followed.quantities[n].limit(step.number) for n in sorted(inner & kept)}
            self.moves += moved(followed.pairings, wrong, step.torch, shown, step.again)
            shown = step.again(step.again.given)
        if left_out := self._made_up_for(different, places):
            self._leave_out(step, left_out)
            shown = step.again(step.again.given)
        self._carried.add(step.torch, shown, kept)
        shown = self._alone(step, shown)
        differences.add(step.torch, shown, kept)
        return shown

    def _alone(self, step: Step, shown: Observation) -> Observation:
        """Let all that comes after a difference have torch's value of it, and give what the step then shows.

        In `x = x + layer(norm(x))` the norm takes torch's value, and the sum the JAX side's own: what differs before
        one block differs before each block that follows. A variable may also be the wrong one for a module, and right
        for what comes later. So this is done where it makes nothing differ that did not.
        """
        pairings, again = self._followed.pairings, step.again
        if self._from_torch.onward:
            again.given = again.given._replace(onward=frozenset(self._from_torch.onward))
            shown = again(again.given)
        untried = sorted(self._kept - self._tried)
        different = self._different(step, shown) if untried else set()
        for number in untried:
            if number not in different or not pairings[number].to_jax or number == max(different):
                continue
            self._tried.add(number)
            where = port(pairings[number])
            given = again.given._replace(onward={*again.given.onward, where})
            seen = again(given)
            if (left := self._different(step, seen)) <= different:
                self._from_torch.onward.add(where)
                again.given, shown, different = given, seen, left
            else:
                shown = again(again.given)  # the run goes on from the step that it has taken last
        return shown

    def _different(self, step: Step, shown: Observation) -> set[int]:
        return set(self._differences.at(step.torch, shown)) - self._undone

    def found(self, left_out: Sequence[Pairing] = ()) -> list[Found]:
        """Give what differs, each at the first step where it shows, in order of computation, but for some pairings."""
        alone = {each.divergence.number: each for each in self._differences.found()}
        carried = {each.divergence.number: each for each in self._carried.found()}
        found = [_both(alone.get(number), carried.get(number)) for number in sorted(alone.keys() | carried.keys())]
        return _first_of_other_shape([each for each in found if not any(each.pairing is one for one in left_out)])

    def _leave_out(self, step: Step, pairings: Sequence[Pairing]) -> None:
        """Start the rest of this step, and of later ones, from the JAX side's own values at some places."""
        left_out = self._from_torch.left_out
        left_out |= {port(each) for each in pairings}
        step.again.given = step.again.given._replace(used=step.again.given.ports.keys() - left_out)


def _both(alone: Found | None, carried: Found | None) -> Found:
    if alone is None:
        assert carried is not None
        return carried._replace(carried=carried.target, follows=True)
    if carried is None or carried.divergence.step != alone.divergence.step:
        return alone._replace(carried=alone.target)
    return alone._replace(carried=carried.target)


def _first_of_other_shape(found: Sequence[Found]) -> list[Found]:
    """Leave out what follows from a place of another shape, where torch's value cannot be put in."""
    other = [each for each in found if each.pairing.ports and each.pairing.to_jax is None]
    later = {id(each) for each in other[1:]}
    if any(each.pairing.ports[0][:3] == ("", 0, "output") for each in other if each.pairing.ports):
        later |= {id(each) for each in found if each.pairing.stage == Stage.LOSS}  # of the JAX side's own outputs
    return [each for each in found if id(each) not in later]
