"""Finds independent differences: every part of every step starts from the torch side's values."""

import functools
from collections.abc import Collection, Iterator, Sequence
from typing import NamedTuple

from compare.alignment.optimizer_state import jax_state
from compare.alignment.pairings import Pairing
from compare.comparison.from_torch import FromTorch, Repeated
from compare.comparison.lasting_places import LastingPlaces, port
from compare.comparison.module_order import Moved, merged, moved
from compare.comparison.runs import Runs
from compare.comparison.surplus import torch_ignores
from compare.diagnosis.optimizers.evidence import Evidence, Recorder
from compare.step.observation import Observation
from compare.step.stage import Stage
from compare.torch_side.run import TorchRun
from compare.verdict.first_difference import Found, StepDifferences
from compare.verdict.following import Followed

_FOLLOWING = (Stage.GRADIENT, Stage.PARAMETERS)
"""What follows from values that these steps are given."""


class Independent(NamedTuple):
    """What steps show in which every part starts from what torch has there."""

    found: Sequence[Found] = ()
    """The independent differences."""
    evidence: Evidence | None = None
    """What each step gave the two optimizers and what both made of it."""
    made_up_for: Sequence[Pairing] = ()
    """The outputs of the model that differ, and that the JAX side's loss makes up for."""
    may_be_made_up_for: Sequence[Pairing] = ()
    """Those that differ beside the loss, which is wrong whether it takes torch's outputs or the JAX side's own."""


def independent(
    runs: Runs, followed: Followed, from_torch: FromTorch, made_up_for: Sequence[Pairing] = ()
) -> Independent:
    """List all independent differences, each at the first step where it shows, in order of computation.

    What differs inside the model is listed only if it lasts: see `compare.verdict.lasting`. Of the outputs
    `made_up_for` the JAX side's loss takes its own.
    """
    from_torch.left_out |= {port(each) for each in made_up_for}
    outputs = _Outputs(runs, followed.pairings, made_up_for)
    differences = StepDifferences(followed, lambda pairing: pairing.accepted or pairing.stage in _FOLLOWING)
    kept: set[int] = set()
    undone: set[int] = set()
    moves: list[Moved] = []
    torch = runs.torch_run("float64")
    recorder = Recorder(torch, list(zip(followed.pairings, followed.quantities, strict=True)), followed.steps)
    for step in _steps(runs, followed, from_torch, torch):
        shown = step.again(step.again.given)
        # New differences inside the model at this step: whether they last is found by experiment once, and
        # then known.
        different = set(differences.at(step.torch, shown))
        inner = {n for n in different if not followed.pairings[n].decides} - undone
        ignores = functools.partial(torch_ignores, runs)
        places = LastingPlaces(followed, step.number, step.torch, step.again, sorted(inner), ignores)
        if not inner <= kept:
            lasting = places.found()
            kept |= set(lasting)
            if not inner <= kept:
                undone |= (inner - kept).union(places.carrying(lasting))
                # Where the JAX side corrects a difference later, torch's value would itself be wrong in that place.
                _leave_out(step, from_torch, [followed.pairings[n] for n in undone])
                shown = step.again(step.again.given)
            wrong = {n: followed.quantities[n].limit(step.number) for n in sorted(inner & kept)}
            moves += moved(followed.pairings, wrong, step.torch, shown, step.again)
            shown = step.again(step.again.given)
        if left_out := outputs.made_up_for(different, places):
            _leave_out(step, from_torch, left_out)
            shown = step.again(step.again.given)
        differences.add(step.torch, shown, kept)
        recorder.add(step.torch, shown)
    undone_outputs = outputs.undone
    found = [each for each in differences.found() if not any(each.pairing is other for other in undone_outputs)]
    found = _first_of_other_shape(found)
    # An optimizer's difference shows in every parameter: one of them is enough.
    updates = [each for each in found if each.pairing.stage == Stage.UPDATE]
    alone = [each for each in found if each.pairing.stage != Stage.UPDATE or each is updates[0]]
    return Independent(merged(alone, moves), recorder.evidence, undone_outputs, outputs.doubtful)


