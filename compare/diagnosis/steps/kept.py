"""Tensors of the state that a step changes by a rule of its own, such as statistics: left alone, or moved farther."""

from collections.abc import Iterator, Mapping
from itertools import pairwise
from typing import Any

import numpy as np

from compare.diagnosis.steps.averages import NEAR, History
from compare.diagnosis.steps.edit import Difference, Edit, StateTensor, Tensors
from compare.numerics.distance import distance
from compare.torch_side.program_run import TorchProgramRun
from compare.weights.links import Parts

FROZEN = "put all of it into optax.multi_transform, with optax.set_to_zero() for what torch does not train"
"""The rest of a fix. A transformation that is chained with optax.multi_transform may change what that leaves alone."""


def edits(found: Difference, jax: History, momenta: Mapping[str, float]) -> Iterator[Edit]:
    """Yield what the JAX step can have done to a tensor in the place of torch's change.

    Args:
        found: What differs first.
        jax: The JAX side's tensors.
        momenta: The momentum of the norm that each tensor belongs to, as torch counts it.

    """
    root = found.name.partition(".")[0]
    own = {
        name: tensor
        for name, tensor in found.tensors.items()
        if name.partition(".")[0] == root and distance(tensor.jax, tensor.torch) > tensor.near
    }
    if found.name not in own:
        return
    still = frozenset(
        name
        for name, each in own.items()
        if all(distance(after[name], before[name]) <= each.near for before, after in pairwise(jax))
    )
    if found.name in still:
        yield Edit(
            name="not updated",
            explanation=f"torch changes {_listed(still)} in the step, and the JAX step leaves it as it is",
            fix="update it as torch does, and return its new value with the state, as nnx.merge or has_aux=True does",
            after=lambda run, before: _moved(run, before, still, 0.0),
        )
        return
    share = _share(own[found.name])
    if share is None or abs(share) <= NEAR:  # the port leaves it as it is at this step, and changes it at others
        return
    moved = frozenset(name for name, each in own.items() if _is_moved(each, share))
    momentum = momenta.get(found.name)
    if momentum is not None and not 0 <= share * momentum <= 1:
        return  # no norm has such a momentum: the statistics may be another one's
    if found.name in moved and len(moved) == len(own):
        yield Edit(
            name="share of the new value" if momentum is None else "running statistics' momentum",
            explanation=f"each step of the JAX side changes {_listed(moved)} {share:.6g} times as much as torch's",
            fix=_fix(momentum, share),
            after=lambda run, before: _moved(run, before, moved, share),
            free=1,
        )


def changed_alone(found: Difference, run: TorchProgramRun, torch: History, jax: History) -> Iterator[Edit]:
    """Yield what torch leaves as it is at all steps, and the JAX side does not. It needs no proof: both are seen.

    Args:
        found: What differs first.
        run: A run of the torch program.
        torch: The torch side's tensors.
        jax: The JAX side's; the same before the first step.

    """
    root = found.name.partition(".")[0]
    own = [name for name in found.tensors if name.partition(".")[0] == root and all(name in each for each in jax)]
    still = [name for name in own if all(np.array_equal(each[name], torch[0][name]) for each in torch)]
    changed = frozenset(name for name in still if not all(np.array_equal(each[name], jax[0][name]) for each in jax))
    if found.name not in changed:
        return
    fix = "return it unchanged"
    if found.name in run.parameters:
        fix = f"leave it out of what the optimizer updates: {FROZEN}"

    def as_jax(run: TorchProgramRun, _: Tensors) -> None:
        now = Parts(run.floating())
        for name in changed:
            now[name].data.copy_(now[name].new_tensor(jax[run.taken][name]).reshape(now[name].shape))

    steps = len(torch) - 1
    yield Edit(
        name="changed on the JAX side alone",
        explanation=f"torch leaves {_listed(changed)} unchanged at all {steps} steps, and the JAX step does not",
        fix=fix,
        after=as_jax,
    )


def _share(tensor: StateTensor) -> float | None:
    """Solve jax - before = share (torch - before); None where too few numbers would confirm it."""
    way = (tensor.torch - tensor.before).ravel()
    size = float(way @ way)
    if way.size < 2 or not size:
        return None
    share = float((tensor.jax - tensor.before).ravel() @ way) / size
    return float(f"{share:.9g}")


def _is_moved(tensor: StateTensor, share: float) -> bool:
    made = tensor.before + share * (tensor.torch - tensor.before)
    return distance(made, tensor.jax) <= max(tensor.near, 1e-8)


def _fix(momentum: float | None, share: float) -> str:
    if momentum is None:
        return f"take {1 / share:.9g} times as much of the new value in each step"
    flax, ports = 1 - momentum, 1 - share * momentum
    return f"momentum={flax:.12g}: Flax's is 1 minus torch's {momentum:.6g}, and the port has {ports:.6g}"


def _moved(run: TorchProgramRun, before: Tensors, names: frozenset[str], share: float) -> None:
    """Let the step have moved some tensors another part of the way."""
    now, old = Parts[Any](run.floating()), Parts(before)
    for name in names:
        if name in now and now[name].shape == old[name].shape:
            now[name].data.copy_(old[name] + share * (now[name].data - old[name]))


def _listed(names: frozenset[str]) -> str:
    ordered = sorted(names)
    return ", ".join(ordered[:3]) + (f" and {len(ordered) - 3} more" if len(ordered) > 3 else "")


def momenta(run: TorchProgramRun) -> dict[str, float]:
    """Return the momentum of the norm that each running statistic belongs to."""
    found: dict[str, float] = {}
    for path, module in run.model.named_modules():
        momentum = getattr(module, "momentum", None)
        if getattr(module, "running_mean", None) is not None and isinstance(momentum, float):
            found |= {f"{path}.{name}": momentum for name in ("running_mean", "running_var")}
    return found
