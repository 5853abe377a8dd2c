"""Gradients that are a multiple of torch's: summed where torch averages, or with another sign."""

import contextlib
import re
from collections.abc import Collection, Iterator, Sequence
from typing import Any

import numpy as np

from compare.diagnosis.steps.edit import Difference, Edit
from compare.numerics.distance import distance
from compare.torch_side.program_run import TorchProgramRun
from compare.verdict.fix import Code, source


def edits(
    found: Difference, gradients: Sequence[Difference], equal: Sequence[Difference], sizes: Collection[int]
) -> Iterator[Edit]:
    """Yield the factor that the JAX side's gradients have over torch's, if all that differ at this step have the same.

    Args:
        found: What differs first, a gradient.
        gradients: All gradients of this step that differ.
        equal: Those that do not. Where some are of the same model, a factor for all of them would be no fix.
        sizes: Of the batches' first axes.

    """
    if not found.torch.any() or found.torch.size < 2:
        return
    # Least squares: f minimizes ‖f · torch - jax‖.
    factor = float(np.vdot(found.torch, found.jax) / np.vdot(found.torch, found.torch))
    # A count of micro-batches or of devices is a whole number, and its inverse the other mistake. Any other factor has
    # many explanations, of which this one would be a guess.
    whole = round(factor) if abs(factor) >= 1 else 0
    share = round(1 / factor) if factor and abs(factor) < 1 else 0
    exact = float(whole) if whole else 1 / share if share else 0.0
    if exact in (0.0, 1.0) or abs(exact - factor) > 1e-9 * abs(exact):
        # A number of batches or devices, or a sign, has a known meaning. Any other factor may be a coincidence.
        return
    # Every gradient that differs must have this very factor: one number, fitted to one tensor, is confirmed by all
    # others.
    if any(distance(exact * each.torch, each.jax) > each.near for each in gradients):
        return
    names = frozenset(each.name for each in gradients)
    some = {_model(each) for each in gradients} & {_model(each) for each in equal}
    explanation, (fix, code) = _explanation(exact, whole, share), _fix(exact, sizes)
    if some:
        code = None
        which = ", ".join(each.name for each in gradients)
        explanation = f"the JAX side's optimizer is given {exact:.12g} times torch's gradients of {which} alone"
        fix = f"multiply the gradients of {which} by {source(1 / exact)} on the JAX side"
    yield Edit(
        name="gradient sign" if exact == -1 else "gradient scale",
        explanation=explanation,
        fix=fix,
        during=lambda run: _scaled(run, exact, names),
        free=1,
        code=code,
        agrees=2,  # behind weights that are zero at first, what the forward pass scales shows in one gradient alone
    )


def _model(gradient: Difference) -> str:
    return gradient.name.partition(".")[0]


def _explanation(exact: float, whole: int, share: int) -> str:
    if exact == -1:
        return "the JAX side's optimizer is given torch's gradients with the opposite sign"
    if whole:
        says = f"{whole} times torch's gradients: a sum over {abs(whole)} parts instead of their mean"
    else:
        says = f"torch's gradients divided by {share}: a mean over {abs(share)} parts instead of their sum"
    return f"the JAX side's optimizer gets {says}"


def _fix(exact: float, sizes: Collection[int]) -> tuple[str, Code | None]:
    change, count = "jnp.negative", round(max(abs(exact), abs(1 / exact)))
    if exact != -1:
        change = f"lambda leaf: leaf {'/' if abs(exact) > 1 else '*'} {'-' * (exact < 0)}{count}"
    return changed_gradients(f"jax.tree.map({change}, gradients)", count, sizes)


def changed_gradients(change: str, count: int, sizes: Collection[int]) -> tuple[str, Code | None]:
    """Return a change of the gradients by a number of parts: as text, and as a value if the number is constant.

    A number that may be the size of a batch is another one with another batch, and no patch can have it.
    """
    if count in sizes:
        general = re.sub(rf"\b{count}\b", "parts", change)
        return f"gradients = {general}, with parts = {count} for these batches", None
    return (text := f"gradients = {change}"), Code(around=change, words=text)


@contextlib.contextmanager
def _scaled(run: TorchProgramRun, factor: float, names: frozenset[str]) -> Iterator[None]:
    """Multiply what optimizers are given of some parameters."""

    def scale(optimizer: Any, *_: Any) -> None:
        for group in optimizer.param_groups:
            for parameter in group["params"]:
                if parameter.grad is not None and run.name_of(parameter) in names:
                    parameter.grad.mul_(factor)

    with contextlib.ExitStack() as stack:
        for optimizer in run.optimizers.values():
            stack.callback(optimizer.register_step_pre_hook(scale).remove)
        yield
