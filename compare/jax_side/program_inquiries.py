"""Properties of a run of a JAX program that can be found without taking a step."""

from collections.abc import Callable, Sequence
from typing import Any

from compare.jax_side.idle_draws import reseeding
from compare.jax_side.inquiries import next_integers, same_for_all_seeds, step_keys
from compare.jax_side.keys import StepKeys, reading_keys
from compare.jax_side.lift import traces_apart
from compare.jax_side.program_run import JaxProgramRun
from compare.jax_side.program_state import Role
from compare.jax_side.replay import replayable
from compare.step.draws import Draw, Site


def key_reader(run: JaxProgramRun) -> Callable[[Any, Sequence[Draw]], StepKeys]:
    """Give what reads the keys of a program's steps; its program is compiled once."""
    import jax

    sites: list[Site] = []

    def traced(values: Any, *state: Any) -> Any:
        return reading_keys(run.whole, values, sites, run.hints)(*state)

    compiled = jax.jit(traced)

    def read(batch: Any, draws: Sequence[Draw]) -> StepKeys:
        with run.precision(), traces_apart(compiled):
            values, inputs = replayable(draws, run.dtype), run.inputs(batch)
            found = compiled(values, run.values, inputs)
            return step_keys(sites, found, compiled(values, run.values, jax.tree.map(next_integers, inputs)))

    return read


def idle_program_draws(run: JaxProgramRun, batch: Any, draws: Sequence[Draw]) -> list[Site]:
    """Give the draws that torch does not make, if they change nothing; empty if one of them does."""
    if not run.compiled_by_user:
        return []
    alone: list[Site] = []

    def shown(seed: Any, values: Any, inputs: Any, draws: Any) -> Any:
        after, shown = reseeding(run.whole, draws, run.hints, seed, alone)(values, inputs)
        # Keys and counters go on whatever is drawn, and decide nothing by themselves.
        return [value for leaf, value in zip(run.leaves, after, strict=True) if leaf.role != Role.OTHER], shown

    with run.precision(), traces_apart(shown):
        arguments = run.values, run.inputs(batch), replayable(draws, run.dtype)
        return alone if same_for_all_seeds(shown, arguments) else []


def has_fast_variance(run: JaxProgramRun) -> bool:
    """Tell whether a module of the state is a norm of Flax's with E[x²] - E[x]², which rounds far more than torch's."""
    from flax import nnx

    roots = [value for value in run.structure.objects.values() if isinstance(value, nnx.Module)]
    return any(getattr(each, "use_fast_variance", False) for root in roots for _, each in nnx.iter_modules(root))
