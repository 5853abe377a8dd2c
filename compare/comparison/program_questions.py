"""Finds out what a match of two programs proves: see `common_questions`."""

import contextlib
import functools
import time
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

import numpy as np

from compare import bugs
from compare.comparison.common_questions import Answers, CommonQuestions
from compare.comparison.conditions import first_difference, one_more, short
from compare.comparison.optimizers_alone import until
from compare.comparison.program_pair import ProgramPair
from compare.comparison.program_runs import ProgramRuns
from compare.comparison.program_schedules import Later, goes_on, later_program_updates
from compare.comparison.second_answers import DOCS, Elsewhere
from compare.comparison.substance import (
    of_these_values,
    without_updates,
)
from compare.diagnosis.steps.copies import Following, following
from compare.errors import InputError, NondeterministicError
from compare.jax_side.program_run import JaxProgramRun
from compare.jax_side.reading import ForeignCall
from compare.report.wording import counted
from compare.step.batch import Batch, first_axes
from compare.step.draws import Draw
from compare.step.observation import Observation, to_numpy
from compare.step.stage import Stage
from compare.torch_side.branches import Branches
from compare.torch_side.indexed import fixed_loops
from compare.verdict.divergence import Cause, Divergence
from compare.verdict.following import Followed
from compare.weights.links import to_jax, to_torch


class ProgramQuestions(CommonQuestions):
    """The questions to one match of programs."""

    _runs: ProgramRuns
    _pair: ProgramPair
    _jax64: JaxProgramRun

    def __init__(self, runs: ProgramRuns, compiled: tuple[JaxProgramRun, JaxProgramRun], followed: Followed) -> None:
        super().__init__(runs, compiled, followed)
        self._unchanged = _never_followed(self._pair, self._jax64)  # which looks at the state as the steps have left it
        self._later = Later(None, followed.steps)
        """What further steps have shown."""

    def _calls_out(self) -> Iterable[ForeignCall]:
        return self._jax64.foreign

    def _without_substance(self) -> list[Cause]:
        return _without_substance(self._followed)

    def _not_reached(self) -> list[str]:
        followed, pair = self._followed, self._pair
        limits = ["in 1 step: momentum and schedule not reached"] if followed.steps == 1 else []
        limits += [*without_updates(followed), *of_these_values(pair.links, pair.parameters, followed)]
        return [*limits, *_own_state(self._jax64), *_copied_at_first(pair)]

    def _further(self, answer: Elsewhere, *, matches: bool) -> Answers:
        other_size = functools.partial(_other_size, self._runs, self._jax64, answer, self._followed)
        size = bugs.attempt("trying another batch size", other_size) if matches else ""
        if isinstance(size, Divergence):
            return Answers(divergence=size)
        limits = []
        if self._jax64.compiled_by_user:
            further = functools.partial(later_program_updates, self._runs, self._jax64, self._followed)
            self._later = bugs.attempt("taking further steps", further) or self._later
            if self._later.divergence:
                limits.append(until(self._later.divergence, "the two programs"))
        return Answers(limits=limits, lines=[size] if size else [])

    def _not_exercised(self) -> list[str]:
        steps = max(self._later.steps, self._followed.steps)
        lines = [*self._unchanged, *([] if self._later.divergence else goes_on(self._runs, steps))]
        decided = functools.partial(_decided_alike, self._runs, self._followed.steps, steps)
        lines += bugs.attempt("looking at the conditions of torch's step", decided) or []
        return [*lines, *([] if self._jax64.unplaced else _called_more(self._runs))]


def _never_followed(pair: ProgramPair, jax: JaxProgramRun) -> list[str]:
    """Name what could follow a model, such as a target, and that no step has changed."""
    before, after = to_jax(pair.links, pair.start, jax.arrays()), jax.arrays()
    partners: dict[str, list[str]] = {}
    for link in pair.links:
        partners.setdefault(link.torch, []).append(link.jax)
    found: dict[str, str] = {}
    for root, other, pairs in _networks(pair):
        own, model = ([name for each in side for name in partners.get(each, ())] for side in (pairs, pairs.values()))
        still, trained = (all(np.array_equal(before[n], after[n]) for n in names) for names in (own, model))
        if own and still and not trained:
            found.setdefault(root, other)
    return [
        f"{root}: no step changes it on either side; if it follows {other} at later steps, take as many steps"
        for root, other in found.items()
    ]


def _networks(pair: ProgramPair) -> Iterator[Following]:
    """Yield what `following` does, without networks that have a layer of the same name and size by accident."""
    start = pair.start
    every = [each for each in following(start, pair.trained) if not each.inside or _copied(start, each.pairs)]
    most: dict[str, int] = {}
    for each in every:
        most[each.root] = max(most.get(each.root, 0), len(each.pairs))
    return (each for each in every if len(each.pairs) == most[each.root])


def _copied(tensors: Mapping[str, np.ndarray], pairs: Mapping[str, str]) -> bool:
    """Tell whether some tensors equal others; what is one number everywhere, as biases are at first, tells nothing."""
    telling = {name: other for name, other in pairs.items() if len(np.unique(tensors[name])) > 1}
    return bool(telling) and all(np.array_equal(tensors[name], tensors[other]) for name, other in telling.items())


