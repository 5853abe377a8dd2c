"""Would the check have noticed? Faults are planted one at a time, and the check is run on each: `compare.power`."""

import contextlib
import itertools
import warnings
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from compare.comparison.check import prepared
from compare.comparison.common_check import unseen
from compare.comparison.converted import wrongly_converted
from compare.comparison.model_pair import ModelPair
from compare.comparison.model_runs import ModelRuns
from compare.comparison.program_pair import ProgramPair
from compare.comparison.program_runs import ProgramRuns
from compare.comparison.selection import Selection
from compare.diagnosis.rewriting import Call
from compare.errors import InputError, InternalError, NondeterministicError, NotApplicable
from compare.faults.planted_run import AnyRun, Fault, same, started
from compare.faults.program import faults, shuffled
from compare.jax_side.program import JaxProgram
from compare.jax_side.side import Flax, Jax
from compare.numerics.distance import distance
from compare.report.power import Outcome, Power, Why
from compare.report.progress import Progress, Show, ignore
from compare.report.wording import counted
from compare.step.observation import Observation, to_numpy
from compare.step.stage import Stage
from compare.torch_side.program import TorchProgram
from compare.torch_side.side import Torch
from compare.verdict.first_difference import first_divergence
from compare.verdict.following import Followed
from compare.verdict.neighbours import LOST
from compare.verdict.ratio import FACTOR

FURTHER, AT_LEAST = 4, 10
"""Where a fault changes nothing, so many times as many steps are tried, and at least so many."""

GPU_NOISE = 1e-12
"""How far two equal float64 runs may be apart on a GPU, which adds up in any order; on a CPU they are the same."""

LARGER = (1e1, 1e2, 1e4, 1e6, 1e9, 1e12)
"""Factors by which a fault is enlarged if it changes no more than rounding does."""


def power(
    torch: Torch | TorchProgram,
    jax: Flax | Jax | JaxProgram,
    batches: Any,
    *,
    steps: int | None = None,
    weights: Mapping[str, str | None] | None = None,
    accept: Mapping[str, str] | None = None,
    stages: str | Sequence[str] | None = None,
    device: str = "auto",
    name: str = "port",
    seed: int = 0,
    faults: int = 20,
    progress: Show = ignore,
) -> Power:
    """Measure which faults `compare.check` would have caught: plant faults one at a time, and check each.

    The faults are small: a weight off by a millionth of itself, an epsilon, a learning rate off by 1e-5, a schedule
    that is a step ahead, a buffer that is never updated. They are planted in copies of the torch side, in float32 and
    in float64; the user's objects are not changed. The weights are mapped and the JAX side is compiled only once, so
    each fault costs only the runs.

    Args:
        torch: The original.
        jax: The port, which must match.
        batches: As for `compare.check`.
        steps: As for `compare.check`.
        weights: As for `compare.check`.
        accept: As for `compare.check`.
        stages: As for `compare.check`.
        device: As for `compare.check`.
        name: The name of the pair.
        seed: Chooses which layers and parameters get which faults, and seeds dropout.
        faults: The maximum number of faults: first one of each kind, then more of the same kinds in other places.
        progress: A function that is called with a `compare.Progress` before every fault.

    Raises:
        InputError: If the two sides cannot be compared, or do not match without a fault.

    """
    for what, value, least in (("faults", faults, 1), ("seed", seed, 0)):
        if not isinstance(value, int) or isinstance(value, bool) or value < least:
            raise InputError(f"{what} must be a whole number of at least {least}, not {value!r}")
    import torch as framework

    count, outcomes = faults, list[Outcome]()
    with contextlib.ExitStack() as stack:
        stack.enter_context(framework.random.fork_rng())
        selection = Selection(stages, accept)
        prepare = prepared(torch, jax, batches, steps, weights, device, progress, selection)
        pair, steps = stack.enter_context(prepare)
        planting = Planting(pair, steps, seed)
        progress(Progress("checking without a fault", 0, count))
        planting.check_that_it_matches(name)
        stack.enter_context(warnings.catch_warnings())
        warnings.simplefilter("ignore")  # of the faults, such as of two shapes that are broadcast
        for fault in itertools.islice(planting.faults(), count):
            progress(Progress(f"planting: {fault.what} ({fault.where})", len(outcomes), count))
            outcomes.append(planting.outcome(fault))
    return Power(name, outcomes, steps, seed)


class Change(NamedTuple):
    """The effect of a fault, compared with that of rounding."""

    where: str
    step: int
    size: float
    rounding: float

    @property
    def ratio(self) -> float:
        """The one over the other."""
        return self.size / self.rounding if self.rounding else 0.0


