"""Compare a PyTorch model, its loss and its optimizer with a JAX port: `compare.check`."""

import contextlib
import copy
import dataclasses
import functools
import time
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from compare import bugs
from compare.alignment.pairings import NotCompared
from compare.comparison.converted import wrongly_converted
from compare.comparison.draw_choices import settle
from compare.comparison.draw_parameters import known, other_parameter
from compare.comparison.enough_steps import LEAST as LEAST_STEPS
from compare.comparison.enough_steps import default_steps, schedule_change
from compare.comparison.excuses import Measures, excuses
from compare.comparison.explanation import explained
from compare.comparison.float32 import other_in_float32, weigh_float32_program
from compare.comparison.from_torch import FromTorch
from compare.comparison.independent import Independent, independent
from compare.comparison.mapped_pair import MappedPair
from compare.comparison.precision import precision_causes
from compare.comparison.program import ProgramCheck, checked_batches
from compare.comparison.program_pair import ProgramPair
from compare.comparison.provenance import what_ran
from compare.comparison.questions import Ask, Programs, questioned
from compare.comparison.random_keys import reused_key
from compare.comparison.readings import without_undone_outputs
from compare.comparison.runs import Runs
from compare.comparison.selection import Selection
from compare.comparison.steps import JaxSteps
from compare.device import resolve, running
from compare.diagnosis.structure.budget import Budget
from compare.errors import InputError
from compare.jax_side.inquiries import KeyedRun, draws_of_torch_alone, idle_draws
from compare.jax_side.keys import StepKeys
from compare.jax_side.program import JaxProgram
from compare.jax_side.run import JaxRun
from compare.jax_side.side import Flax, Jax
from compare.report.findings import Run, settings
from compare.report.progress import Progress, Show, ignore
from compare.report.report import Report
from compare.step import batch as batching
from compare.torch_side.idle_draws import change_nothing
from compare.torch_side.program import TorchProgram
from compare.torch_side.side import Torch
from compare.verdict.divergence import Cause, Divergence
from compare.verdict.first_difference import first_divergence
from compare.verdict.following import Followed, SoFar, follow
from compare.verdict.quantity import Verdict
from compare.weights.links import named


def check(
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
    progress: Show = ignore,
    quick: bool = False,
) -> Report:
    """Compare a PyTorch training program with its port.

    Both sides get the same weights, the torch model's, and the same batches, and go through the same steps together,
    each in float32 and in float64. Everything that a step computes is compared: outputs of modules, loss,
    gradients, updates, optimizer state, parameters and buffers.

    Args:
        torch: The original.
        jax: The port.
        batches: `[(inputs, target), ...]` as NumPy arrays of any shape, in torch's layout, cycled until `steps`. Inputs
            may be an array, a tuple (positional) or a dict (keyword). Floating-point arrays, which must be finite, are
            cast to each precision; integers and booleans stay as they are. Without a loss, a target is not needed.
        steps: How many, at least 1. If not given, one for each batch, and with an optimizer at least 3 and past the
            next change of its settings, as far as that comes within 32.
        weights: `{"torch name or regex": "flax/path"}`, for tensors that cannot be matched automatically. A path with
            ".T" at its end is a matrix to be transposed, "name[0:8]" a part of a tensor; None means no partner.
        accept: What is known to differ and may, with the reason: `{"buffers: *.running_var": "we keep Flax's"}`. Each
            is a stage and a name of the torch side, in which "*" is anything. It is listed, and decides nothing.
        stages: Only these stages: "forward", or ["forward", "loss"]. What they do not need, such as the optimizer, is
            not run.
        device: "auto" (a GPU where both frameworks see one), "cpu" or "cuda".
        name: What to call the pair in the report.
        progress: Called with a `compare.Progress` before whatever is done next; `print` shows it.
        quick: Whether to leave out the second question: a step from other weights and on other batches of the same
            shapes. A match then says so.

    Returns:
        The report. A mismatch is in it, and raises nothing: `report.raise_on_mismatch()` does.

    Raises:
        InputError: For anything that cannot be compared: a parameter without a partner, shapes that do not fit, a
            batch that a side does not take, a loss that is not a scalar or not finite on both sides, a device that is
            not there. The message names the culprit on both sides, and what to do.

    """
    selection = Selection(stages, accept)
    if isinstance(torch, TorchProgram) or isinstance(jax, JaxProgram):
        found = _check_programs(torch, jax, batches, steps, weights, device, name, progress, selection, quick=quick)
    else:
        with prepared(torch, jax, batches, steps, weights, device, progress, selection) as (pair, steps):
            found = _Check(pair, name, steps, progress).report(quick=quick)
            found = dataclasses.replace(found, settings=found.settings | what_ran(pair, weights))
    chosen = {} if selection.stages is None else {"stages": [str(stage) for stage in selection.stages]}
    accepted = selection.acceptance.found(found.quantities)
    return dataclasses.replace(found, accepted=accepted, settings=found.settings | chosen)


