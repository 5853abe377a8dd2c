"""Looks for the cause of what a program computes otherwise as in a model: see `compare.diagnosis.explain`."""

import functools
import itertools
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import numpy as np

from compare.alignment.pairings import Pairing
from compare.comparison.from_torch import FromTorch
from compare.comparison.held_out import TURNED, other_batch
from compare.comparison.places import layers_between
from compare.comparison.program_pair import ProgramPair
from compare.comparison.steps import Stepper
from compare.comparison.suggested_edits import Known, Placed
from compare.comparison.untied import untied
from compare.comparison.weighing import computed
from compare.diagnosis.experiment import rerun_at
from compare.diagnosis.explain import explain
from compare.diagnosis.held_out import HeldOut
from compare.diagnosis.place import Place, place_of
from compare.diagnosis.searched import Searched
from compare.diagnosis.steps.again import Again, edit_of, wider_edit
from compare.diagnosis.steps.edit import Edit
from compare.diagnosis.structure.budget import Budget
from compare.diagnosis.structure.surroundings import Gradients, Shown, Surroundings
from compare.errors import InputError, InternalError, Signal
from compare.jax_side.from_data import FromData, written_in
from compare.jax_side.program_run import JaxProgramRun
from compare.numerics.distance import distance
from compare.step.batch import Batch
from compare.step.observation import Observation
from compare.step.stage import Stage
from compare.torch_side.program_run import TorchProgramRun
from compare.torch_side.record import Record
from compare.verdict.first_difference import Found, together
from compare.weights.links import to_jax


