"""A comparison of two programs: both steps followed, and what differs named."""

import dataclasses
import functools
import itertools
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np

from compare import bugs
from compare.alignment.optimizer_state import Settings
from compare.alignment.pairings import Alignment, NotCompared, Pairing
from compare.alignment.program import align_program
from compare.comparison.draw_choices import settle
from compare.comparison.draw_parameters import known, other_parameter
from compare.comparison.excuses import Measures, excuses
from compare.comparison.later_steps import LaterSteps
from compare.comparison.program_causes import explained
from compare.comparison.program_optimizers import Programs, explained_update
from compare.comparison.program_pair import ProgramPair
from compare.comparison.program_questions import questioned_program
from compare.comparison.random_keys import reused_key
from compare.comparison.readings import Gradients, without_undone
from compare.comparison.steps import Stepper
from compare.comparison.tables import Tables, rounded_arrays
from compare.comparison.taken_updates import taken_updates
from compare.diagnosis.optimizers.explain import Explained
from compare.diagnosis.steps.edit import Edit
from compare.errors import InputError
from compare.jax_side.keys import StepKeys
from compare.jax_side.program_inquiries import KeyedProgramRun, idle_program_draws
from compare.jax_side.program_run import JaxProgramRun
from compare.report.findings import Run, settings
from compare.report.progress import Progress, Show
from compare.report.report import Report
from compare.step.observation import Observation, Stream, halves, to_numpy
from compare.torch_side.program_run import TorchProgramRun
from compare.verdict.divergence import Cause, Divergence
from compare.verdict.first_difference import first_divergence
from compare.verdict.following import Followed, SoFar, Streams, follow, weigh_float32, weigh_noise, weigh_tables
from compare.weights.links import named

_MOVED = 2
"""Runs that rounding has moved. The effect of a single one may be twenty times too small by accident."""


