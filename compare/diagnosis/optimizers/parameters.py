"""Optimizers that update other parameters: frozen, masked or left out."""

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import numpy as np

from compare.diagnosis.optimizers.optax_names import TRANSFORMATIONS
from compare.diagnosis.optimizers.update import Updates
from compare.numerics.distance import distance
from compare.verdict.divergence import Cause
from compare.verdict.first_difference import Target

if TYPE_CHECKING:
    import torch


def other_parameters(updates: Updates) -> Cause | None:
    """Find out whether the JAX side decays, or trains, other parameters."""

    def masked(some: Callable[["torch.Tensor"], bool]) -> Callable[[Updates], None]:
        def change(updates: Updates) -> None:
            groups: list[dict[str, Any]] = []
            for group in updates.optimizer.param_groups:
                parts: tuple[list[Any], list[Any]] = ([], [])
                for param in group["params"]:
                    parts[some(param)].append(param)
                groups += [{**group, "params": parts[0]}, {**group, "params": parts[1], "weight_decay": 0.0}]
            updates.optimizer.param_groups[:] = [group for group in groups if group["params"]]

        return change

    original = list(updates.optimizer.param_groups)
    apart = updates.apart(updates({}, change=masked(lambda param: param.dim() < 2)))
    updates.optimizer.param_groups[:] = original
    if apart <= 1:
        return Cause(
            "weight decay mask",
            "weight decay mask: the JAX side decays no biases and scales, and torch all of a parameter group. "
            "With that on the torch side the difference falls to rounding",
            "leave out the mask: torch decays every parameter of a group",
            "https://docs.pytorch.org/docs/stable/optim.html",
        )
    moved = [target for target in updates.targets if target.pairing.stage == "update" and target.pairing.operands]
    still = [target.pairing for target in moved if not target.array.any()]
    wrong = [target for target in moved if updates_differ(updates, target)]
    if still and {id(target.pairing) for target in wrong} <= {id(pairing) for pairing in still}:
        names = ", ".join(pairing.jax for pairing in still[:3])
        return Cause(
            "frozen parameters",
            f"frozen parameters: the JAX side does not update {names}, and torch does",
            "take them out of optax.set_to_zero() or of the mask, or freeze them in torch: requires_grad=False",
            TRANSFORMATIONS,
        )
    untouched = [target.pairing.jax for target in wrong if not _torch_update(updates, target).any()]
    if untouched and len(untouched) == len(wrong):
        return Cause(
            "frozen parameters",
            f"frozen parameters: torch does not update {', '.join(untouched[:3])}, which get no gradient, and the JAX "
            "side does: weight decay shrinks them",
            "give them to optax.set_to_zero() by optax.multi_transform",
            TRANSFORMATIONS,
        )
    return None


def _torch_update(updates: Updates, target: Target) -> np.ndarray:
    given = updates({})
    assert given is not None
    ends = np.cumsum([each.array.size for each in updates.targets])
    return np.split(given, ends[:-1])[[id(each) for each in updates.targets].index(id(target))]


def updates_differ(updates: Updates, target: Target) -> bool:
    """Tell whether torch's update of one parameter is another than the JAX side's."""
    size = float(np.linalg.norm(target.array)) or 1.0
    mine = _torch_update(updates, target).reshape(target.array.shape) * size * target.limit
    return distance(target.array, mine) > target.limit
