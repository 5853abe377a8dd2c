"""Checks that a match has substance: what decides the verdict, what was reached, and what nothing exercises."""

from collections.abc import Collection, Iterable, Iterator, Mapping

import numpy as np

from compare.comparison.model_pair import ModelPair
from compare.report.wording import counted
from compare.step.batch import Batch
from compare.step.stage import Stage
from compare.verdict.divergence import Cause
from compare.verdict.following import Followed
from compare.verdict.ratio import Quantity
from compare.weights.links import LEFT_OUT, TABLE, WeightMap

_COMPUTED = (Stage.FORWARD, Stage.LOSS, Stage.GRADIENT, Stage.UPDATE)
"""Stages whose numbers both sides compute. Others may hold infinities for good reasons, such as a mask."""


def without_substance(pair: ModelPair, followed: Followed) -> list[Cause]:
    """Say why a match of what was followed would prove nothing; an empty list if it does."""
    deciding = [quantity for quantity in followed.quantities if quantity.decides]
    found = []
    if pair.parameters and not any(link.compared for link in pair.links):
        found.append(
            Cause(
                "no weight is paired",
                "the torch model has parameters, but none of them is compared with one of the JAX side",
                "leave out weights=, or name partners in it",
            )
        )
    outputs = _of(deciding, Stage.FORWARD)
    if not outputs and not _of(deciding, Stage.LOSS):
        found.append(Cause("no output decides", "no output of one model is compared with an output of the other", ""))
    if broken := [each for each in deciding if each.stage in _COMPUTED and _nan(each)]:
        found.append(
            Cause(
                "NaN on both sides",
                f"{_named(broken)}: NaN on both sides proves nothing about the port",
                "give weights and batches for which the torch side is finite",
            )
        )
    elif outputs and all(np.isinf(_sizes(each)).all() for each in outputs):
        found.append(Cause("infinity on both sides", f"{_named(outputs)}: no output is finite", ""))
    return found


def gradients_of_zero(runs: Iterable[Followed]) -> list[Cause]:
    """Say so if every gradient is zero in all runs: then nothing shows how the port learns."""
    gradients = [each for followed in runs for each in _of(followed.quantities, Stage.GRADIENT)]
    if not gradients or any(_sizes(each).any() for each in gradients):
        return []
    return [
        Cause(
            "every gradient is zero",
            "the torch side's gradient of every parameter that is compared is zero at every step",
            "give batches on which the loss depends on the weights",
        )
    ]


def constant_outputs(followed: Followed, other: Followed) -> list[Cause]:
    """Say so if no output changes with weights and batches: any constant would match."""
    before = {(each.torch, each.jax): each for each in _of(followed.quantities, Stage.FORWARD) if each.decides}
    pairs = [
        (before[each.torch, each.jax], each)
        for each in _of(other.quantities, Stage.FORWARD)
        if (each.torch, each.jax) in before
    ]
    # Normalised features have the same norm everywhere, and a gradient says that the loss depends on what comes before.
    trained = any(_sizes(each).any() for each in _of(followed.quantities, Stage.GRADIENT))
    if not pairs or trained or any(one.sizes[0] != two.sizes[0] for one, two in pairs):
        return []
    return [
        Cause(
            "the outputs depend on nothing",
            f"{_named([one for one, _ in pairs])}: torch returns the same from other weights and on other batches",
            "give weights and batches on which the output depends",
        )
    ]


def not_reached(pair: ModelPair, followed: Followed, steps: int, change: int | None) -> list[str]:
    """Return what a match does not cover, for its headline.

    Args:
        pair: Both sides.
        followed: What the steps have shown.
        steps: How many were asked for.
        change: Before which step torch's settings first change; None if they do not.

    """
    found = []
    if pair.torch.optimizer is not None:
        if steps == 1:
            found.append("in 1 step: momentum and schedule not reached")
        elif change is not None and change >= steps:
            found.append(f"in {counted(steps, 'step')}: the schedule's first change, at step {change}, is not reached")
        found += without_updates(followed)
    found += of_these_values(pair.links, pair.parameters, followed)
    if infinite := [e for e in _of(followed.quantities, *_COMPUTED) if e.decides and np.isinf(_sizes(e)).any()]:
        found.append(f"with infinity on both sides in {_named(infinite)}")
    return found


_ALONE = {LEFT_OUT: "which weights= leaves out", TABLE: "which the port does not have"}


