"""What can be asked of a run of a JAX program without taking a step."""

from collections.abc import Sequence
from typing import Any

import numpy as np

from compare.jax_side.idle_draws import reseeding
from compare.jax_side.inquiries import next_integers
from compare.jax_side.keys import StepKeys, reading_keys
from compare.jax_side.lift import traces_apart
from compare.jax_side.program_run import JaxProgramRun
from compare.jax_side.program_state import Role
from compare.jax_side.replay import replayable
from compare.step.draws import Draw, Site
from compare.step.observation import Observation


class KeyedProgramRun:
    """A run whose random keys are read before each step at which torch draws.

    A step in plain Python may count, and must not be traced once more for that: its keys are not read.
    """

    def __init__(self, run: JaxProgramRun, keys: list[StepKeys]) -> None:
        import jax

        self._run, self._keys = run, keys
        self._sites: list[Site] = []

        def read(values: Any, *state: Any) -> Any:
            return reading_keys(run.whole, values, self._sites, run.hints)(*state)

        self._read: Any = jax.jit(read) if run.compiled_by_user else None

    def step(self, batch: Any, draws: Sequence[Draw]) -> Observation:
        """Take one step."""
        if self._read is not None:
            self._keys.append(self._step_keys(batch, draws) if draws else StepKeys([], [], from_batch=False))
        return self._run.step(batch, draws)

    def _step_keys(self, batch: Any, draws: Sequence[Draw]) -> StepKeys:
        import jax

        with self._run.precision(), traces_apart(self):
            values, inputs = replayable(draws, self._run.dtype), self._run.inputs(batch)
            found = self._read(values, self._run.values, inputs)
            moved = self._read(values, self._run.values, jax.tree.map(next_integers, inputs))
        pairs = [(one.key, other.key) for one, other in zip(found, moved, strict=True) if one and other]
        from_batch = any(not np.array_equal(one, other) for one, other in pairs)
        return StepKeys(list(self._sites), jax.tree.map(np.asarray, found), from_batch)


def idle_program_draws(run: JaxProgramRun, batch: Any, draws: Sequence[Draw]) -> list[Site]:
    """Give the draws that torch does not make, if they change nothing; empty if one of them does."""
    import jax

    if not run.compiled_by_user:
        return []
    alone: list[Site] = []

    def shown(seed: Any, values: Any, inputs: Any, draws: Any) -> Any:
        after, shown = reseeding(run.whole, draws, run.hints, seed, alone)(values, inputs)
        # Keys and counters go on whatever is drawn, and decide nothing by themselves.
        return [value for leaf, value in zip(run.leaves, after, strict=True) if leaf.role != Role.OTHER], shown

    with run.precision(), traces_apart(shown):
        arguments = run.values, run.inputs(batch), replayable(draws, run.dtype)
        first, *others = [jax.tree.leaves(jax.jit(shown)(seed, *arguments)) for seed in range(3)]
    equal = [np.array_equal(one, two, equal_nan=True) for each in others for one, two in zip(first, each, strict=True)]
    return alone if all(equal) else []