class ProgramSearch:
    """Looks for the cause of a difference in what a step computes before it updates anything, or after.

    Args:
        pair: Both programs.
        stepper: Has the steps' batches and random numbers.
        torch: Starts the torch side's float64 run, with edits.
        jax: Starts the JAX side's float64 run that is compiled already.
        budget: What the search for causes of structure may cost.
        from_torch: The run of the JAX side in which each part starts from torch's values, if such a run showed what
            differs.

    """

    def __init__(
        self,
        pair: ProgramPair,
        stepper: Stepper,
        torch: Callable[[Sequence[Edit]], TorchProgramRun],
        jax: Callable[[], JaxProgramRun],
        budget: Budget,
        from_torch: FromTorch | None = None,
    ) -> None:
        self.pair, self.stepper, self.torch, self.jax, self.budget = pair, stepper, torch, jax, budget
        self.from_torch = from_torch

    def __call__(self, place: Placed, edits: Sequence[Edit]) -> Known:
        """Look for a cause.

        Args:
            place: Where the two sides begin to differ.
            edits: Changes of torch's step that are causes already.

        """
        found = place.found
        step = found.divergence.step
        run, batch, draws = self._before(step, edits), self._batch(step), self.stepper.draws[step]
        seen = self._jax_step(run, batch, step, before=step)
        target = self._read(found.pairing, seen)
        if target is None:
            return Known()
        found = found._replace(target=target)
        again = Again(run)
        if not self._repeats(found, again, batch, step):
            return Known()
        if found.divergence.stage == Stage.GRADIENT and seen is not None:
            rerun = rerun_at(found, again, batch, draws)
            if cause := untied(run.model, self.pair.links, found, lambda: rerun({}), seen):
                return Known(Searched(cause))
        shown = self._shown(place.shown, seen)
        later = self._shown(place.gradients, seen) if found.divergence.stage in (Stage.LOSS, Stage.SHOWN) else []
        traces = self.jax().traces
        theirs = written_in(traces[0]) if traces else FromData()
        surroundings = Surroundings(place.agreeing, self.budget, theirs=lambda _: theirs, shown=shown, later=later)
        if found.divergence.stage == Stage.GRADIENT and seen is not None:
            # A stop may be in another module's gradients: all of the step are what proves it.
            both = [pairing for pairing, _ in place.gradients if self._read(pairing, seen) is not None]
            every = together(found, both, seen)
            surroundings = surroundings._replace(gradients=Gradients(every, self._held_out(every, edits)))
        # Held-out steps are those of the place, wherever its cause is looked for: each is taken once.
        held_out, others_held_out = itertools.tee(self._held_out(found, edits))
        searched = explain(found, again, batch, draws, self._place(found), held_out, surroundings)
        if searched.cause is None and found.before is not None and found.before.ports is not None:
            # A value may be computed before the module that ran last, from what another one gave: a target of the loss.
            found = found._replace(outside=True)
            searched = explain(found, again, batch, draws, self._place(found), others_held_out)
        return Known(searched, edit_of(searched), wider_edit(searched))

    def _shown(self, pairings: Sequence[tuple[Pairing, float]], seen: Observation | None) -> list[Shown]:
        others = ((pairing, self._read(pairing, seen), limit) for pairing, limit in pairings)
        return [Shown(pair.torch_array, array, limit) for pair, array, limit in others if array is not None]

    def _batch(self, number: int) -> Any:
        return self.stepper.batches[number % len(self.stepper.batches)]

    def _before(self, step: int, edits: Sequence[Edit]) -> TorchProgramRun:
        """Take torch's run to a step."""
        import torch

        run = self.torch(edits)
        with torch.enable_grad():  # a search of structure asks for held-out steps where it needs no gradients
            for _ in itertools.islice(self.stepper.whole(run), step):
                pass
        return run

    def _target(self, pairing: Pairing, run: TorchProgramRun, batch: Any, step: int, *, before: int) -> Any:
        """Return what the JAX side has at a step from torch's weights; None where it has nothing there."""
        return self._read(pairing, self._jax_step(run, batch, step, before=before))

    def _read(self, pairing: Pairing, seen: Observation | None) -> np.ndarray | None:
        array = None if seen is None else computed(pairing.jax_array, seen)
        return None if array is None else np.array(array, np.float64)

    def _jax_step(self, run: TorchProgramRun, batch: Any, step: int, *, before: int) -> Observation | None:
        """Take a step of the JAX side from torch's weights; None where it cannot take it.

        It takes as many steps `before`: what it counts, and what its optimizers remember, comes from these.
        """
        jax = self.jax()
        try:
            for number in range(before):
                jax.step(self._batch(number), self.stepper.draws[number])
            if self.from_torch is not None:
                return self._from_torch(self.from_torch, jax, run, batch, step)
            jax.load(to_jax(self.pair.links, run.arrays(), jax.arrays()))
            return jax.step(batch, self.stepper.draws[step])
        except (InputError, InternalError, Signal):
            return None

    def _from_torch(
        self, from_torch: FromTorch, jax: JaxProgramRun, run: TorchProgramRun, batch: Any, step: int
    ) -> Observation:
        """Take a step of the JAX side from what torch has in the same step; torch's run is then as it was before."""
        draws, again = self.stepper.draws[step], Again(run)
        from_torch.run.values, from_torch.run.taken = list(jax.values), jax.taken
        from_torch.load(run.arrays())
        restore = again.restorer()
        try:
            with again.around(), again.controlled(draws):
                seen = again.step(batch, Record(run.overwritten))
            return from_torch.step(seen, batch, draws)
        finally:
            restore()

    def _repeats(self, found: Found, again: Again, batch: Any, step: int) -> bool:
        """Tell whether torch's step, taken twice from one state, gives the same at the place."""
        rerun = rerun_at(found, again, batch, self.stepper.draws[step])
        try:
            one, two = (np.array(found.pairing.torch_array(rerun({})), np.float64) for _ in range(2))
        except (KeyError, InputError, InternalError, Signal):
            return False
        return one.shape == two.shape and distance(one, two) <= found.limit

    def _held_out(self, found: Found, edits: Sequence[Edit]) -> Iterator[HeldOut]:
        """Yield the step before, at which the sides agreed, two later steps, and first steps with other weights.

        A state that is zero or one at the first step, such as running statistics, is none of both at the later ones.
        With other weights, what is computed has other signs.
        """
        step = found.divergence.step
        # What follows an update depends at later steps on what the port's own optimizer remembers.
        later = () if found.pairing.after_update else (step + 1, step + 2)
        as_it_is = functools.partial(self._as_it_is, found, edits)
        moved = functools.partial(self._with_other_weights, found, edits)
        of_the_check = (functools.partial(as_it_is, number) for number in (step - 1, *later))
        first = (next(of_the_check), functools.partial(moved, TURNED), *of_the_check)
        yield from filter(None, (take() for take in first))
        yield from filter(None, itertools.takewhile(bool, map(moved, itertools.count(TURNED + 1))))

    def _as_it_is(self, found: Found, edits: Sequence[Edit], number: int) -> HeldOut | None:
        """Take a step of the check; None where there is none, or the JAX side cannot take it."""
        if not 0 <= number < len(self.stepper.draws):
            return None
        run, batch = self._before(number, edits), self._batch(number)
        target = self._target(found.pairing, run, batch, number, before=number)
        return None if target is None else HeldOut(Again(run), batch, self.stepper.draws[number], target)

    def _with_other_weights(self, found: Found, edits: Sequence[Edit], seed: int) -> HeldOut | None:
        """Take a first step with other weights, on another batch; None where the JAX side cannot take it."""
        run = self._before(0, edits)
        run.spread(seed)
        number = (found.divergence.step + seed) % len(self.stepper.draws)
        batch = other_batch(Batch(self._batch(number)), seed, only=len(self.stepper.batches) == 1).inputs
        # The draws are those of a step that took other ways, perhaps: then this one is not taken.
        target = self._target(found.pairing, run, batch, number, before=0)
        again = Again(run)
        # Torch may refuse numbers of other signs, such as labels.
        refused = seed == TURNED and target is not None and not self._repeats(found, again, batch, number)
        return None if target is None or refused else HeldOut(again, batch, self.stepper.draws[number], target)

    def _place(self, found: Found) -> Place:
        """Describe the layers that run on the JAX side where the two sides begin to differ."""
        jax = self.jax()
        ran = map(jax.module, layers_between(found, list(jax.kinds)))
        known = [each.cls for each in ran if each is not None]
        return place_of(next(iter(known), None), known)
