"""Parameters that the two sides update at other steps: read from what both do, with no number and no trial."""

from collections.abc import Sequence

import numpy as np

from compare.comparison.suggested_edits import Reach, Steps
from compare.diagnosis.steps.edit import Edit
from compare.diagnosis.steps.followers import at_steps, where
from compare.step.observation import Observation, to_numpy
from compare.step.stage import Stage
from compare.verdict.divergence import Cause
from compare.verdict.following import Followed


def other_steps(followed: Followed, steps: Steps, edits: Sequence[Edit], reach: Reach) -> Cause | None:
    """Say so if an optimizer is stepped on one side alone at the step at which the two first differ."""
    pairs = [(each.torch, each.jax) for each in followed.pairings if each.stage == Stage.PARAMETERS]
    taken: dict[str, tuple[list[int], list[int]]] = {ours: ([], []) for ours, _ in pairs}
    for number, (_, torch, jax) in zip(range(followed.steps), steps.both(edits), strict=False):
        for ours, theirs in pairs:
            for side, seen, name in ((0, torch, ours), (1, jax, theirs)):
                if _is_updated(seen, name):
                    taken[ours][side].append(number)
    other = {
        name: both for name, both in taken.items() if (reach.step in both[0]) != (reach.step in both[1]) and all(both)
    }
    ways = {(tuple(both[0]), tuple(both[1])) for both in other.values()}
    if len(ways) != 1:
        return None
    at = ways.pop()
    named = ", ".join(dict.fromkeys(name.partition(".")[0] for name in other))
    if any(name.partition(".")[0] in named.split(", ") and name not in other for name in taken):
        return None  # some parameters of a model alone: frozen ones, perhaps
    return Cause(
        "update at other steps",
        f"update at other steps: torch updates {named} at {at_steps(at[0])}, and the JAX side at {at_steps(at[1])}",
        f"update {named} at the same steps: {where(at[0], followed.steps)}",
    )


def _is_updated(seen: Observation, name: str) -> bool:
    """Tell whether an optimizer was given the gradient of a parameter, and has changed it."""
    update = seen.updates.get(name)
    return update is not None and name in seen.gradients and bool(np.any(to_numpy(update)))