LEAST = 10.0
"""Seconds that the search for causes of structure may take, however short the check is."""


class _Check:
    """One comparison: follows both sides, and explains what differs."""

    def __init__(
        self, pair: MappedPair, name: str, steps: int, progress: Show, compiled: tuple[JaxRun, JaxRun] | None = None
    ) -> None:
        self.pair, self.name, self.steps, self.progress = pair, name, steps, progress
        self.started = time.monotonic()
        self.runs = Runs(pair)
        self.compiled = compiled
        """Runs of the JAX side in float64 and float32 that have compiled their steps, if there are any."""
        self.jax = self._again(compiled[0]) if compiled else pair.jax_run("float64")
        self.jax32: JaxRun | None = None
        """The float32 run that was taken last."""
        self._keys: list[StepKeys] = []
        self._idle: list[NotCompared] = []
        """What one side draws without any effect, and the other does not draw."""

    def report(self, *, quick: bool) -> Report:
        """Follow both sides, explain what differs, and if nothing does, ask what the match is worth."""
        followed = self._follow()
        # From here on there is a report, and nothing that fails takes it away.
        with bugs.collected() as failed:
            doing = "trying other replays of random numbers"
            if bugs.attempt(doing, lambda: self._other_draws(followed)):
                followed = self._follow()
            if self.jax.unreplayed:
                self._idle = bugs.attempt("drawing random numbers anew", self._idle_draws) or []
            found = self._explained(followed)
            if self.compiled is None and found.ok:
                assert self.jax32
                compiled = self.jax, self.jax32
                draws = self.runs.stepper.draws[0]
                programs, ask = Programs(*compiled, draws), self._elsewhere(compiled, found)
                found = questioned(self.runs, found, followed, programs, ask, quick=quick)
        return dataclasses.replace(found, bugs=failed)

    def _elsewhere(self, compiled: tuple[JaxRun, JaxRun], found: Report) -> Ask:
        """Give what takes one step of the same pair from other weights and on other batches."""

        def show(_: Progress) -> None:
            self.progress(Progress("asking from other weights and batches", found=lambda: found))

        def ask(pair: MappedPair) -> tuple[Report, Followed]:
            other = _Check(pair, self.name, 1, show, compiled)
            followed = other._follow()
            return other._explained(followed), followed

        return ask

    def _again(self, run: JaxRun) -> JaxRun:
        """Start a run again from the pair's weights, with the step that it has compiled."""
        run = copy.copy(run)
        self.pair.load(run)
        return run

    def _explained(self, followed: Followed) -> Report:
        assert self.jax32
        judge = functools.partial(weigh_float32_program, self.runs, followed, self.jax32)
        lower = bugs.attempt("judging the float32 program", judge)
        found = self._explained64(followed)
        if other := other_in_float32(followed):
            if found.divergence is None:
                return dataclasses.replace(found, divergence=other, notes=[])
            return dataclasses.replace(found, others=[*found.others, other])
        if lower and found.verdict == Verdict.MATCH:
            return dataclasses.replace(found, notes=[lower])
        return found

    def _explained64(self, followed: Followed) -> Report:
        found, excuses = self._findings(followed), list[Cause]()
        if found.divergence:
            self.progress(Progress("measuring what rounding does", found=lambda: found))
            # Only if something differs: two more float64 runs of each side cost as much as the check itself, and
            # most checks match.
            bugs.attempt("measuring what rounding does", lambda: self.runs.weigh_noise(followed, self.jax))
            excuses = bugs.attempt("measuring what tables in float32 do", lambda: self._excuses(followed)) or []
            followed = without_undone_outputs(followed)
            found = self._findings(followed)
        divergence, others, notes = self._causes(followed, found)
        notes = notes if divergence else [*excuses, *notes]
        wrong = (
            None
            if self.compiled
            else bugs.attempt("looking at the port's own weights", lambda: wrongly_converted(self.pair))
        )
        if wrong:
            others = [*wrong[1:], *([divergence] if divergence else []), *others]
            divergence, notes = wrong[0], []
        # Replayed draws are right whatever the JAX side's keys and probabilities are, so that these show in no number:
        # they are looked at by themselves.
        for doing, look in (("parameters of draws", self._other_parameter), ("random keys", self._reused_key)):
            if (more := bugs.attempt(f"looking at {doing}", look)) and not known(more, divergence, *others):
                divergence, *others = [*([divergence] if divergence else []), *others, more]
                notes = []
        return dataclasses.replace(found, divergence=divergence, notes=notes, others=others)

    def _excuses(self, followed: Followed) -> list[Cause]:
        measures = Measures(lambda followed: self.runs.weigh_tables(followed, self.jax), self.runs.weigh_float32)
        return excuses(followed, measures, self.pair.jax.name)

    def _idle_draws(self) -> list[NotCompared]:
        """List all draws that one side alone makes; nothing if one of them has an effect."""
        batch, draws = self.pair.batches[0], self.runs.stepper.draws[0]
        sites = idle_draws(self.pair.jax_run("float32"), batch, draws)
        if sites is None:
            return []
        alone = draws_of_torch_alone(self.pair.jax_run("float32"), batch, draws)
        if alone and not change_nothing(lambda: self.pair.torch_run("float32"), batch, draws, alone):
            return []
        idle = "a draw that changes nothing, which {} does not make"
        places = [", ".join(filter(None, (str(site), site.place))) for site in sites]
        return [
            *(NotCompared("jax", place, idle.format("torch")) for place in places),
            *(NotCompared("torch", str(draws[number]), idle.format("the JAX side")) for number in alone),
        ]

    def _other_draws(self, followed: Followed) -> bool:
        """Try other replays of torch's draws where both sides differ, and tell whether one of them is meant."""
        first = first_divergence(followed)
        if not self._keys or not (self.jax.unreplayed or (first and first.divergence.step == 0)):
            return False
        pair = self.pair

        def first_step() -> tuple[Followed, list[str]]:
            jax = pair.jax_run("float64")
            streams = self.runs.streams(jax, lambda: pair.jax_run("float32"))
            return follow(streams, self.runs.align, 1), jax.unreplayed

        changed = settle(pair, self._keys[0], self.runs.stepper.draws[0], first_step)
        if changed:
            self.jax = pair.jax_run("float64")
        return changed

    def _other_parameter(self) -> Divergence | None:
        return other_parameter(self._keys, self.runs.stepper.draws, self.pair.hints)

    def _reused_key(self) -> Divergence | None:
        return reused_key(self._keys, self.runs.stepper.draws, len(self.pair.batches), self.pair.hints)

    def _follow(self) -> Followed:
        in_pairs = self.runs.in_pairs
        if in_pairs:  # what compiling takes is not needed at the same time as what a step takes
            self.progress(Progress("compiling", 0, self.steps))
            self.jax.compile(self.pair.batches[0], self.pair.probed)
        streams = self.runs.streams(self.jax, self._jax32)
        return follow(streams, self.runs.align, self.steps, self._stepping, in_pairs=in_pairs)

    def _jax32(self) -> JaxSteps:
        self._keys = []
        self.jax32 = self._again(self.compiled[1]) if self.compiled else self.pair.jax_run("float32")
        return self.jax32 if self.compiled else KeyedRun(self.jax32, self._keys)

    def _stepping(self, doing: str, done: int, of: int, followed: SoFar) -> None:
        """Show that a step begins, with the report of the steps before it."""
        doing = doing if done else f"tracing and compiling {doing}"
        self.progress(Progress(doing, done, of, lambda: self._so_far(followed())))

    def _so_far(self, followed: Followed | None) -> Report | None:
        if followed is None:
            return None
        name = f"{self.name}, the first {followed.steps} of {self.steps} steps"
        return dataclasses.replace(self._findings(followed), name=name)

    def _causes(self, followed: Followed, found: Report) -> tuple[Divergence | None, list[Divergence], list[Cause]]:
        """Give the first divergence and the others with their causes, or the causes of a precision verdict."""
        if first := first_divergence(followed):
            self.progress(Progress("looking for independent differences", found=lambda: found))
            doing = "looking for independent differences"
            from_torch = FromTorch(self.runs, followed)
            alone = bugs.attempt(doing, lambda: independent(self.runs, followed, from_torch))
            first = first_divergence(followed, None if alone is None else alone.found) or first
            self.progress(Progress(f"looking for the cause at {first.divergence.torch}", found=lambda: found))
            # The search may take as long as the check has taken so far, so that a report takes at most about
            # twice as long.
            budget = Budget(max(LEAST, time.monotonic() - self.started))
            causes = explained(self.runs, first, alone or Independent(), self.jax, from_torch, budget)
            divergence, *others = causes.divergences
            if causes.rounding and divergence.cause and not others:
                return None, [], [divergence.cause]
            return divergence, others, []
        if found.nondeterministic:
            return None, [], []
        self.progress(Progress("looking for what rounds more on one side", found=lambda: found))
        doing = "looking for what rounds more on one side"
        return None, [], bugs.attempt(doing, lambda: precision_causes(self.runs, followed)) or []

    def _findings(self, followed: Followed) -> Report:
        """Give what following both sides has shown, before anything of it is explained."""
        pair, losses, first = self.pair, followed.losses, first_divergence(followed)
        return Report(
            self.name,
            Run("torch", losses["torch32"], losses["torch64"]),
            Run(pair.jax.name, losses["jax32"], losses["jax64"]),
            followed.quantities,
            first and first.divergence,
            [],
            settings(self.steps, pair.device),
            [*followed.not_compared, *self._idle],
            nondeterministic=[*pair.nondeterministic, *([] if self._idle else dict.fromkeys(self.jax.unreplayed))],
            pinned=[
                *(f"torch: {what}" for what in list(self.runs.stepper.pinned)),
                *(f"{pair.jax.name}: {what}" for what in self.jax.pinned),
            ],
            stages=True,
            modules=pair.kinds,
            weights=[(named(link, "torch"), named(link, "jax")) for link in pair.links if link.compared],
        )


