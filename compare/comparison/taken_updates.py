"""Replaces the updates of one of torch's optimizers by the port's, to find what differs besides that optimizer.

An optimizer that differs moves all weights that it trains, and with them everything at later steps. With the updates of
the port in their place, both sides go on from the same weights: what differs then is independent of that optimizer.
"""

import contextlib
import functools
from collections.abc import Callable, Iterator, Mapping, Sequence

import numpy as np

from compare.alignment.pairings import Pairing
from compare.diagnosis.steps.edit import Edit
from compare.step.observation import Observation, to_numpy
from compare.torch_side.program_run import OneOptimizer, TorchProgramRun
from compare.weights.links import WeightMap, to_torch

Both = Callable[[Sequence[Edit]], Iterator[tuple[TorchProgramRun, Observation, Observation]]]
"""Takes the steps of both sides, torch's with edits."""

_Values = Mapping[str, np.ndarray]
"""The weights of the optimizer after a step, by torch's names."""


def taken_updates(both: Both, links: WeightMap, edits: Sequence[Edit], pairing: Pairing, steps: int) -> Edit | None:
    """Make the edit that gives the weights of a pairing's optimizer the port's values after each of its steps.

    None where that cannot be done: the optimizer is stepped twice within a step, or the step changes the weights again.
    """
    parameter = pairing.link.torch if pairing.link else pairing.torch.partition(" + ")[0]
    taken: list[_Values] = []
    name, own = "", frozenset[str]()
    for _, (run, torch, jax) in zip(range(steps), both(edits), strict=False):
        views = {each: frozenset(OneOptimizer(run, each).parameters) for each in run.optimizers}
        name = next((each for each, parameters in views.items() if parameter in parameters), "")
        if not name or any("#" in gradient for gradient in torch.gradients):
            return None
        own = views[name]
        # Of those that do not require a gradient, torch's optimizer leaves all as they are.
        linked = [link for link in links if link.torch in own & torch.parameters.keys() and link.jax in jax.parameters]
        arrays = {link.jax: to_numpy(jax.parameters[link.jax]) for link in linked}
        like = {link.torch: to_numpy(torch.parameters[link.torch]) for link in linked}
        taken.append(to_torch(linked, arrays, like))
    edit = Edit(name, "", "", during=functools.partial(_taking, name=name, taken=taken), hides=own)
    return edit if taken and _holds(both([*edits, edit]), taken) else None


@contextlib.contextmanager
def _taking(run: TorchProgramRun, name: str, taken: Sequence[_Values]) -> Iterator[None]:
    """Replace an optimizer's new weights by given values, at each step."""
    values = taken[run.taken]
    handle = run.optimizers[name].register_step_post_hook(lambda *_: run.load(values))
    try:
        yield
    finally:
        handle.remove()


def _holds(both: Iterator[tuple[TorchProgramRun, Observation, Observation]], taken: Sequence[_Values]) -> bool:
    """Return whether the weights have the port's values at the end of each step.

    They have not if the user's step changes them after the optimizer, as by a decay of its own: the values that the
    port has at the end of its step are then none that its optimizer made.
    """
    return all(
        np.array_equal(to_numpy(torch.parameters[name]), value)
        for values, (_, torch, _) in zip(taken, both, strict=False)
        for name, value in values.items()
    )