def of_these_values(links: WeightMap, parameters: Collection[str], followed: Followed) -> list[str]:
    """Say so where parameters of torch's have no partner, and nothing compares their gradients with zero."""
    held = {each.torch for each in _of(followed.quantities, Stage.GRADIENT)}
    found = []
    for reason, says in _ALONE.items():
        # A name may be that of a part, as "bias_hh_l0[14:21]".
        left = [name for name, why in links.apart.items() if why == reason and name.partition("[")[0] in parameters]
        names = [name for name in left if name not in held]
        found += [f"with these values of {_shortened(names)} alone, {says}"] if names else []
    return found


def without_updates(followed: Followed) -> list[str]:
    """Say so if no update changes anything."""
    # What else an update shows, the optimizer's state, is a difference of nothing.
    updates = [each for each in _of(followed.quantities, Stage.UPDATE) if any(whole for _, whole in each.sizes)]
    if not updates or any(_sizes(each).any() for each in updates):
        return []
    return [
        "without any update: no parameter was changed, as with a learning rate of 0, or before "
        "gradients that are accumulated are used: take more steps"
    ]


RESOLVED = 1e-5
"""The relative difference that float64 must be able to show of an output at one step at least."""


def unresolved(followed: Followed) -> list[str]:
    """Say so where rounding alone moves an output at every step, as where numbers are rounded to a few levels.

    Weights that quantization divides by their own maximum lie halfway between two levels, and each rounding error sends
    them to one or the other. Differences below that do not show.
    """
    shown = [each for each in _of(followed.quantities, Stage.FORWARD, Stage.LOSS, Stage.SHOWN) if each.decides]
    least = {each.torch: float(each.expected_alone.min()) for each in shown if _sizes(each).all()}
    name = max(least, key=lambda each: least[each], default="")
    if not name or least[name] <= RESOLVED:
        return []
    return [f"as far as rounding allows: in float64, rounding alone moves {name} by {least[name]:.0e}"]


def never_reached(reached: Mapping[str, bool]) -> list[str]:
    """Name what torch's program does with some data only, where no data is such."""
    return [f"{what}; use a batch with other values" for what, met in reached.items() if not met]


def not_exercised(
    links: WeightMap, seen: Iterable[Followed], batches: Iterable[Batch], reached: Mapping[str, bool]
) -> list[str]:
    """Return what no batch and no weight exercises, a line each, with what would.

    Args:
        links: Which weights of torch's are compared.
        seen: What the steps have shown, from all weights and batches.
        batches: Of the check.
        reached: What torch's program does with some data only, and whether any data was such.

    """
    lines = [*_without_gradient(links, seen), *constant_inputs(batches), *never_reached(reached)]
    return list(dict.fromkeys(lines))


def _without_gradient(links: WeightMap, seen: Iterable[Followed]) -> list[str]:
    compared = [link.torch for link in links if link.compared]
    still = [name for name in dict.fromkeys(compared) if all(name in followed.still for followed in seen)]
    says = "the gradient is zero at every step; use batches on which the loss depends on it"
    return [f"{_shortened(still)}: {says}"] if still else []


def constant_inputs(batches: Iterable[Batch]) -> Iterator[str]:
    """Name inputs that are constant, flags that are all set, and axes of length one."""
    for what, part in (("inputs", 0), ("target", 1)):
        arrays = [dict(_leaves(batch[part], what)) for batch in batches]
        for name, first in arrays[0].items():
            same = [each[name] for each in arrays if name in each]
            values = {value for array in same for value in np.unique(array)[:3].tolist()}
            if len(values) == 1 and first.size > 1:
                yield f"{name}: all its elements are {values.pop():g}; use a batch with other values"
            if 1 in first.shape and all(array.shape == first.shape for array in same) and first.size > 1:
                yield f"axis {first.shape.index(1)} of {name} has length one; use a batch in which it is longer"


def _leaves(tree: object, name: str) -> Iterator[tuple[str, np.ndarray]]:
    import jax

    leaves = jax.tree_util.tree_flatten_with_path(tree)[0]
    arrays = [(path, leaf) for path, leaf in leaves if isinstance(leaf, np.ndarray)]
    for path, array in arrays:
        yield name if len(arrays) == 1 else f"{name}{jax.tree_util.keystr(path)}", array


def _of(quantities: Iterable[Quantity], *stages: Stage) -> list[Quantity]:
    return [quantity for quantity in quantities if quantity.stage in stages]


def _sizes(quantity: Quantity) -> np.ndarray:
    return np.array([size for size, _ in quantity.sizes])


def _nan(quantity: Quantity) -> bool:
    return bool(np.isnan(_sizes(quantity)).any())


def _named(quantities: list[Quantity]) -> str:
    return _shortened([quantity.torch for quantity in quantities])


def _shortened(names: list[str]) -> str:
    return ", ".join(names[:3]) + (f" and {len(names) - 3} more" if len(names) > 3 else "")
