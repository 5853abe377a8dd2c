"""Tensors that follow the weights: copied at other steps, or with other decays from step to step.

What the JAX side does is read from its own numbers, at all steps: no number is fitted.
"""

from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import replace
from itertools import pairwise

import numpy as np

from compare.diagnosis.steps.averages import NEAR, History, complement, decay_code, decay_of, holds, number, written
from compare.diagnosis.steps.copies import Following, following
from compare.diagnosis.steps.edit import Edit, Tensors
from compare.torch_side.program_run import TorchProgramRun
from compare.weights.links import Parts


def edits(name: str, torch: History, jax: History, trained: Collection[str]) -> Iterator[Edit]:
    """Yield what the JAX side does with a tensor and all others of its root that follow the weights of one model.

    Args:
        name: Of the tensor that differs first.
        torch: The torch side's tensors.
        jax: The JAX side's; the same before the first step.
        trained: The names of the tensors that an optimizer trains.

    """
    for each in following(torch[0], trained):
        if name in each.pairs:
            yield from _followed(each, name, torch, jax)


def _followed(followed: Following, name: str, torch: History, jax: History) -> Iterator[Edit]:
    """Look for other steps at which the weights are followed, or for other decays from step to step."""
    root, other, pairs = followed
    ours, theirs = _decays(torch, name, pairs[name]), _decays(jax, name, pairs[name])
    if ours is None or theirs is None or set(ours) == {1.0} or np.allclose(ours, theirs, rtol=0, atol=NEAR):
        return
    edit = described(root, other, ours, theirs)
    if edit is not None:
        # The decays are those of one tensor. All that follows by them on the torch side must do so by the others; what
        # does not, such as running statistics that a target updates by itself, is left alone.
        same = {own: source for own, source in pairs.items() if follows(torch, own, source, ours)}
        if not all(follows(jax, own, source, theirs) for own, source in same.items()):
            return
        exact = [written(decay) for decay in theirs]
        steps = list(zip(exact, pairwise(jax), strict=True))
        shares = [complement(d, ((old[own], now[f], now[own]) for own, f in same.items())) for d, (old, now) in steps]
        yield replace(edit, after=_Following(same, exact, shares))


def steps_of(decays: Sequence[float]) -> list[int]:
    """List the steps at which a tensor follows the weights."""
    return [step for step, decay in enumerate(decays) if decay != 1]


def described(root: str, other: str, ours: Sequence[float], theirs: Sequence[float]) -> Edit | None:
    """Describe what differs between the decays of two sides: how much a tensor keeps of itself in each step."""
    return _changed_decay(root, other, ours, theirs) or _other_steps(root, other, ours, theirs)


def _changed_decay(root: str, other: str, ours: Sequence[float], theirs: Sequence[float]) -> Edit | None:
    """Describe another decay, at the same steps: one of which some steps only are made, or that changes."""
    at = steps_of(ours)
    if at != steps_of(theirs):
        return None
    one = all(np.ptp([each[step] for step in at]) <= NEAR for each in (ours, theirs))
    if one and len(at) < len(ours):
        kept, their_kept = (each[at[0]] for each in (ours, theirs))
        keeps = f"and the JAX side keeps {number(their_kept)}"
        return Edit(
            "average's decay",
            f"at {at_steps(at)}, torch keeps {number(kept)} of {root} and takes the rest from {other}, {keeps}",
            f"optax.incremental_update(new, old, step_size={number(1 - kept)})",
            free=1,
            code=decay_code(kept, their_kept),
            general=f"torch keeps {number(kept)} of the average and takes the rest from the weights, {keeps}",
        )
    # A decay that is the same at every step is for `averages`.
    return None if one else _from_step_to_step("average's decay", root, other, ours, theirs)


def _other_steps(root: str, other: str, ours: Sequence[float], theirs: Sequence[float]) -> Edit | None:
    """Describe other steps at which a tensor follows the weights."""
    at, their_steps = steps_of(ours), steps_of(theirs)
    if not {*ours, *theirs} <= {0.0, 1.0}:
        return None if at == their_steps else _from_step_to_step("averaged at other steps", root, other, ours, theirs)
    if len(at) == len(ours) and not their_steps:
        return None  # an average that is not updated, which `averages` finds
    does = f"at {at_steps(their_steps)}" if their_steps else "at none of these steps"
    return Edit(
        "copied at other steps",
        f"torch copies {other} to {root} at {at_steps(at)}, and the JAX side {does}",
        f"{chosen(at, len(ours))}, to copy it at the same steps",
    )


