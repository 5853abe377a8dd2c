"""One comparison of models or of programs: it follows both sides, explains differences and questions a match."""

import abc
import copy
import dataclasses
import functools
import time
from collections.abc import Iterable
from typing import Any

from compare import bugs
from compare.alignment.pairings import NotCompared, Pairing
from compare.comparison.common_questions import CommonQuestions
from compare.comparison.common_runs import CommonRuns
from compare.comparison.compilation_cause import with_compilation
from compare.comparison.converted import wrongly_converted
from compare.comparison.draw_choices import settle
from compare.comparison.draw_parameters import comes_first, known, other_parameter
from compare.comparison.excuses import Measures, excuses
from compare.comparison.float32 import other_in_float32, weigh_float32_program
from compare.comparison.random_keys import reused_key
from compare.comparison.readings import without_undone_inside
from compare.comparison.second_answers import Ask
from compare.comparison.steps import JaxSteps, approximated
from compare.comparison.tried_patches import LARGEST, Trial, without_refuted
from compare.comparison.without_gradient import left_out
from compare.diagnosis.structure.budget import Budget
from compare.jax_side.draws_made import KeyedRun
from compare.jax_side.keys import StepKeys
from compare.report.findings import Run, settings
from compare.report.progress import Progress, Show
from compare.report.report import Report
from compare.step.stage import COMPUTED, Stage
from compare.verdict.divergence import SEARCH_ENDED, Cause, Detail, DetailKind, Divergence, Line
from compare.verdict.first_difference import first_divergence
from compare.verdict.following import Followed, SoFar
from compare.verdict.ratio import Verdict
from compare.weights.links import named


def unseen(_doing: str, _done: int, _of: int, _so_far: SoFar) -> None:
    """Show no progress."""


_COINS = 4
"""The largest number of steps that are taken to choose a replay: a random boolean may be equal in the first of them."""

LEAST = 10.0
"""Seconds that the search for causes of structure may take, however short the check is."""

_NOT_JUDGED = "but for its float32 program: checking it failed, by an error of netparity"


