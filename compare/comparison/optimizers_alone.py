"""Many steps of both optimizers without the models: what a schedule does later, and what a count decides.

A step of the whole training is dear, and a check takes few. The optimizers by themselves, given the same gradients,
show the rates of many more steps, on both sides, and anything else that only comes later.
"""

import contextlib
import dataclasses
from collections.abc import Container, Iterable, Iterator

import numpy as np

from compare import bugs
from compare.comparison.model_pair import ModelPair
from compare.errors import InputError
from compare.jax_side.inquiries import updates_alone
from compare.step.observation import to_numpy
from compare.step.stage import Stage
from compare.torch_side.control import ControlledRun
from compare.verdict.divergence import Divergence
from compare.verdict.following import Followed
from compare.verdict.ratio import FACTOR, Quantity
from compare.weights.links import Link, to_jax

MOST = 100
"""Steps of the optimizers alone."""

_ELEMENTS, _TENSORS = 20_000_000, 1_000
"""How many elements and tensors all these steps may update, so that they take no more than about a second."""


def until(later: Divergence, what: str) -> str:
    """Say up to where a match goes; it may be far behind the steps of the check.

    It is no mismatch: after its last step, a schedule of torch's may go on where optax's stays, as a cosine does, and
    nobody trains for so long.
    """
    found = f"up to step {later.step}: from there on {what} differ, first at {later.torch}"
    return f"{found} (they take more steps than the check; steps are counted from 0)"


def later_updates(pair: ModelPair, followed: Followed, gradients: dict[str, np.ndarray]) -> Divergence | None:
    """Take many steps of both optimizers from the same gradients, and give the first at which they differ.

    Args:
        pair: Both sides.
        followed: What whole steps have shown. Where the optimizers alone do not repeat it, nothing is concluded.
        gradients: The torch side's at the first step, in float64.

    """
    size = sum(gradient.size for gradient in gradients.values())
    # Of a large model fewer steps are taken, and then fewer than the check itself took say nothing new.
    steps = min(MOST, _ELEMENTS // max(size, 1), _TENSORS // max(len(gradients), 1))
    links = _shown([link for link in whole_links(pair.links) if link.torch in gradients], gradients)
    if pair.torch.optimizer is None or steps <= followed.steps or not links:
        return None
    return bugs.attempt("stepping the optimizers alone", lambda: _compared(pair, followed, gradients, links, steps))


def _compared(
    pair: ModelPair, followed: Followed, gradients: dict[str, np.ndarray], links: list[Link], steps: int
) -> Divergence | None:
    # Every parameter gets its gradient, shown or not: a global norm is taken over all of them.
    shared = [link for link in pair.links if link.torch in gradients]
    run = pair.jax_run("float64")
    if any("plateau" in name for name in run.state_names):  # it looks at the loss, which there is none of here
        return None
    zeros = {name: np.zeros_like(array) for name, array in run.arrays().items()}  # for what torch does not train
    given = to_jax([_alike(link) for link in shared], gradients, zeros)
    try:
        shown, of = {link.jax for link in links}, {link.torch for link in links}
        jax = updates_alone(run, {name: given[name] for name in run.param_names}, sizes(steps), shown)
        torch64, torch32 = (list(_torch(pair, dtype, gradients, steps, of)) for dtype in ("float64", "float32"))
    except InputError:  # of the user's own hooks, which may need what only a whole step has
        return None
    known = {each.torch: float(each.expected.max()) for each in followed.quantities if each.stage == Stage.UPDATE}
    first: Divergence | None = None
    for link in links:
        quantity = Quantity(Stage.UPDATE, link.torch, link.jax)
        for number in range(steps):
            ours, parameter = torch64[number][link.torch]
            quantity.add_torch(torch32[number][link.torch][0], ours, parameter)
            quantity.add_difference(jax[link.jax][number], ours, parameter)
        # What is compared here are norms and sums, whose rounding is smaller than a whole update's: the update's own
        # rounding, known from whole steps, counts as well.
        differs = (quantity.ratio > FACTOR) & (np.asarray(quantity.error64) > FACTOR * known.get(link.torch, 0.0))
        if differs.any() and (first is None or differs.argmax() < first.step):
            step = int(differs.argmax())
            rounding, expected = float(quantity.rounding[step]), float(quantity.expected[step])
            names = Stage.UPDATE, link.torch, link.jax
            first = Divergence(step, *names, quantity.error64[step], rounding, expected)
    return None if first is None or first.step < followed.steps else first


def sizes(steps: int) -> np.ndarray:
    """Give by what the gradients are multiplied at each step: some optimizers divide by how far they change.

    In five of twenty steps they are small, so that averages of squares fall: AMSGrad keeps the largest.
    """
    numbers = np.arange(steps)
    factors: np.ndarray = (1 + 0.5 * np.sin(numbers)) * np.where(numbers % 20 < 15, 1.0, 0.01)
    return factors


def whole_links(links: Iterable[Link]) -> list[Link]:
    """List what is one tensor on both sides, in whatever layout."""
    found = [link for link in links if link.compared and not link.adds]
    return [link for link in found if not link.torch_view.index and not link.jax_view.index]


def _shown(links: list[Link], gradients: dict[str, np.ndarray]) -> list[Link]:
    """Choose the smallest parameters, of each number of axes first: what is not shown, XLA does not compute."""
    by_size = sorted(links, key=lambda link: gradients[link.torch].size)
    first = {gradients[link.torch].ndim: link for link in reversed(by_size)}
    return list({link.torch: link for link in (*first.values(), *by_size)}.values())[:_SHOWN]


_SHOWN = 12
"""How many parameters are compared."""


def _alike(link: Link) -> Link:
    return dataclasses.replace(link, adds=False)  # gradients do not add up as values do: see `align_tensors`


def _torch(
    pair: ModelPair, dtype: str, gradients: dict[str, np.ndarray], steps: int, names: Container[str]
) -> Iterator[dict[str, tuple[np.ndarray, np.ndarray]]]:
    """Take torch's steps; each gives what `summed` makes of every update, and of the parameter that it changes."""
    run = pair.torch_run(dtype)
    # In float32 there is nothing to lift, and looking at each operation would take longer than all of them.
    with ControlledRun(lift=True) if run.lifted else contextlib.nullcontext():
        for factor in sizes(steps):
            for name, gradient in gradients.items():
                run.parameters[name].grad = run.tensor(factor * gradient)
            seen = run.update()
            yield {
                name: (summed(to_numpy(update)), summed(to_numpy(seen.parameters[name])))
                for name, update in seen.updates.items()
                if name in names
            }


def summed(update: np.ndarray) -> np.ndarray:
    """Give the norm and the sum of an update, which are the same in any layout."""
    update = update.astype(np.float64)
    return np.array([np.linalg.norm(update.ravel()), update.sum() / np.sqrt(max(update.size, 1))])
