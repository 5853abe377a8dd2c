"""One comparison of two programs: see `common_check`."""

import copy
import dataclasses
import functools
import gc
import itertools
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np

from compare import bugs
from compare.alignment.calls_made import Called
from compare.alignment.pairings import NotCompared, Pairing, jax_path
from compare.comparison.common_check import CommonCheck
from compare.comparison.from_torch import FromTorch
from compare.comparison.made_up_for import without_made_up_for
from compare.comparison.other_start import other_start
from compare.comparison.precision import program_precision_causes
from compare.comparison.program_causes import explained
from compare.comparison.program_independent import Explaining, independent_of
from compare.comparison.program_lines import with_lines
from compare.comparison.program_optimizers import Programs, explained_update, in_proportion
from compare.comparison.program_pair import ProgramPair
from compare.comparison.program_questions import ProgramQuestions
from compare.comparison.program_runs import ProgramRuns
from compare.comparison.program_search import ProgramSearch
from compare.comparison.readings import without, without_formula
from compare.comparison.suggested_edits import Known, Placed, hidden_by, is_accumulated, placed_alone
from compare.comparison.taken_updates import taken_updates
from compare.diagnosis.optimizers.explain import Explained
from compare.diagnosis.steps.edit import Edit
from compare.diagnosis.structure.budget import Budget
from compare.errors import InputError
from compare.jax_side.computed import Computed
from compare.jax_side.draws_made import idle_draws
from compare.jax_side.program_run import JaxProgramRun
from compare.jax_side.reading import numbers
from compare.report.progress import Progress, Show
from compare.report.report import Report
from compare.report.wording import counted
from compare.step.batch import checked_array, first_axes, mapped
from compare.step.observation import Observation, to_numpy
from compare.step.stage import Stage
from compare.torch_side.program_run import TorchProgramRun
from compare.verdict.divergence import Cause, Detail, DetailKind, Divergence, Line, Role
from compare.verdict.first_difference import Found, first_divergence
from compare.verdict.following import Followed
from compare.weights.links import to_jax

KEPT = 2_000_000
"""Number of the torch state's elements, times steps, up to which all steps of the JAX side are kept."""

LARGE = 500_000
"""Number of the torch state's elements from which on runs that are left are freed at once."""