class CommonCheck(abc.ABC):
    """One comparison: follows both sides, and explains what differs.

    Args:
        pair: Both sides.
        name: What the pair is called.
        steps: How many are taken.
        progress: Called before whatever is done next.
        compiled: Runs of the JAX side in float64 and float32 that have compiled their steps, if there are any.

    """

    runs: Any
    pair: Any
    jax: Any
    searches_what_draws_otherwise = False
    """Whether causes are looked for where one side draws what the other does not."""
    starts: type[CommonRuns]
    """What starts the runs of both sides."""
    questions: type[CommonQuestions]
    """What asks what a match proves."""

    def __init__(
        self, pair: Any, name: str, steps: int, progress: Show, compiled: tuple[Any, Any] | None = None
    ) -> None:
        self._started = time.process_time(), time.monotonic()
        self.runs, self.pair = self.starts(pair), pair
        self.name, self.steps, self.progress = name, steps, progress
        self.compiled = compiled
        self.jax = self.runs.again(copy.copy(compiled[0])) if compiled else self.pair.jax_run("float64")
        self.jax32: Any = None
        """The float32 run that was taken last."""
        self._keys: list[StepKeys] = []
        self.idle: list[NotCompared] = []
        """What one side draws without any effect, and the other does not draw."""

    def report(self, *, quick: bool) -> Report:
        """Follow both sides and explain what differs; if nothing differs, find out what the match proves."""
        followed = self._follow()
        # From here on there is a report, and nothing that fails takes it away.
        with bugs.collected() as failed:
            doing = "trying other replays of random numbers"
            # Before anything is explained: under another replay there may be nothing left to explain.
            if bugs.attempt(doing, lambda: self._other_draws(followed)):
                followed = self._follow()
            if self.jax.unreplayed:
                self.idle = bugs.attempt("drawing new random numbers", self._idle_draws) or []
            found = self._explained(followed)
            # A check that answers the second question asks none itself, and a mismatch needs no second question.
            if self.compiled is None and found.ok:
                questions = self.questions(self.runs, (self.jax, self.jax32), self.runs.read(followed))
                found = questions.asked(found, self._elsewhere(found), quick=quick)
        return dataclasses.replace(found, bugs=failed)

    def answered(self) -> tuple[Report, Followed]:
        """Follow both sides and explain what differs, as the answer to a question of another check."""
        followed = self._follow()
        return self._explained(followed), self.runs.read(followed)

    def _elsewhere(self, found: Report) -> Ask:
        """Give what takes one step of the same pair from other weights and on other batches."""

        def show(_: Progress) -> None:
            self.progress(Progress("trying other weights and batches", found=lambda: found))

        def ask(pair: Any) -> tuple[Report, Followed]:
            other = type(self)(pair, self.name, 1, show, (self.jax, self.jax32))
            # Draws that have no effect were proved to have none here, and have none from other weights either.
            other.idle = self.idle
            return other.answered()

        return ask

    def budget(self) -> Budget:
        """Let the search take as long as the check has taken so far: a report takes at most about twice as long.

        The processor's time is less where a check had to wait for other programs, and more where several processors
        worked.
        """
        return Budget(max(LEAST, min(time.process_time() - self._started[0], time.monotonic() - self._started[1])))

    @abc.abstractmethod
    def lines(self, pairing: Pairing) -> Iterable[Line]:
        """Give the lines of the user's code that compute something of both sides."""

    @abc.abstractmethod
    def _idle_draws(self) -> list[NotCompared]:
        """List all draws that one side alone makes; nothing if one of them has an effect."""

    @abc.abstractmethod
    def _causes(self, followed: Followed, found: Report) -> tuple[Divergence | None, list[Divergence], list[Cause]]:
        """Give the first divergence and the others with their causes, or the causes of a precision verdict."""

    def _follow(self) -> Followed:
        followed: Followed = self.runs.follow(self.jax, self._jax32, self.steps, self._stepping)
        return followed

    def _jax32(self) -> JaxSteps:
        self._keys = []
        self.jax32 = self.runs.again(copy.copy(self.compiled[1])) if self.compiled else self.pair.jax_run("float32")
        return self.jax32 if self.compiled else KeyedRun(self.jax32, self._keys)

    def _other_draws(self, followed: Followed) -> bool:
        """Try other replays of torch's draws where both sides differ, and tell whether one of them is meant."""
        first = first_divergence(followed)
        steps = first.divergence.step + 1 if first else 1
        # A coin may fall alike at first. A difference of the optimizers would show in an update before.
        later = first is not None and steps <= _COINS and first.divergence.stage in COMPUTED
        if not self._keys or not (self.jax.unreplayed or (first and (steps == 1 or later))):
            return False

        def first_steps() -> tuple[Followed, list[str]]:
            jax = self.pair.jax_run("float64")
            return self.runs.follow(jax, lambda: self.pair.jax_run("float32"), steps, unseen), jax.unreplayed

        changed = settle(self.pair, self._keys[0], self.runs.stepper.draws[0], first_steps)
        if changed:
            self.jax = self.pair.jax_run("float64")
        return changed

    def _explained(self, followed: Followed) -> Report:
        judge = functools.partial(weigh_float32_program, self.runs, followed, self.jax32, self.jax)
        judged = bugs.attempt("checking the float32 program", lambda: (judge(),))
        if other_in_float32(followed):
            bugs.attempt("looking for an algorithm that rounds more", lambda: self._named_algorithm(followed))
        found = self._explained64(followed)
        if judged is None:
            found = dataclasses.replace(found, limits=[_NOT_JUDGED])
        # If float64 differs, the same difference in float32 is not a second finding.
        if found.divergence is None and (other := other_in_float32(followed)):
            return dataclasses.replace(found, divergence=self._in_float32(followed, other), notes=[])
        if judged and judged[0] and found.verdict == Verdict.MATCH:
            return dataclasses.replace(found, notes=[judged[0]])
        return found

    def _named_algorithm(self, followed: Followed) -> bool:
        """Count as rounding what a known algorithm makes of float32, where the port rounds as torch without it."""
        del followed
        return False

    def _in_float32(self, followed: Followed, other: Divergence) -> Divergence:
        """Give what is to be said of a place at which the JAX side is another program in float32."""
        ask = functools.partial(with_compilation, self.runs, followed, other, self.jax32)
        return bugs.attempt("running the JAX side operation by operation", ask) or other

    def _explained64(self, followed: Followed) -> Report:
        found, notes = self._findings(followed), list[Cause]()
        # Both sides draw other numbers: what differs, and what a search would find, says nothing of the port.
        if found.nondeterministic and not self.searches_what_draws_otherwise:
            return found
        if found.divergence:
            self.progress(Progress("measuring the effect of rounding", found=lambda: found))
            # Only if something differs: two more float64 runs of each side cost as much as the check itself, and
            # most checks match.
            bugs.attempt("measuring the effect of rounding", lambda: self.runs.weigh_noise(followed, self.jax))
            notes = bugs.attempt("measuring the effect of tables in float32", lambda: self._excuses(followed)) or []
            followed = self._read(self.runs.read(followed))
            found = self._findings(followed)
        divergence, others, causes = self._causes(followed, found)
        if divergence and not divergence.cause:
            divergence, others = self._at_some_steps(followed, divergence, others)
        # These are compared once: a check that answers the second question starts from other weights.
        converted = functools.partial(wrongly_converted, self.pair)
        if wrong := None if self.compiled else bugs.attempt("comparing the port's own weights", converted):
            divergence, others, causes = wrong[0], [*wrong[1:], *([divergence] if divergence else []), *others], []
        notes = causes if divergence else [*notes, *causes]
        # Replayed draws are right whatever the JAX side's keys and probabilities are, so that these show in no number:
        # they are looked at by themselves.
        for doing, look in (("parameters of draws", self._other_parameter), ("random keys", self._reused_key)):
            if (more := bugs.attempt(f"looking at {doing}", look)) and not known(more, divergence, *others):
                found_so_far = [*([divergence] if divergence else []), *others]
                first = divergence is not None and comes_first(more, divergence)
                divergence, *others = [more, *found_so_far] if first else [*found_so_far, more]
                notes = []
        found = dataclasses.replace(found, divergence=divergence, notes=notes, others=others)
        if divergence is None or self.compiled or self.pair.size > LARGEST:
            return found
        return bugs.attempt("trying the patches", lambda: self._tried(found, followed)) or found

    def _at_some_steps(
        self, followed: Followed, first: Divergence, others: list[Divergence]
    ) -> tuple[Divergence, list[Divergence]]:
        """Say of a difference without a cause what comes of layers that run at some steps only."""
        if first.stage == Stage.UPDATE:
            doing = "looking at parameters without a gradient"
            if cause := bugs.attempt(doing, functools.partial(left_out, self.runs, followed, self.jax)):
                details = tuple(each for each in first.details if each != SEARCH_ENDED)
                return dataclasses.replace(first, cause=cause, details=details), []
        if not followed.at_other_steps:
            return first, others
        says = f"the two sides run {', '.join(followed.at_other_steps)} at different steps"
        return dataclasses.replace(first, details=(Detail(DetailKind.CALLS, says), *first.details)), others

    def _tried(self, found: Report, followed: Followed) -> Report:
        """Leave out patches with which the port does not do what torch does."""
        batch, draws = self.pair.batches[0], self.runs.stepper.draws[0]

        def trial() -> Trial:
            self.progress(Progress("trying the patches", found=lambda: found))
            torch = next(self.runs.stepper.whole(self.runs.torch_run("float64")))
            before = self.runs.again(copy.copy(self.jax)).step(batch, draws)
            return Trial(followed, torch, before, lambda: self.pair.jax_run("float64").step(batch, draws), self.lines)

        return without_refuted(found, trial)

    def _read(self, followed: Followed) -> Followed:
        """Leave out what differs and is no finding, once something is known to differ."""
        return followed

    def _excuses(self, followed: Followed) -> list[Cause]:
        measures = Measures(lambda followed: self.runs.weigh_tables(followed, self.jax), self.runs.weigh_float32)
        return excuses(followed, measures, self.pair.jax.name)

    def _other_parameter(self) -> Divergence | None:
        return other_parameter(self._keys, self.runs.stepper.draws, self.pair.hints)

    def _reused_key(self) -> Divergence | None:
        return reused_key(self._keys, self.runs.stepper.draws, len(self.pair.batches), self.pair.hints)

    def _stepping(self, doing: str, done: int, of: int, followed: SoFar) -> None:
        """Show that a step begins, with the report of the steps before it."""
        doing = doing if done else f"tracing and compiling {doing}"
        self.progress(Progress(doing, done, of, lambda: self._so_far(followed())))

    def _so_far(self, followed: Followed | None) -> Report | None:
        if followed is None:
            return None
        name = f"{self.name}, the first {followed.steps} of {self.steps} steps"
        return dataclasses.replace(self._findings(self.runs.so_far(followed)), name=name)

    def _findings(self, followed: Followed) -> Report:
        """Give what following both sides has shown, before anything of it is explained."""
        pair, losses, first = self.pair, followed.losses, first_divergence(followed)
        if first is None:
            followed = without_undone_inside(followed)
        unreplayed = [] if self.idle else dict.fromkeys(self.jax.unreplayed)
        return Report(
            self.name,
            Run("torch", losses["torch32"], losses["torch64"]),
            Run(pair.jax.name, losses["jax32"], losses["jax64"]),
            followed.quantities,
            first and first.divergence,
            [],
            settings(self.steps, pair.device),
            [*followed.not_compared, *self.idle, *approximated(self.runs.stepper.exact)],
            nondeterministic=[*pair.nondeterministic, *unreplayed, *self.runs.stepper.unrecorded],
            pinned=[
                *(f"torch: {what}" for what in list(self.runs.stepper.pinned)),
                *(f"{pair.jax.name}: {what}" for what in self.jax.pinned),
            ],
            stages=True,
            modules=pair.kinds,
            weights=[(named(link, "torch"), named(link, "jax")) for link in pair.links if link.compared],
        )