def _check_programs(
    torch: Any,
    jax: Any,
    batches: Any,
    steps: int | None,
    weights: Mapping[str, str | None] | None,
    device: str,
    name: str,
    progress: Show,
    selection: Selection,
    *,
    quick: bool,
) -> Report:
    for side, kind, what in ((torch, TorchProgram, "TorchProgram"), (jax, JaxProgram, "JaxProgram")):
        if not isinstance(side, kind):
            other = type(side).__name__
            raise InputError(f"a program is compared with a program: give a compare.{what}, not a {other}")
    listed = checked_batches(batches)
    steps = _checked_steps(steps, max(len(listed), LEAST_STEPS))
    device = resolve(device)
    progress(Progress("mapping the weights"))
    with running(device, 0):
        pair = ProgramPair(torch, jax, listed, weights, device, selection)
        return ProgramCheck(pair, name, steps, progress).report(quick=quick)


def _checked_steps(steps: int | None, default: int) -> int:
    steps = default if steps is None else steps
    if not isinstance(steps, int) or isinstance(steps, bool) or steps < 1:
        raise InputError(f"steps must be a positive whole number, not {steps!r}")
    return steps


@contextlib.contextmanager
def prepared(
    torch: Torch,
    jax: Flax | Jax,
    batches: Any,
    steps: int | None,
    weights: Mapping[str, str | None] | None,
    device: str,
    progress: Show,
    selection: Selection | None = None,
) -> Iterator[tuple[MappedPair, int]]:
    """Check what the user gives and map the weights: the pair and its steps, while both frameworks are set up."""
    _check_sides(torch, jax)
    selection = selection or Selection()
    torch, jax = selection.cut(torch), selection.cut(jax)
    given = batching.checked(batches, loss=torch.loss is not None)
    _checked_steps(steps, 1)
    if not isinstance(weights, Mapping | None):
        raise InputError(f"weights must be a dict of torch names or patterns and their partners, not {weights!r}")
    device = resolve(device)
    if not callable(progress):
        raise InputError(f"progress must be a function of a compare.Progress, such as print, not {progress!r}")
    progress(Progress("mapping the weights"))
    with running(device, sum(parameter.numel() for parameter in torch.model.parameters())):
        pair = MappedPair(torch, jax, given, weights, device, selection)
        yield pair, default_steps(pair, schedule_change(pair)) if steps is None else steps


def _check_sides(torch: Any, jax: Any) -> None:
    if not isinstance(torch, Torch):
        raise InputError(f"the first argument must be a compare.Torch, not a {type(torch).__name__}")
    if not isinstance(jax, Flax | Jax):
        raise InputError(f"the second argument must be a compare.Flax or compare.Jax, not a {type(jax).__name__}")
    for what in ("loss", "optimizer"):
        ours, theirs = getattr(torch, what), getattr(jax, what)
        if (ours is None) != (theirs is None):
            has, lacks = ("torch", jax.name) if theirs is None else (jax.name, "torch")
            raise InputError(f"{what}: the {has} side has one and the {lacks} side has none. Give both, or neither")
    if torch.loss is not None and not any(True for _ in torch.model.parameters()):
        raise InputError("the torch model has no parameters, so that no gradient can be compared: leave out the loss")