class Planting:
    """A mapped pair whose JAX side is compiled once, to be checked with one fault after another."""

    def __init__(self, pair: ModelPair | ProgramPair, steps: int, seed: int) -> None:
        self.pair, self.steps, self.seed = pair, steps, seed
        self.fault: Fault | None = None
        """Which is in the torch side at the moment."""

        def torch_run(dtype: str) -> Any:
            return self.planted(dtype, self.fault)

        self.runs = ProgramRuns(pair, torch_run) if isinstance(pair, ProgramPair) else ModelRuns(pair, torch_run)
        self._compiled: list[Any] = []

    def planted(self, dtype: str, fault: Fault | None = None, times: float = 1.0) -> AnyRun:
        """Start a run of the torch side, with a fault or without."""
        run = started(self.pair, dtype)
        if fault is not None:
            fault.plant(run, times)
        return run

    def check_that_it_matches(self, name: str) -> None:
        """Raise InputError if it does not: a fault would then be one of two."""
        followed, unreplayed = self._check(None)
        converted = wrongly_converted(self.pair)
        if first_divergence(followed) or unreplayed or self.pair.nondeterministic or converted:
            raise InputError(
                f"power is measured on a port that matches, and {name} does not: see what compare.check(...) says of it"
            )

    def faults(self) -> Iterator[Fault]:
        """Yield faults in the order in which they are to be planted: those with which the torch side still runs."""
        rng = np.random.default_rng(self.seed)
        self._record(self.planted("float64"), steps=1)
        for places in shuffled(faults(self.planted, self.pair.batches, self.runs.stepper.draws[0], rng), rng):
            while places:
                fault = places.pop()
                if self._runs(fault):
                    yield fault
                    break

    def _runs(self, fault: Fault) -> bool:
        """Return whether torch takes a step with a fault: with another padding, the shapes may not fit any more."""
        try:
            self._record(self.planted("float32", fault), steps=1)
        except (RuntimeError, TypeError, ValueError, IndexError, KeyError, NotImplementedError, InternalError):
            return False
        return True

    def _record(self, run: AnyRun, steps: int) -> None:
        """Take steps, for their random numbers."""
        self._begin()
        for _ in itertools.islice(self.runs.stepper.whole(run), steps):
            pass

    def _begin(self) -> None:
        import torch

        torch.manual_seed(self.seed)
        self.runs.stepper.draws.clear()

    def outcome(self, fault: Fault) -> Outcome:
        """Check the pair with a fault, and say where it is caught, or why it is not."""
        said = (fault.kind, fault.what, fault.where)
        try:
            followed, unreplayed = self._check(fault)
        except (InputError, NotApplicable) as error:  # the user would read it
            return Outcome(*said, caught=True, stage="error", place=str(error))
        except NondeterministicError as error:
            return Outcome(*said, caught=True, stage="random numbers", place=str(error))
        if first := first_divergence(followed):
            at = first.divergence
            return Outcome(*said, caught=True, step=at.step, stage=at.stage, place=at.torch, error64=at.error64)
        if unreplayed:
            return Outcome(*said, caught=True, stage="random numbers", place=unreplayed[0])
        why, explanation = self._why(fault, followed)
        return Outcome(*said, caught=False, why=why, explanation=explanation)

    def _check(self, fault: Fault | None) -> tuple[Followed, list[str]]:
        """Do what `compare.check` does, without the search for a cause."""
        self._begin()
        self.fault = fault
        jax64, jax32 = self._jax_runs()
        followed = self.runs.follow(jax64, lambda: self.runs.again(jax32), self.steps, unseen)
        if first_divergence(followed):
            self.runs.weigh_noise(followed, jax64)
        if first_divergence(followed):
            self.runs.weigh_tables(followed, jax64)
        if unreplayed := list(jax64.unreplayed):
            # The mismatch of random numbers was found while the step was traced, so that this compiled step is of that
            # trace.
            self._compiled.clear()
        return followed, unreplayed

    def _jax_runs(self) -> list[Any]:
        """Return the JAX side's two runs, which are compiled once, at their start."""
        if not self._compiled:
            self._compiled = [self.pair.jax_run(dtype) for dtype in ("float64", "float32")]
        for run in self._compiled:
            self.pair.load(run)
        return self._compiled

    def _why(self, fault: Fault, followed: Followed) -> tuple[Why, str]:
        """Find out why a fault was not caught."""
        # Three reasons why a fault is not caught: nothing reads it (a better batch would show it), it is too small
        # compared with rounding (a larger one would be caught), or it is not a fault in exact arithmetic.
        if self._first_change(fault, self.steps) is None:
            return self._why_unread(fault)
        change = self._largest_change(fault, followed)
        said = "no compared quantity changes in any digit of float64"
        if change.size:
            said = (
                f"it changes {change.where} by {change.size:.0e} at step {change.step}, and rounding alone "
                f"would change it by about {change.rounding:.0e}"
            )
        if times := self._seen_at(fault, followed):
            return Why.WEAK, f"{said}: it is caught if it is {times:g} times as large"
        if change.ratio > FACTOR:
            return Why.WEAK, said
        return Why.EQUIVALENT, f"in exact arithmetic it changes nothing here: {said}"

    def _seen_at(self, fault: Fault, followed: Followed) -> float | None:
        """Return how many times as large a fault must be to be seen; None if it may be as large as torch takes it."""
        for times in LARGER if fault.sized else ():
            try:
                if self._largest_change(fault, followed, times).ratio > FACTOR:
                    return times
            except (NondeterministicError, RuntimeError, ValueError):  # such as a dropout rate above 1
                return None
        return None

    def _why_unread(self, fault: Fault) -> tuple[Why, str]:
        """Find out why a fault has no effect, and what must change for it to have one."""
        if fault.needed > self.steps:
            return (
                Why.STEPS,
                f"in {counted(self.steps, 'step')}, the schedule's first change is not reached: take {fault.needed}",
            )
        # A program says by itself which of its modules are in training.
        model = self.pair.torch.model if isinstance(self.pair, ModelPair) else None
        still = model is not None and any(not module.training for module in model.modules())
        if still and (change := self._first_change(fault, self.steps, training=True)):
            step, stage = change
            return Why.OFF, (
                f"the model is in eval(), where the fault has no effect: in train() it shows at step {step}, {stage}"
            )
        if change := self._first_change(fault, max(FURTHER * self.steps, AT_LEAST)):
            return Why.STEPS, f"in {counted(self.steps, 'step')}, the fault has no effect: take {change[0] + 1}"
        if self._always_the_same(fault):
            return Why.EQUIVALENT, "it is the same function, whatever goes into it"
        return Why.UNREAD, fault.unread or "nothing in these batches reads it"

    def _always_the_same(self, fault: Fault) -> bool:
        """Return whether what a fault has computed in place of a function is the same by definition."""
        if fault.computes is None:
            return False
        site, rewrite = fault.computes
        found: list[bool] = []

        def compare(call: Call) -> Any:
            found.append(same(rewrite, call))
            return call.run()

        run = self.planted("float64")
        run.rewrites[site] = compare
        self._record(run, steps=1)
        return bool(found) and all(found)

    def _first_change(self, fault: Fault, steps: int, *, training: bool = False) -> tuple[int, str] | None:
        """Return the step and the stage at which a fault first changes anything in the torch side's float64 run."""
        both, noise = self._both(fault, training=training), 0.0 if self.pair.device == "cpu" else GPU_NOISE
        for step in range(steps):
            try:
                ours, theirs = map(self._arrays, next(both))
            except NondeterministicError:
                return step, "random numbers"
            except InputError:  # in train mode, a batch may be too small
                return None
            for name, array in ours.items():
                if name not in theirs or distance(theirs[name], array) > noise:
                    return step, name[0]
        return None

    def _largest_change(self, fault: Fault, followed: Followed, times: float = 1.0) -> Change:
        """Return the deciding quantity that a fault changes most, relative to rounding."""
        largest = Change("", 0, 0.0, 0.0)
        both = itertools.islice(self._both(fault, times), self.steps)
        for step, (right, wrong) in enumerate(both):
            for pairing, quantity in zip(followed.pairings, followed.quantities, strict=True):
                if not pairing.decides or quantity.rounding[step] >= LOST:
                    continue
                size = distance(pairing.torch_array(wrong), pairing.torch_array(right))
                change = Change(f"{pairing.stage} {pairing.torch}", step, size, float(quantity.expected[step]))
                # By the ratio to rounding, as that is what the verdict judges: a change of 1e-3 of a chaotic quantity
                # is less visible than one of 1e-12 of an exact one.
                largest = max(largest, change, key=lambda change: change.ratio)
        return largest

    def _both(
        self, fault: Fault, times: float = 1.0, *, training: bool = False
    ) -> Iterator[tuple[Observation, Observation]]:
        """Take the torch side's steps in float64, without a fault and with it, with the same random numbers."""
        self._begin()
        runs = [self.planted("float64"), self.planted("float64", fault, times)]
        if training:
            for run in runs:
                run.model.train()
        return zip(*map(self.runs.stepper.whole, runs), strict=False)

    def _arrays(self, seen: Observation) -> dict[tuple[Stage, str], np.ndarray]:
        """Return all values of a step, by stage and name, except buffers that are not compared."""
        compared = {link.torch for link in self.pair.links}
        fields: Sequence[tuple[Stage, Mapping[Any, Any]]] = (
            (Stage.FORWARD, seen.forward),
            (Stage.LOSS, {} if seen.loss is None else {"loss": seen.loss}),
            (Stage.GRADIENT, seen.gradients),
            (Stage.UPDATE, {**seen.updates, **seen.optimizer}),
            (Stage.PARAMETERS, seen.parameters),
            (Stage.BUFFERS, {name: buffer for name, buffer in seen.buffers.items() if name in compared}),
            (Stage.STATE, {name: tensor for name, tensor in seen.state.items() if name in compared}),
            (Stage.SHOWN, seen.shown),
        )
        return {(stage, str(name)): to_numpy(value) for stage, found in fields for name, value in found.items()}
