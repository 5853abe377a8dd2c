"""One comparison of a model, its loss and its optimizer with a port: followed, explained and questioned."""

import copy
import dataclasses
import functools
import time

from compare import bugs
from compare.alignment.pairings import NotCompared
from compare.comparison.converted import wrongly_converted
from compare.comparison.draw_choices import settle
from compare.comparison.draw_parameters import known, other_parameter
from compare.comparison.excuses import Measures, excuses
from compare.comparison.explanation import explained
from compare.comparison.float32 import other_in_float32, weigh_float32_program
from compare.comparison.from_torch import FromTorch
from compare.comparison.independent import Independent, independent
from compare.comparison.mapped_pair import MappedPair
from compare.comparison.precision import precision_causes
from compare.comparison.questions import Ask, Programs, questioned
from compare.comparison.random_keys import reused_key
from compare.comparison.readings import without_undone_outputs
from compare.comparison.runs import Runs
from compare.comparison.steps import JaxSteps
from compare.diagnosis.structure.budget import Budget
from compare.jax_side.inquiries import KeyedRun, draws_of_torch_alone, idle_draws
from compare.jax_side.keys import StepKeys
from compare.jax_side.run import JaxRun
from compare.report.findings import Run, settings
from compare.report.progress import Progress, Show
from compare.report.report import Report
from compare.torch_side.idle_draws import change_nothing
from compare.verdict.divergence import Cause, Divergence
from compare.verdict.first_difference import first_divergence
from compare.verdict.following import Followed, SoFar, follow
from compare.verdict.quantity import Verdict
from compare.weights.links import named

LEAST = 10.0
"""Seconds that the search for causes of structure may take, however short the check is."""


class PairCheck:
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
                found = questioned(self.runs, found, without_undone_outputs(followed), programs, ask, quick=quick)
        return dataclasses.replace(found, bugs=failed)

    def _elsewhere(self, compiled: tuple[JaxRun, JaxRun], found: Report) -> Ask:
        """Give what takes one step of the same pair from other weights and on other batches."""

        def show(_: Progress) -> None:
            self.progress(Progress("asking from other weights and batches", found=lambda: found))

        def ask(pair: MappedPair) -> tuple[Report, Followed]:
            other = PairCheck(pair, self.name, 1, show, compiled)
            # Draws that have no effect were proved to have none here, and have none from other weights either.
            other._idle = self._idle
            followed = other._follow()
            return other._explained(followed), without_undone_outputs(followed)

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
        # Where float64 differs, what float32 makes of it is no second finding.
        if found.divergence is None and (other := other_in_float32(followed)):
            return dataclasses.replace(found, divergence=other, notes=[])
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