def _copied_at_first(pair: ProgramPair) -> list[str]:
    """Say so where a model and another part of the state, such as a target, start with the same weights on one side."""
    sides = pair.start, to_torch(pair.links, pair.given, pair.start)
    linked = {link.torch for link in pair.links}
    found: dict[str, dict[frozenset[str], str]] = {}
    for root, other, pairs in _networks(pair):
        # What starts from one number, as biases do, is equal everywhere.
        names = [name for name in pairs if {name, pairs[name]} <= linked and all(np.ptp(side[name]) for side in sides)]
        copies = [all(np.array_equal(side[name], side[pairs[name]]) for name in names) for side in sides]
        if names and copies[0] != copies[1]:
            alike = "start with the same weights in torch and not in the port"
            if not copies[0]:
                alike = "start with other weights in torch and with the same in the port"
            found.setdefault(alike, {}).setdefault(frozenset((root, other)), f"{root} and {other}")
    said = []
    for alike, named in found.items():
        first, *others = named.values()
        also = f", as {', and '.join(others)} do" if others else ""
        said.append(f"although {first} {alike}{also}: the check starts from torch's")
    return said


def _called_more(runs: ProgramRuns) -> list[str]:
    return [
        f"{counted(each.torch - each.jax, 'call')} of {each.module} that torch's step makes and the jax side's "
        f"does not ({each.torch} in place of {each.jax}); use a batch for which they matter"
        for each in runs.called_otherwise.values()
        if each.torch > each.jax
    ]


def _own_state(jax: JaxProgramRun) -> list[str]:
    """Say so where a step in plain Python keeps something by itself, which may be a count of its calls."""
    if jax.compiled_by_user:
        return []
    kept = jax.kept is not None and jax.kept.changed
    return ["as far as the steps go: the port's step keeps a value in Python, which later steps may use"] * kept


def _decided_alike(runs: ProgramRuns, least: int, most: int) -> list[str]:
    """Name conditions of torch's step that have one and the same answer in all steps that are looked at."""
    run = runs.pair.torch_run("float32")
    branches = Branches(run.user_step, [run.model])
    if not branches.conditions:
        return []
    run.during.append(lambda _: branches.watching())
    end = time.process_time() + SECONDS
    for number, _ in zip(range(most), runs.stepper.whole(run), strict=False):
        if number + 1 >= least and time.process_time() > end:
            break
    return branches.one_sided()


SECONDS = 2.0
"""The processor's time for which torch's steps are taken to see their conditions, beyond those of the check."""


def _other_size(runs: ProgramRuns, jax: JaxProgramRun, answer: Elsewhere, followed: Followed) -> Divergence | str:
    """Take one step of both programs with an example more: what differs, or why it cannot be tried."""
    pair: ProgramPair = answer.pair
    if (more := one_more(Batch(pair.batches[0]))) is None:
        return ""

    def torch(
        dtype: str, draws: list[Draw] | None, moved: int = 0, batch: Any = more.inputs
    ) -> tuple[Observation, list[Draw]]:
        run = pair.torch_run(dtype)
        if moved:
            run.perturb(moved)
        with run.controlled(draws) as controlled:
            return run.step(batch), controlled.draws

    try:
        torch32, draws = torch("float32", None)
        torch64, _ = torch("float64", draws)
    except InputError as error:
        return f"another batch size: the torch side fails with it ({short(error)})"
    run = jax.compiled_quickly()
    run.unreplayed = []
    pair.load(run)
    try:
        jax64 = run.step(more.inputs, draws)
    except InputError as error:
        return f"another batch size: the jax side fails with it ({short(error)})"
    if run.unreplayed:
        return "another batch size: the jax side draws different random numbers there"
    # Gradients are read before or after clipping, whichever agrees; what is made of them is compared all the same.
    weighed = functools.partial(first_difference, pair, followed, (torch32, torch64), jax64, but=[Stage.GRADIENT])
    if weighed() is None:
        return ""
    # A step that draws numbers for each example fails with the draws of one more: it reads them all.
    with contextlib.suppress(NondeterministicError):
        shorter, _ = torch("float64", draws, batch=pair.batches[0])
        if _is_unread(torch64, shorter):
            return "another batch size: the torch side does not read the additional example"
        with fixed_loops(first_axes(more.inputs)) as fixed:
            torch("float64", draws)
        # Of micro-batches and of time there is a fixed number, which may be written into the step: "loss / 4".
        if fixed or _calls(torch64) != _calls(shorter):
            return "another batch size: the sides differ with one more entry of the first axis, over which torch loops"
    jax32 = pair.jax_run("float32").step(more.inputs, draws)
    noise = [torch("float64", draws, moved)[0] for moved in (1, 2)]
    return weighed(jax32=jax32, noise=noise) or ""


def _calls(seen: Observation) -> set[tuple[str, int]]:
    """Give the calls of modules: the module's path, and which of its calls it is."""
    return {(port.path, port.call) for port in seen.forward}


def _is_unread(longer: Observation, shorter: Observation) -> bool:
    """Return whether torch's step gives the same loss and the same change of its state with an example more.

    It takes a fixed number of them, such as two tasks in a loop.
    """
    kept = [*longer.updates.items(), *longer.state.items()] + (
        [("loss", longer.loss)] if longer.loss is not None else []
    )
    others = {**shorter.updates, **shorter.state, "loss": shorter.loss}
    return all(others.get(name) is not None and np.array_equal(to_numpy(v), to_numpy(others[name])) for name, v in kept)


def _without_substance(followed: Followed) -> list[Cause]:
    deciding = [quantity for quantity in followed.quantities if quantity.decides]
    if not deciding:
        return [Cause("no output decides", "no part of one program is compared with a part of the other", "", DOCS)]
    if broken := [q.torch for q in deciding if np.isnan([size for size, _ in q.sizes]).any()]:
        return [Cause("NaN on both sides", f"{', '.join(broken[:3])}: NaN on both sides proves nothing", "", DOCS)]
    return []
