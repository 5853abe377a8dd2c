"""What the JAX side draws in a step: its random keys, draws without effect, and those that torch alone makes."""

import functools
from collections.abc import Callable, Iterable, Sequence
from typing import Any

import numpy as np

from compare import bugs
from compare.jax_side.common_run import CommonRun
from compare.jax_side.compiling import compiled_quickly
from compare.jax_side.draw_matching import match
from compare.jax_side.idle_draws import reseeding
from compare.jax_side.keys import StepKeys, reading_keys
from compare.jax_side.primitives import is_key
from compare.jax_side.program_state import Role
from compare.jax_side.replay import replayable
from compare.jax_side.unjitted import fingerprint
from compare.step.draws import Draw, Site
from compare.step.observation import Observation


def _as_traced(program: tuple[Any, Any]) -> Callable[[list[Any], Any], Any]:
    """Give a traced step, from arrays to arrays, without the user's Python."""
    import jax
    from jax.extend.core import jaxpr_as_fun

    closed, shape = program

    def step(values: list[Any], batch: Any) -> Any:
        given = jaxpr_as_fun(closed)(*jax.tree.leaves((values, batch)))
        return jax.tree.unflatten(jax.tree.structure(shape), given)

    return step


class KeyedRun:
    """A run whose random keys are read after each step at which torch draws.

    A step in plain Python may count, and runs once: the keys are read from the program that it was traced to.
    """

    def __init__(self, run: CommonRun, keys: list[StepKeys]) -> None:
        self.run, self.keys = run, keys
        self._readers: dict[str, tuple[list[Site], Any]] = {}
        """By the fingerprint of the step's program."""

    def step(self, batch: Any, draws: Sequence[Draw]) -> Observation:
        """Take one step."""
        before, none = self.run.snapshot() if draws else [], StepKeys([], [], from_batch=False)
        seen = self.run.step(batch, draws)
        read = functools.partial(self._read, before, batch, draws)
        # One entry a step, so that they are those of the step of the same number.
        self.keys.append((bugs.attempt("reading random keys", read) if draws else None) or none)
        return seen

    def _read(self, before: list[Any], batch: Any, draws: Sequence[Draw]) -> StepKeys:
        import jax

        run = self.run
        with run.precision():
            values, inputs = replayable(draws, run.dtype), run.inputs(batch)
            sites, reader = self._reader(inputs)
            found = reader(values, before, inputs)
            return step_keys(sites, found, reader(values, before, jax.tree.map(next_integers, inputs)))

    def _reader(self, inputs: Any) -> tuple[list[Site], Any]:
        """Give what reads the keys of the step that was traced last, compiled once for each program."""
        program = self.run.drawn(inputs)
        key = fingerprint(program[0])
        if key not in self._readers:
            sites: list[Site] = []

            def traced(values: Any, *state: Any) -> Any:
                return reading_keys(_as_traced(program), values, sites, self.run.hints)(*state)

            self._readers[key] = sites, compiled_quickly(traced)
        return self._readers[key]


def idle_draws(run: CommonRun, steps: Iterable[tuple[Any, Sequence[Draw]]]) -> list[Site] | None:
    """Give the draws that torch does not make, if they change nothing; None if one of them does.

    Args:
        run: Of the JAX side, at its start.
        steps: The batch of each step, and what torch draws there. A step of torch's may draw only at times: of the
            steps that draw alike the first is tried.

    """
    found: list[Site] = []
    tried = set[tuple[Site, ...]]()
    for batch, draws in steps:
        drawn = tuple(Site(draw.kind, draw.value.shape) for draw in draws)
        before = run.snapshot()
        run.step(batch, draws)
        if drawn not in tried:
            tried.add(drawn)
            after, run.values = run.values, before
            if (alone := _idle_at(run, batch, draws)) is None:
                return None
            found, run.values = [*found, *alone], after
    return list(dict.fromkeys(found))


def _idle_at(run: CommonRun, batch: Any, draws: Sequence[Draw]) -> list[Site] | None:
    """Give the draws that torch does not make at the step that was traced last; None if one of them has an effect."""
    alone: list[Site] = []
    with run.precision():
        given = run.inputs(batch)
    program = run.drawn(given)

    def shown(seed: Any, values: Any, inputs: Any, draws: Any) -> Any:
        after, shown = reseeding(_as_traced(program), draws, run.hints, seed, alone)(values, inputs)
        # Keys and counters go on whatever is drawn, and decide nothing by themselves.
        return [value for leaf, value in zip(run.leaves, after, strict=True) if leaf.role != Role.OTHER], shown

    with run.precision():
        same = same_for_all_seeds(shown, (list(run.values), given, replayable(draws, run.dtype)))
    # What is drawn within a while loop is not drawn again.
    return alone if same and not any(site.obstacle for site in alone) else None


def draws_of_torch_alone(run: CommonRun, batch: Any, draws: Sequence[Draw]) -> list[int]:
    """Give the numbers of those of torch's draws that the JAX side does not make in its first step."""
    keyed = KeyedRun(run, [])
    keyed.step(batch, draws)
    numbers = [number for number, draw in enumerate(draws) if not draw.backward]
    found = match([Site(draws[n].kind, tuple(draws[n].value.shape)) for n in numbers], keyed.keys[0].sites, run.hints)
    met = {each.draw for each in found.placed if each is not None}
    return [number for place, number in enumerate(numbers) if place not in met]


def step_keys(sites: Sequence[Site], found: Any, moved: Any) -> StepKeys:
    """Give what was read, once on the batch and once on one with other integers."""
    import jax

    both = (each for each in zip(found, moved, strict=True) if all(read and np.all(read.made) for read in each))
    pairs = [(one.key, other.key) for one, other in both]
    # Keys that change when the batch's integers do are made from the batch, as in `key =
    # jax.random.key(batch["seed"])`. They repeat because the batch does.
    from_batch = any(not np.array_equal(one, other) for one, other in pairs)
    reads = [read if read is not None and np.all(read.made) else None for read in jax.tree.map(np.asarray, found)]
    return StepKeys(list(sites), reads, from_batch)


def same_for_all_seeds(shown: Callable[..., Any], arguments: tuple[Any, ...]) -> bool:
    """Tell whether a program gives the same under three seeds: draws that change nothing there have no effect."""
    import jax

    # Three, since a mask that is drawn from a few elements may be the same twice by accident.
    function = compiled_quickly(shown)
    given = [jax.tree.leaves(function(seed, *arguments)) for seed in range(3)]
    # A key that a step hands on is no number; what is drawn with it is.
    first, *others = [[each for each in leaves if not is_key(each.dtype)] for leaves in given]
    return all(
        np.array_equal(np.asarray(one), np.asarray(other), equal_nan=np.asarray(one).dtype.kind == "f")
        for each in others
        for one, other in zip(first, each, strict=True)
    )


def next_integers(leaf: Any) -> Any:
    """Give other integers, as those that a batch may have for a key."""
    return leaf + 1 if getattr(getattr(leaf, "dtype", None), "kind", "") in ("i", "u") else leaf
