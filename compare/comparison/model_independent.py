"""Finds the independent differences of two models: every part of every step starts from the torch side's values."""

from collections.abc import Collection, Iterator, Sequence
from typing import NamedTuple

from compare.alignment.optimizer_state import jax_state
from compare.alignment.pairings import Pairing
from compare.comparison.differing_parts import DifferingParts, Step
from compare.comparison.from_torch import FromTorch, Repeated
from compare.comparison.lasting_places import LastingPlaces, port
from compare.comparison.model_runs import ModelRuns
from compare.comparison.module_order import merged
from compare.diagnosis.optimizers.evidence import Evidence, Recorder
from compare.step.observation import Observation
from compare.step.stage import Stage
from compare.torch_side.run import TorchRun
from compare.verdict.first_difference import Found
from compare.verdict.following import Followed


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
    runs: ModelRuns, followed: Followed, from_torch: FromTorch, made_up_for: Sequence[Pairing] = ()
) -> Independent:
    """List all independent differences, each at the first step where it shows, in order of computation.

    Of the outputs `made_up_for` the JAX side's loss takes its own.
    """
    from_torch.left_out |= {port(each) for each in made_up_for}
    outputs = _Outputs(runs, followed.pairings, made_up_for)
    torch = runs.torch_run("float64")
    recorder = Recorder(torch, list(zip(followed.pairings, followed.quantities, strict=True)), followed.steps)
    parts = DifferingParts(runs, followed, from_torch, _follows_from_values, outputs.made_up_for)
    for step in _steps(runs, followed, from_torch, torch):
        recorder.add(step.torch, parts.add(step))
    undone = outputs.undone
    found = parts.found(undone)
    # An optimizer's difference shows in every parameter: one of them is enough.
    updates = [each for each in found if each.pairing.stage == Stage.UPDATE]
    alone = [each for each in found if each.pairing.stage != Stage.UPDATE or each is updates[0]]
    return Independent(merged(alone, parts.moves), recorder.evidence, undone, outputs.doubtful)


def _follows_from_values(pairing: Pairing) -> bool:
    """Tell whether it follows from values that these steps are given."""
    return pairing.stage in (Stage.GRADIENT, Stage.PARAMETERS)


class _Outputs:
    """Tells which of the model's outputs that differ the JAX side's loss makes up for, at all steps.

    Args:
        runs: Of the pair.
        pairings: Of all quantities.
        given: Those of which it is known.

    """

    def __init__(self, runs: ModelRuns, pairings: Sequence[Pairing], given: Sequence[Pairing]) -> None:
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


def _steps(runs: ModelRuns, followed: Followed, jax: FromTorch, torch: TorchRun) -> Iterator[Step]:
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
        yield Step(number, seen, Repeated(jax, batch, draws, seen))
