"""Explains a difference between two programs' optimizers by all steps, each started from torch's values."""

import dataclasses
from collections.abc import Callable, Iterable

import numpy as np

from compare.alignment.optimizer_state import jax_state
from compare.alignment.pairings import Pairing
from compare.alignment.program import slot_names
from compare.comparison.steps import Stepper
from compare.diagnosis.optimizers.evidence import Evidence, Recorder
from compare.diagnosis.optimizers.explain import Explained, explain_update
from compare.jax_side.given import Given
from compare.jax_side.program_run import JaxProgramRun
from compare.numerics.distance import distance, norm
from compare.report.wording import counted
from compare.step.observation import Observation, to_numpy
from compare.step.stage import Stage
from compare.torch_side.program_run import OneOptimizer, TorchProgramRun
from compare.verdict.divergence import Cause
from compare.verdict.following import Followed
from compare.verdict.ratio import FACTOR
from compare.weights.links import WeightMap, to_jax


@dataclasses.dataclass(frozen=True)
class Programs:
    """What starts the runs of two programs."""

    links: WeightMap
    stepper: Stepper
    torch: Callable[[str], TorchProgramRun]
    jax: Callable[[], JaxProgramRun]
    """Starts the run in float64 that is compiled already."""
    accumulated: bool = False
    """Whether the JAX side's optimizer is given gradients as torch's backward pass leaves them."""


def explained_update(programs: Programs, followed: Followed, pairing: Pairing) -> Explained:
    """Find what brings the updates of the optimizer that a pairing belongs to to the JAX side's."""
    parameter, run = _trained(pairing), programs.torch("float64")
    name = next((name for name in run.optimizers if parameter in OneOptimizer(run, name).parameters), None)
    if name is None:
        return Explained()
    evidence = _evidence(programs, followed, run, name)
    return explain_update(evidence, lambda dtype: OneOptimizer(programs.torch(dtype), name))


def in_proportion(followed: Followed, steps: Iterable[tuple[object, Observation, Observation]]) -> Cause | None:
    """Say so if the JAX step's updates are a multiple of those that torch's step makes by hand, at every step.

    Args:
        followed: What following both sides has found.
        steps: Of both sides, each from torch's weights.

    """
    pairs = zip(followed.pairings, followed.quantities, strict=True)
    updates = [(pairing, quantity) for pairing, quantity in pairs if pairing.stage == Stage.UPDATE and pairing.operands]
    factor, numbers = 0.0, 0
    for step, (_, torch, jax) in enumerate(steps):
        for pairing, quantity in updates:
            ours, theirs = pairing.torch_array(torch), pairing.jax_array(jax)
            if not factor and ours.any():
                factor = float(np.vdot(ours, theirs) / np.vdot(ours, ours))
            near = max(FACTOR * float(quantity.expected[step]), EXACTLY)
            if distance(theirs, factor * ours, otherwise=norm(ours)) > near:
                return None
            numbers += int(np.count_nonzero(ours))
    factor = float(f"{factor:.9g}")
    if factor in (0, 1) or numbers < CONFIRMED:
        return None
    says = f"each update of the JAX step is {factor:g} times torch's, for every parameter that torch trains, at "
    return Cause("size of the updates", f"{says}{counted(followed.steps, 'step')}", f"divide the updates by {factor:g}")


EXACTLY = 1e-9
"""How far updates may be from a multiple of torch's: the factor is fitted to one of them."""

CONFIRMED = 3
"""How many numbers must have the factor: the one that it may be fitted to, and two that confirm it."""


def _trained(pairing: Pairing) -> str:
    """Name the parameter of torch's that a pairing belongs to, the first of several that add up, such as two biases."""
    return pairing.link.torch if pairing.link else pairing.subjects(0)[0].partition("[")[0]


def _evidence(programs: Programs, followed: Followed, run: TorchProgramRun, name: str) -> Evidence | None:
    """Take all steps, each of the JAX side's from torch's weights, optimizer state and gradients."""
    view, links = OneOptimizer(run, name), programs.links
    pairs = [
        (pairing, quantity)
        for pairing, quantity in zip(followed.pairings, followed.quantities, strict=True)
        if pairing.stage == Stage.UPDATE and _trained(pairing) in view.parameters
    ]
    recorder, jax = Recorder(view, pairs, followed.steps), programs.jax()
    slots = [each for each in followed.pairings if each.stage == Stage.UPDATE and each.operands is None]
    roots = {name.partition(".")[0] for name in view.parameters}
    left = (link for link in links if link.torch in run.parameters and link.torch not in run.trained)
    recorder.evidence.untrained = [link.jax for link in left if link.torch.partition(".")[0] in roots]
    stream = programs.stepper.whole(run)
    names: dict[str, str] = {}
    for number in range(followed.steps):
        before = Observation(optimizer=run.optimizer_state())
        jax.load(to_jax(links, run.arrays(), jax.arrays()))
        if number:
            own = jax.state_arrays()
            made = jax_state(slots, before, {full: own[name] for full, name in names.items() if name in own})
            jax.load({names[full]: array for full, array in made.items()})
        seen = next(stream)
        # An optimizer that is stepped twice within a step has two updates, of which only the sum is seen.
        if any("#" in gradient for gradient in seen.gradients):
            return None
        if programs.accumulated:  # the JAX side's optimizer does with them what torch does before
            seen = seen._replace(gradients={**seen.gradients, **seen.accumulated})
        gradients = {key: to_numpy(value) for key, value in seen.gradients.items()}
        shared = [dataclasses.replace(link, adds=False) for link in links if link.torch in gradients]
        batch = programs.stepper.batches[number % len(programs.stepper.batches)]
        given = {link.jax for link in shared}
        arrays = {key: array for key, array in to_jax(shared, gradients, jax.arrays()).items() if key in given}
        shown = jax.step(batch, programs.stepper.draws[number], Given(gradients=arrays))
        names = names or slot_names(links, seen, shown)
        recorder.add(seen, shown)
    return recorder.evidence
