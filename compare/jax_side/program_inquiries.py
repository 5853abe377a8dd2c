"""Properties of a run of a JAX program that can be found without taking a step."""

import functools
from collections.abc import Callable, Iterable, Sequence
from typing import Any

from compare import bugs
from compare.jax_side.compiling import compiled_quickly
from compare.jax_side.idle_draws import reseeding
from compare.jax_side.inquiries import next_integers, same_for_all_seeds, step_keys
from compare.jax_side.keys import StepKeys, reading_keys
from compare.jax_side.program_run import JaxProgramRun
from compare.jax_side.program_state import Role
from compare.jax_side.replay import replayable
from compare.jax_side.unjitted import fingerprint
from compare.step.draws import Draw, Site
from compare.step.observation import Observation


def _as_traced(run: JaxProgramRun) -> Callable[[list[Any], Any], Any]:
    """Give the step that was traced last, from arrays to arrays, without the user's Python."""
    import jax
    from jax.extend.core import jaxpr_as_fun

    closed, shape = run.drawing[-1]

    def step(values: list[Any], batch: Any) -> Any:
        given = jaxpr_as_fun(closed)(*jax.tree.leaves((values, batch)))
        return jax.tree.unflatten(jax.tree.structure(shape), given)

    return step


class KeyedProgramRun:
    """A run whose random keys are read after each step at which torch draws.

    A step in plain Python may count, and runs once: the keys are read from the program that it was traced to.
    """

    def __init__(self, run: JaxProgramRun, keys: list[StepKeys]) -> None:
        self.run, self.keys = run, keys
        self._readers: dict[str, tuple[list[Site], Any]] = {}
        """By the fingerprint of the step's program."""

    def step(self, batch: Any, draws: Sequence[Draw]) -> Observation:
        """Take one step."""
        before, none = list(self.run.values), StepKeys([], [], from_batch=False)
        seen = self.run.step(batch, draws)
        read = functools.partial(self._read, before, batch, draws)
        # One entry a step, so that they are those of the step of the same number.
        self.keys.append((bugs.attempt("reading random keys", read) if draws else None) or none)
        return seen

    def _read(self, before: list[Any], batch: Any, draws: Sequence[Draw]) -> StepKeys:
        import jax

        run = self.run
        with run.precision():
            sites, reader = self._reader()
            values, inputs = replayable(draws, run.dtype), run.inputs(batch)
            found = reader(values, before, inputs)
            return step_keys(sites, found, reader(values, before, jax.tree.map(next_integers, inputs)))

    def _reader(self) -> tuple[list[Site], Any]:
        """Give what reads the keys of the step that was traced last, compiled once for each program."""
        key = fingerprint(self.run.drawing[-1][0])
        if key not in self._readers:
            sites: list[Site] = []

            def traced(values: Any, *state: Any) -> Any:
                return reading_keys(_as_traced(self.run), values, sites, self.run.hints)(*state)

            self._readers[key] = sites, compiled_quickly(traced)
        return self._readers[key]


def idle_program_draws(run: JaxProgramRun, steps: Iterable[tuple[Any, Sequence[Draw]]]) -> list[Site]:
    """Give the draws that torch does not make, if they change nothing; empty if one of them does.

    Args:
        run: Of the JAX side, at its start.
        steps: The batch of each step, and what torch draws there. A step of torch's may draw only at times: of the
            steps that draw alike the first is tried.

    """
    found: list[Site] = []
    tried = set[tuple[Site, ...]]()
    for batch, draws in steps:
        drawn = tuple(Site(draw.kind, draw.value.shape) for draw in draws)
        before = list(run.values)
        run.step(batch, draws)
        if drawn not in tried:
            tried.add(drawn)
            after, run.values = run.values, before
            if (alone := _idle_at(run, batch, draws)) is None:
                return []
            found, run.values = [*found, *alone], after
    return list(dict.fromkeys(found))


def _idle_at(run: JaxProgramRun, batch: Any, draws: Sequence[Draw]) -> list[Site] | None:
    """Give the draws that torch does not make at the step that was traced last; None if one of them has an effect."""
    alone: list[Site] = []

    def shown(seed: Any, values: Any, inputs: Any, draws: Any) -> Any:
        after, shown = reseeding(_as_traced(run), draws, run.hints, seed, alone)(values, inputs)
        # Keys and counters go on whatever is drawn, and decide nothing by themselves.
        return [value for leaf, value in zip(run.leaves, after, strict=True) if leaf.role != Role.OTHER], shown

    with run.precision():
        same = same_for_all_seeds(shown, (list(run.values), run.inputs(batch), replayable(draws, run.dtype)))
    # What is drawn within a while loop is not drawn again.
    return alone if same and not any(site.obstacle for site in alone) else None