class ProgramCheck(CommonCheck):
    """One comparison of programs."""

    runs: ProgramRuns
    pair: ProgramPair
    jax: JaxProgramRun
    searches_what_draws_otherwise = True
    starts, questions = ProgramRuns, ProgramQuestions

    def __init__(
        self,
        pair: ProgramPair,
        name: str,
        steps: int,
        progress: Show,
        compiled: tuple[JaxProgramRun, JaxProgramRun] | None = None,
    ) -> None:
        super().__init__(pair, name, steps, progress, compiled)
        self._budget = Budget()
        self._complete = True
        """Whether all modules are looked at: none of them differs in what a later part makes up for."""
        self._programs: dict[int, Computed] = {}
        """What the JAX side's traced steps compute, by their numbers."""
        self._seen: list[Observation] = []
        """The JAX side's steps in float64 that were kept, and the run that takes the next."""
        self._kept_run: JaxProgramRun | None = None

    def _read(self, followed: Followed) -> Followed:
        doing = "looking for what a later part makes up for"
        read = bugs.attempt(doing, lambda: without_made_up_for(followed, self)) or followed
        self._complete = len(read.pairings) == len(followed.pairings)
        return read

    def _causes(self, followed: Followed, found: Report) -> tuple[Divergence | None, list[Divergence], list[Cause]]:
        if found.divergence is None:
            doing = "looking for what rounds more on one side"
            program = self.jax32.program(self.pair.batches[0], self.runs.stepper.draws[0])
            causes = functools.partial(program_precision_causes, self.runs, followed, program)
            return None, [], [] if found.nondeterministic else bugs.attempt(doing, causes) or []
        self.progress(Progress("looking for the cause", found=lambda: found))
        self._budget = self.budget()
        known = [found.divergence]
        if cause := bugs.attempt("trying other starting values", functools.partial(self._other_start, followed)):
            known = [dataclasses.replace(found.divergence, cause=cause)]
        else:
            known = self._searched_for(followed, found.divergence)
            may_be_made_up_for = known[0].cause is None or any(each.stage == Stage.LOSS for each in known[1:])
            if found.divergence.stage == Stage.FORWARD and may_be_made_up_for:
                known = self._of_other_outputs(followed) or known
        lined = functools.partial(with_lines, self.pair.torch, self.jax, known)
        first, *others = bugs.attempt("the search for the lines", lined) or known
        if not first.cause and not self.jax.unplaced:
            calls = [_called(each) for each in self.runs.called_otherwise.values()]
            first = dataclasses.replace(first, details=(*calls, *first.details))
        return first, others, []

    def _searched_for(self, followed: Followed, first: Divergence) -> list[Divergence]:
        search = functools.partial(explained, followed, first, self)
        return bugs.attempt("the search for the cause", search) or [first]

    def _of_other_outputs(self, followed: Followed) -> list[Divergence]:
        """Explain a loss that may take other outputs than torch's, such as logits; nothing if that explains nothing.

        With torch's outputs in place, nothing explains it.
        """
        if (first := first_divergence(followed)) is None:
            return []
        left = without(followed, [first.pairing])
        if (other := first_divergence(left)) is None or other.divergence.stage != Stage.LOSS:
            return []
        known = self._searched_for(left, other.divergence)
        return [*map(without_formula, known)] if known[0].cause else []

    def _other_start(self, followed: Followed) -> Cause | None:
        integers = self.pair.torch_run("float32").state.integers().values()
        counted = [int(each) for each in integers if not np.ndim(each)]

        def torch() -> Iterator[Observation]:
            return (seen for _, seen, _ in itertools.islice(self.both(()), followed.steps))

        return other_start(followed, torch, counted, self._jax_again, self._jax_step)

    def _idle_draws(self) -> list[NotCompared]:
        batches, draws = self.pair.batches, self.runs.stepper.draws
        steps = ((batches[step % len(batches)], each) for step, each in enumerate(draws[: self.steps]))
        sites = idle_draws(self.pair.jax_run("float32"), steps) or []
        places = [", ".join(filter(None, (str(site), site.place))) for site in sites]
        return [NotCompared("jax", place, "a draw without effect, which torch does not make") for place in places]

    def update_explained(self, followed: Followed, pairing: Pairing, edits: Sequence[Edit]) -> Explained:
        """Find out why an optimizer updates otherwise, from all steps, each started from torch's values."""
        if not self.pair.optimizers:  # torch's step updates by hand
            return Explained(in_proportion(followed, self.from_torch(edits)))

        def of(torch: Callable[[str], TorchProgramRun], *, accumulated: bool) -> Explained:
            programs = Programs(self.pair.links, self.runs.stepper, torch, self._jax_again, accumulated)
            return explained_update(programs, followed, pairing)

        if not edits:
            accumulated = pairing.torch.partition(".")[0] in self.runs.gradients.chosen
            return of(self.pair.torch_run, accumulated=accumulated)
        # With the edits, torch has the port's gradients, and clips where the port does. Some edits change how torch's
        # optimizer is stepped: then it is seen without them.
        accumulated = is_accumulated(followed, self, edits, pairing)
        found = of(lambda _: self._edited(edits), accumulated=accumulated)
        return found if found.cause else of(self.pair.torch_run, accumulated=accumulated)

    def updates_taken(self, followed: Followed, pairing: Pairing, edits: Sequence[Edit]) -> Edit | None:
        """Give the edit with which the optimizer of a pairing updates as the port's does, if there can be one."""
        return taken_updates(self.both, self.pair.links, edits, pairing, followed.steps)

    def sizes(self) -> set[int]:
        """Give the sizes of the batches' first axes."""
        return first_axes(self.pair.batches)

    def start(self) -> Mapping[str, np.ndarray]:
        """Give the torch side's floating-point tensors from before the first step, by name."""
        run = self.pair.torch_run("float64")
        return {name: to_numpy(tensor).copy() for name, tensor in run.floating().items()}

    def trained(self) -> frozenset[str]:
        """Give the names of those that an optimizer of torch's trains."""
        return self.pair.trained

    def numbers(self) -> frozenset[float]:
        """Give the numbers that are written into the JAX side's program."""
        return numbers(self.jax.traces[0]) if self.jax.traces else frozenset()

    def searched(self, place: Placed, edits: Sequence[Edit]) -> Known:
        """Look for the cause of what is computed at a place as in a model, with edits in force already."""
        if place.by_number:
            return Known()
        return self._search()(place, edits)

    def _search(self, from_torch: FromTorch | None = None) -> ProgramSearch:
        return ProgramSearch(self.pair, self.runs.stepper, self._edited, self._jax_again, self._budget, from_torch)

    def independent(self, followed: Followed, edits: Sequence[Edit], known: Sequence[Divergence]) -> list[Divergence]:
        """Give the differences that do not follow from those that are `known`, with edits in force."""
        doing = "looking for independent differences"
        return bugs.attempt(doing, functools.partial(self._independent, followed, edits, known)) or []

    def _independent(self, followed: Followed, edits: Sequence[Edit], known: Sequence[Divergence]) -> list[Divergence]:
        # A step that counts in Python cannot be taken again. What draws other numbers differs all the way.
        if self.jax.unreplayed or (self.jax.kept is not None and self.jax.kept.changed):
            return []
        runs = copy.copy(self.runs)
        runs.torch_run = lambda _: self._edited(edits)
        from_torch = FromTorch(runs, followed)

        def cause(found: Found) -> Cause | None:
            if found.divergence.stage == Stage.UPDATE:
                return self.update_explained(followed, found.pairing, edits).cause
            place = placed_alone(followed, found, from_torch.ports)
            return self._search(from_torch)(place, edits).searched.cause

        def lines(found: Found) -> list[Line]:
            return self.lines(found.pairing, found.divergence.step, found.before)

        def takes_derivative(found: Found) -> bool:
            step, pairing = self._computed(found.divergence.step), found.pairing
            return step is None or step.takes_derivative(pairing.jax if pairing.ports is None else pairing.ports[1])

        explaining = Explaining(lines, cause, takes_derivative)
        hidden = hidden_by(edits)
        return independent_of(known, followed, runs, from_torch, explaining, hidden, complete=self._complete)

    def lines(self, pairing: Pairing, step: int = 0, before: Pairing | None = None) -> list[Line]:
        """Give the lines of the JAX side that compute what differs, back to modules and to other parts of the state."""
        return bugs.attempt("the lines", lambda: self._lines(pairing, step, before)) or []

    def _computed(self, number: int) -> Computed | None:
        traces = self.jax.traces
        if not traces:
            return None
        # A step that is not jitted is traced each time, and may compute something else each time.
        number = 0 if self.jax.compiled_by_user else min(number, len(traces) - 1)
        if len(traces[number].jaxpr.outvars) != len(self.jax.outputs):
            number = 0
        if number not in self._programs:
            self._programs[number] = Computed(traces[number], self.jax.leaves, self.jax.outputs, stacks=self.jax.stacks)
        return self._programs[number]

    def _lines(self, pairing: Pairing, number: int, before: Pairing | None) -> list[Line]:
        if (step := self._computed(number)) is None:
            return []
        if pairing.ports is not None:
            return [Line("jax", Role.COMPUTED, each) for each in step.towards(pairing.ports[1], jax_path(before))]
        if pairing.stage not in (Stage.GRADIENT, Stage.UPDATE):
            return [Line("jax", Role.COMPUTED, each) for each in step.of_output(pairing.jax)]
        if pairing.stage == Stage.GRADIENT and (shown := step.of_output(f"gradients/{pairing.jax}")):
            return [Line("jax", Role.COMPUTED, each) for each in shown]
        given = step.given()  # with several optimizers, of which some may be plain optax's, it is not known which one
        alone = len(given) == 1 == self.pair.optimizers
        return [Line("jax", Role.GIVEN, each) for each in given] if alone else []

    def from_torch(self, edits: Sequence[Edit]) -> Iterator[tuple[TorchProgramRun, Observation, Observation]]:
        """Take the steps of both sides, torch's with edits, each of the JAX side's from torch's weights before it."""
        run, jax = self._edited(edits), self._jax_again()
        stream = self.runs.stepper.whole(run)
        for number in range(self.steps):
            jax.load(to_jax(self.pair.links, run.arrays(), jax.arrays()))
            torch = next(stream)
            yield run, torch, self._jax_step(jax, number)

    def _edited(self, edits: Sequence[Edit]) -> TorchProgramRun:
        if self.pair.size >= LARGE:
            gc.collect()  # A run that is left refers to itself by its hooks, and a search takes hundreds of runs.
        run = self.pair.torch_run("float64")
        run.during += [edit.during for edit in edits]
        run.after += [edit.after for edit in edits]
        return run

    def both(self, edits: Sequence[Edit]) -> Iterator[tuple[TorchProgramRun, Observation, Observation]]:
        """Take the steps of both sides in float64, torch's with edits; the run is given as it is after the step."""
        # The JAX side takes the same steps whatever edits torch's has: small ones are kept, and not taken again.
        whole = self.pair.size * self.steps <= KEPT
        jax = self._jax_again() if not whole else None
        run = self._edited(edits)
        for number, torch in enumerate(self.runs.stepper.whole(run)):
            if jax is None:
                self._kept_run = self._kept_run or self._jax_again()
                if number == len(self._seen):
                    self._seen.append(self._jax_step(self._kept_run, number))
                yield run, torch, self._seen[number]
            else:
                yield run, torch, self._jax_step(jax, number)

    def _jax_step(self, run: JaxProgramRun, number: int) -> Observation:
        batch = self.pair.batches[number % len(self.pair.batches)]
        return run.step(batch, self.runs.stepper.draws[number])

    def _jax_again(self) -> JaxProgramRun:
        run: JaxProgramRun = self.runs.again(copy.copy(self.jax))
        return run


def _called(calls: Called) -> Detail:
    """Say how often the steps of both sides call a module."""
    torch, jax = counted(calls.torch, "time"), counted(calls.jax, "time")
    return Detail(DetailKind.CALLS, f"torch's step calls {calls.module} {torch}, and the JAX side's {jax}")


def checked_batches(batches: Any) -> list[Any]:
    """Check the batches of a program: pytrees of NumPy arrays.

    Raises:
        InputError: If there is none, or an array is neither NumPy's nor finite.

    """
    if not isinstance(batches, Sequence) or isinstance(batches, str) or not len(batches):
        raise InputError(f"batches must be a list of dicts of NumPy arrays, not a {type(batches).__name__}")
    return [
        mapped(batch, functools.partial(checked_array, f"batches[{number}]")) for number, batch in enumerate(batches)
    ]