def _leave_out(step: "_Step", from_torch: FromTorch, pairings: Sequence[Pairing]) -> None:
    """Start the rest of this step, and of later ones, from the JAX side's own values at some places."""
    from_torch.left_out |= {port(each) for each in pairings}
    step.again.given = step.again.given._replace(used=step.again.given.ports.keys() - from_torch.left_out)


class _Outputs:
    """Tells which of the model's outputs that differ the JAX side's loss makes up for, at all steps.

    Args:
        runs: Of the pair.
        pairings: Of all quantities.
        given: Those of which it is known.

    """

    def __init__(self, runs: Runs, pairings: Sequence[Pairing], given: Sequence[Pairing]) -> None:
        self._runs, self._pairings = runs, pairings
        self._given = {number for number, each in enumerate(pairings) if any(each is other for other in given)}
        self._undone, self._last, self._doubtful = set(self._given), set[int](), set[int]()

    def made_up_for(self, different: Collection[int], places: LastingPlaces) -> list[Pairing]:
        """Give the outputs among what differs at a step that the loss makes up for there."""
        outputs = {number for number in different if self._is_read(self._pairings[number])} - self._given
        if not outputs or outputs <= self._last:
            return []
        known = places.made_up_for(outputs)
        if known:
            self._undone |= outputs
            return [self._pairings[number] for number in outputs]
        self._last |= outputs
        self._doubtful |= outputs if known is None else set()
        return []

    def _is_read(self, pairing: Pairing) -> bool:
        """Tell whether it is an output that torch's loss reads; without a loss none is."""
        if pairing.ports is None or not pairing.decides or self._runs.pair.torch.loss is None:
            return False
        return pairing.ports[0].leaf in self._runs.read_by_loss

    @property
    def undone(self) -> list[Pairing]:
        """The outputs that the loss makes up for at all steps."""
        return [self._pairings[number] for number in sorted(self._undone - self._last)]

    @property
    def doubtful(self) -> list[Pairing]:
        """Those that differ beside a loss that is wrong of torch's outputs too."""
        return [self._pairings[number] for number in sorted(self._doubtful)]


def _first_of_other_shape(found: Sequence[Found]) -> list[Found]:
    """Leave out what follows from a place of another shape, where torch's value cannot be put in."""
    other = [each for each in found if each.pairing.ports and each.pairing.to_jax is None]
    later = {id(each) for each in other[1:]}
    if any(each.pairing.ports[0][:3] == ("", 0, "output") for each in other if each.pairing.ports):
        later |= {id(each) for each in found if each.pairing.stage == Stage.LOSS}  # of the JAX side's own outputs
    return [each for each in found if id(each) not in later]


class _Step(NamedTuple):
    number: int
    torch: Observation
    again: Repeated
    """The same step of the JAX side, from the start of torch's."""


def _steps(runs: Runs, followed: Followed, jax: FromTorch, torch: TorchRun) -> Iterator[_Step]:
    """Take the steps of torch in float64, with what takes each of them on the JAX side from what torch has there."""
    pair = runs.pair
    slots = [each for each in followed.pairings if each.stage == Stage.UPDATE and each.operands is None]
    stream = runs.stepper.whole(torch)
    for number in range(followed.steps):
        before = Observation(optimizer=torch.optimizer_state())
        kept = jax.run.state_arrays()  # of an unknown optimizer it is right as well: it saw torch's gradients
        jax.load(torch.arrays())
        if number:
            jax.run.load_state(jax_state(slots, before, kept))
        seen = next(stream)
        batch, draws = pair.batches[number % len(pair.batches)], runs.stepper.draws[number]
        yield _Step(number, seen, Repeated(jax, batch, draws, seen))