class ProgramCheck:
    """One comparison of two programs on its way."""

    def __init__(self, pair: ProgramPair, name: str, steps: int, progress: Show) -> None:
        self.pair, self.name, self.steps, self.progress = pair, name, steps, progress
        self.stepper = Stepper(pair.batches, pair.size)
        self.jax = pair.jax_run("float64")
        self._settings: Mapping[str, Settings] = {}
        self._started = list(self.jax.values)
        self._keys: list[StepKeys] = []
        self._idle: list[NotCompared] = []
        """What the JAX side draws without any effect."""
        self.later, self.gradients = LaterSteps(), Gradients()

    def report(self, *, quick: bool) -> Report:
        """Follow both programs, name what differs, and if nothing does, ask what the match is worth."""
        followed, found = self._answered()
        return questioned_program(self.jax, found, followed, self._elsewhere, quick=quick)

    def _elsewhere(self, near: bool) -> tuple[Followed, Report]:
        """Take a step from other weights and on other batches."""
        return ProgramCheck(self.pair.elsewhere(near=near), self.name, 1, self.progress)._answered()

    def _answered(self) -> tuple[Followed, Report]:
        """Follow both programs, and name what differs."""
        followed = self._followed()
        # From here on there is a report, and nothing that fails takes it away.
        with bugs.collected() as failed:
            doing = "trying other replays of random numbers"
            if bugs.attempt(doing, lambda: self._other_draws(followed)):
                followed = self._followed()
            if self.jax.unreplayed:
                self._idle = bugs.attempt("drawing random numbers anew", self._idle_draws) or []
            found = self._explained(followed)
        return followed, dataclasses.replace(found, bugs=failed)

    def _followed(self) -> Followed:
        """Follow both programs through all steps."""
        followed = follow(self._streams(), self._align, self.steps, self._stepping)
        if self.later.any:  # now it is known what there is to be paired
            self.later.complete = True
            followed = follow(self._streams(), self._align, self.steps, self._stepping)
        return without_undone(self.gradients.compared(followed))

    def _other_draws(self, followed: Followed) -> bool:
        """Try other replays of torch's draws where both sides differ, and tell whether one of them is meant."""
        first, pair = first_divergence(followed), self.pair
        if not self._keys or not (self.jax.unreplayed or (first and first.divergence.step == 0)):
            return False

        def first_step() -> tuple[Followed, list[str]]:
            jax = pair.jax_run("float64")
            streams = Streams(
                lambda: self._torch(lambda: pair.torch_run("float32")),
                lambda: self._torch(lambda: pair.torch_run("float64")),
                lambda: self.stepper.jax(lambda: jax),
                lambda: self.stepper.jax(lambda: pair.jax_run("float32")),
            )
            kinds = pair.torch_modules, self.jax.kinds
            align = functools.partial(align_program, pair.links, kinds=kinds, settings=self._settings)
            return follow(streams, align, 1), jax.unreplayed

        if changed := settle(pair, self._keys[0], self.stepper.draws[0], first_step):
            self.jax = pair.jax_run("float64")
            self._started, self.later, self.gradients = list(self.jax.values), LaterSteps(), Gradients()
        return changed

    def _explained(self, followed: Followed) -> Report:
        found, notes = self._findings(followed), list[Cause]()
        if found.divergence:
            self.progress(Progress("measuring what rounding does", found=lambda: found))
            bugs.attempt("measuring what rounding does", lambda: self._weigh_noise(followed))
            measures = Measures(self._weigh_tables, self._weigh_float32)
            weigh = functools.partial(excuses, followed, measures, self.pair.jax.name)
            notes = bugs.attempt("measuring what tables in float32 do", weigh) or []
            followed = without_undone(followed)
            found = self._findings(followed)
        divergences: list[Divergence] = []
        if found.divergence:
            self.progress(Progress("looking for the cause", found=lambda: found))
            search = functools.partial(explained, followed, found.divergence, self)
            divergences = bugs.attempt("the search for the cause", search) or [found.divergence]
        # Replayed draws are right whatever the keys and probabilities are, so that these show in no number.
        for doing, look in (("parameters of draws", self._other_parameter), ("random keys", self._reused_key)):
            if (more := bugs.attempt(f"looking at {doing}", look)) and not known(more, *divergences):
                divergences.append(more)
        if not divergences:
            return dataclasses.replace(found, notes=notes)
        return dataclasses.replace(found, divergence=divergences[0], others=divergences[1:])

    def _other_parameter(self) -> Divergence | None:
        return other_parameter(self._keys, self.stepper.draws, self.jax.hints)

    def _reused_key(self) -> Divergence | None:
        return reused_key(self._keys, self.stepper.draws, len(self.pair.batches), self.jax.hints)

    def _idle_draws(self) -> list[NotCompared]:
        """List all draws that the JAX side alone makes; nothing if one of them has an effect."""
        run = self.pair.jax_run("float32")
        sites = idle_program_draws(run, self.pair.batches[0], self.stepper.draws[0])
        places = [", ".join(filter(None, (str(site), site.place))) for site in sites]
        return [NotCompared("jax", place, "a draw that changes nothing, which torch does not make") for place in places]

    def update_explained(self, followed: Followed, pairing: Pairing) -> Explained:
        """Find out why an optimizer updates otherwise, from all steps, each started from torch's values."""
        accumulated = pairing.torch.partition(".")[0] in self.gradients.chosen
        programs = Programs(self.pair.links, self.stepper, self.pair.torch_run, self._jax_afresh, accumulated)
        return explained_update(programs, followed, pairing)

    def updates_taken(self, followed: Followed, pairing: Pairing, edits: Sequence[Edit]) -> Edit | None:
        """Give the edit with which the optimizer of a pairing updates as the port's does, if there can be one."""
        return taken_updates(self.both, self.pair.links, edits, pairing, followed.steps)

    def start(self) -> Mapping[str, np.ndarray]:
        """Give the torch side's floating-point tensors from before the first step, by name."""
        run = self.pair.torch_run("float64")
        return {name: to_numpy(tensor).copy() for name, tensor in run.floating().items()}

    def both(self, edits: Sequence[Edit]) -> Iterator[tuple[TorchProgramRun, Observation, Observation]]:
        """Take the steps of both sides in float64, torch's with edits; the run is given as it is after the step."""
        run = self.pair.torch_run("float64")
        run.during += [edit.during for edit in edits]
        run.after += [edit.after for edit in edits]
        jax = self._jax_afresh()
        for number, torch in enumerate(self.stepper.whole(run)):
            batch = self.pair.batches[number % len(self.pair.batches)]
            yield run, torch, jax.step(batch, self.stepper.draws[number])

    def _align(self, torch: Observation, jax: Observation) -> Alignment:
        kinds = self.pair.torch_modules, self.jax.kinds
        half = int(bool(torch.parameters))
        torch, jax = self.later.added("torch", half, torch), self.later.added("jax", half, jax)
        found = align_program(self.pair.links, torch, jax, kinds, self._settings)
        pairings = [self.later.from_zero(pairing) for pairing in found.pairings]
        return self.pair.selection.applied(found._replace(pairings=self.gradients.both(pairings)))

    def _torch(self, start: Callable[[], TorchProgramRun]) -> Stream:
        return itertools.chain.from_iterable(map(halves, self.stepper.whole(start())))

    def _streams(self) -> Streams:
        def torch64() -> TorchProgramRun:
            run = self.pair.torch_run("float64")
            self._settings = run.settings()
            return run

        return Streams(
            lambda: self._torch(lambda: self.pair.torch_run("float32")),
            lambda: self.later.watched("torch", self._torch(torch64)),
            lambda: self.later.watched("jax", self.stepper.jax(self._jax_afresh)),
            lambda: self.stepper.jax(self._jax32),
        )

    def _jax32(self) -> KeyedProgramRun:
        self._keys = []
        return KeyedProgramRun(self.pair.jax_run("float32"), self._keys)

    def _jax_afresh(self, draw: int = 0) -> JaxProgramRun:
        """Start the compiled run again from the beginning, moved by rounding if that is asked for."""
        run = self.jax.afresh(self._started)
        if draw:
            run.perturb(draw)
        return run

    def _torch_moved(self, draw: int) -> TorchProgramRun:
        run = self.pair.torch_run("float64")
        if draw:
            run.perturb(draw)
        return run

    def _weigh_noise(self, followed: Followed) -> None:
        draws = range(_MOVED + 1)
        weigh_noise(followed, [self._torch(functools.partial(self._torch_moved, draw)) for draw in draws], "torch")
        weigh_noise(followed, [self.stepper.jax(functools.partial(self._jax_afresh, draw)) for draw in draws], "jax")

    def _weigh_tables(self, followed: Followed) -> Tables:
        """Measure what the float32 rounding of each side's tables does."""
        linked = {link.torch for link in self.pair.links}
        ours = rounded_arrays(dict(self.pair.torch_run("float64").model.named_buffers()), linked)
        tables = Tables([*ours.values(), *self.stepper.constants], list(self.jax.constants.values()))

        def torch_moved(draw: int) -> TorchProgramRun:
            run = self.pair.torch_run("float64")
            run.move_tables(draw, ours)
            return run

        def jax_moved(draw: int) -> JaxProgramRun:
            run = self._jax_afresh()
            run.tables = draw
            return run

        draws = range(_MOVED + 1)
        if tables.torch:
            weigh_tables(followed, [self._torch(functools.partial(torch_moved, draw)) for draw in draws], "torch")
        if tables.jax:
            weigh_tables(followed, [self.stepper.jax(functools.partial(jax_moved, draw)) for draw in draws], "jax")
        return tables

    def _weigh_float32(self, followed: Followed) -> None:
        """Compare both sides in float32."""
        torch = self._torch(lambda: self.pair.torch_run("float32"))
        weigh_float32(followed, torch, self.stepper.jax(lambda: self.pair.jax_run("float32")))

    def _stepping(self, doing: str, done: int, of: int, followed: SoFar) -> None:
        doing = doing if done else f"tracing and compiling {doing}"
        self.progress(Progress(doing, done, of, lambda: self._so_far(followed())))

    def _so_far(self, followed: Followed | None) -> Report | None:
        if followed is None:
            return None
        followed = without_undone(self.gradients.compared(followed))
        name = f"{self.name}, the first {followed.steps} of {self.steps} steps"
        return dataclasses.replace(self._findings(followed), name=name)

    def _findings(self, followed: Followed) -> Report:
        """Give what following both programs has shown."""
        pair, losses, first = self.pair, followed.losses, first_divergence(followed)
        return Report(
            self.name,
            Run("torch", losses["torch32"], losses["torch64"]),
            Run("jax", losses["jax32"], losses["jax64"]),
            followed.quantities,
            first and first.divergence,
            [],
            settings(self.steps, pair.device),
            [*followed.not_compared, *self._idle],
            nondeterministic=[*pair.nondeterministic, *([] if self._idle else dict.fromkeys(self.jax.unreplayed))],
            pinned=[
                *(f"torch: {what}" for what in list(self.stepper.pinned)),
                *(f"jax: {what}" for what in self.jax.pinned),
            ],
            stages=True,
            modules=(pair.torch_modules, self.jax.kinds),
            weights=[(named(link, "torch"), named(link, "jax")) for link in pair.links],
        )


def checked_batches(batches: Any) -> list[Any]:
    """Check the batches of a program: pytrees of NumPy arrays.

    Raises:
        InputError: If there is none, or an array is neither NumPy's nor finite.

    """
    from compare.step.batch import checked_array, mapped

    if not isinstance(batches, Sequence) or isinstance(batches, str) or not len(batches):
        raise InputError(f"batches must be a list of dicts of NumPy arrays, not a {type(batches).__name__}")
    return [
        mapped(batch, functools.partial(checked_array, f"batches[{number}]")) for number, batch in enumerate(batches)
    ]