def _from_step_to_step(name: str, root: str, other: str, ours: Sequence[float], theirs: Sequence[float]) -> Edit:
    same = np.ptp(ours) <= NEAR
    keeps = f"from step to step, torch keeps {series(ours)} of {root} and takes the rest from {other}"
    changes = ", ".join(_short(1 - decay) for decay in ours)
    fix = f"optax.incremental_update(new, old, step_size), with a step_size that changes as torch's: {changes}"
    if same:
        fix = f"optax.incremental_update(new, old, step_size={number(1 - ours[0])})"
    if same and abs(ours[0]) <= NEAR:
        keeps, fix = f"from step to step, torch copies {other} to {root}", f"copy {other} to {root}, as torch does"
    elif {*map(written, ours)} == {0.0, 1.0}:
        at = steps_of(ours)
        keeps, fix = f"torch copies {other} to {root} at {at_steps(at)}", f"{chosen(at, len(ours))}, to copy it there"
    return Edit(name, f"{keeps}, and the JAX side keeps {series(theirs)}", fix, free=1)


def series(decays: Sequence[float]) -> str:
    """Write the decays of the steps, once if they are all the same."""
    return ", ".join(map(_short, decays[:1] if np.ptp(decays) <= NEAR else decays))


def _short(decay: float) -> str:
    """Write a decay, with six digits where it has more: they are enough to recognize it."""
    exact = number(decay)
    return exact if len(exact) <= len("0.123456") else f"{decay:.6g}"


def _decays(history: History, name: str, source: str) -> list[float] | None:
    """Return how much a tensor keeps of itself in each step, the rest being the weights': 1 where it stays as it was.

    None where it does not follow them at some step.
    """
    decays = []
    for before, now in pairwise(history):
        if np.array_equal(now[name], before[name]):
            decays.append(1.0)
            continue
        decay = decay_of(now[name], before[name], now[source])
        if decay is None or not holds(decay, now[name], before[name], now[source]):
            return None
        decays.append(decay)
    return decays


def moves(history: History, name: str) -> bool:
    """Tell whether a tensor changes at any step."""
    return any(not np.array_equal(now[name], before[name]) for before, now in pairwise(history))


def follows(history: History, own: str, source: str, decays: Sequence[float], *, early: bool = False) -> bool:
    """Tell whether a tensor follows another with these decays at all steps.

    Args:
        history: One side's tensors.
        own: The tensor.
        source: What it follows.
        decays: How much it keeps of itself in each step.
        early: Whether it follows what the other is before the step.

    """
    steps = zip(decays, pairwise(history), strict=True)
    return all(holds(decay, now[own], old[own], (old if early else now)[source]) for decay, (old, now) in steps)


def at_steps(steps: Sequence[int]) -> str:
    """Name steps."""
    return f"step{'s' if len(steps) > 1 else ''} {', '.join(map(str, steps))}"


def chosen(steps: Sequence[int], count: int) -> str:
    """Write the expression that takes new values at these of so many steps, and keeps the old ones at the others."""
    if list(steps) == list(range(count)):
        return "new at every step"
    ways = ((period, offset) for period in range(2, count + 1) for offset in range(period))
    regular = (way for way in ways if len(steps) > 1 and list(range(way[1], count, way[0])) == list(steps))
    period, offset = next(regular, (0, 0))
    counted = f"(count + {period - offset})" if offset else "count"
    condition = f"{counted} % {period} == 0" if period else f"jnp.isin(count, jnp.array({list(steps)}))"
    return f"jax.tree.map(lambda new, old: jnp.where({condition}, new, old), new, old) with a count of the steps from 0"


class _Following:
    """Lets tensors keep as much of themselves, from step to step, as the JAX side's do."""

    def __init__(self, pairs: Mapping[str, str], kept: Sequence[float], taken: Sequence[float]) -> None:
        self.pairs, self.kept, self.taken = pairs, kept, taken

    def __call__(self, run: TorchProgramRun, before: Tensors) -> None:
        now, old, number = Parts(run.floating()), Parts(before), run.taken - 1
        for own, source in self.pairs.items():
            now[own].data.copy_(self.kept[number] * old[own] + self.taken[number] * now[source].data)
