"""Finds what the update of a program remembers among its weights, where the other side has an optimizer for it."""

import itertools
from collections import Counter
from collections.abc import Collection

import numpy as np

from compare.jax_side.program_run import JaxProgramRun
from compare.torch_side.program_run import TorchProgramRun
from compare.weights.roots import SAY_NOTHING


def moments_of_port(port: JaxProgramRun, matched: Collection[str]) -> frozenset[str]:
    """Find what is not `matched` and is no weight: what an optimizer remembers, and what starts at infinity.

    These are trees that are zero at first, and have the names and shapes of parameters, as moments do; and beside them,
    single numbers, or a tree of such with the same names. The parameters are not all zero, or are called so.
    """
    weights = port.weights()
    left = {name: array for name, array in weights.items() if name not in matched}
    zero = {name for name, array in weights.items() if not array.any()}

    def inside(tree: str) -> set[str]:
        return {each for each in weights if each.startswith(tree)}

    found, placed = set[str](), set[tuple[str, str]]()
    for name, other in itertools.product(zero & left.keys(), weights):
        if weights[name].shape == weights[other].shape:
            tree, model = without_common_end(name, other)
            if not tree or tree in (f"{name}/", model) or not inside(tree) <= zero:
                continue
            if not inside(model) <= zero or model.rstrip("/").rpartition("/")[2] in SAY_NOTHING:
                found |= inside(tree)
                place = tree.rstrip("/").rpartition("/")[0]
                placed |= {(place, each.removeprefix(tree)) for each in inside(tree)}
    # Not at the top: a number of the state itself, such as a temperature, may be trained.
    places = {place for place, _ in placed} - {""}
    single = {name for name, array in left.items() if array.size == 1}
    beside = {name for name in single if name.rpartition("/")[0] in places}
    # Torch's optimizers count the steps of each parameter by itself, and so may the port: a tree in the same place.
    beside |= {
        name
        for name, (place, inner) in itertools.product(single, placed)
        if name.startswith(f"{place}/") and name.removeprefix(f"{place}/").partition("/")[2] == inner
    }
    # No weight starts at infinity, as the best loss so far does.
    infinite = {name for name, array in left.items() if array.dtype.kind == "f" and np.isinf(array).any()}
    return frozenset(found | beside | infinite)


def moments_of_torch(run: TorchProgramRun, port: JaxProgramRun) -> frozenset[str]:
    """Find torch's bare tensors in which an update by hand keeps its moments; nothing where that is not certain.

    They are zero at first, and there are as many for each weight that is trained, one for momentum and two for Adam, as
    the port's optimizers have arrays of its size. A single number beside them is what an optimizer of optax counts.
    Anything else may be an average that the port lacks.
    """
    theirs, kept = port.weights(), port.state_arrays()
    zero = {
        name: tensor.numel()
        for name, tensor in run.bare().items()
        if name not in run.trained and not tensor.any() and name.replace(".", "/") not in theirs
    }
    trained = [tensor.numel() for tensor in run.trained_tensors()]
    slots = Counter(array.size for array in kept.values() if array.dtype.kind == "f")
    counts = any(array.dtype.kind in "iu" and not array.ndim for array in kept.values())
    for each in range(1, _MOMENTS + 1):
        moments = Counter(trained * each)
        left = Counter(zero.values()) - moments
        beside = not left or (counts and left == Counter([1]))
        if beside and moments <= Counter(zero.values()) and moments <= slots:
            return frozenset(zero)
    return frozenset()


_MOMENTS = 3
"""The largest number of arrays that an optimizer keeps for each weight, as Adam with amsgrad does."""


def without_common_end(name: str, weight: str) -> tuple[str, str]:
    """Return the beginnings of two paths, without the components in which both end."""
    ours, theirs = name.split("/"), weight.split("/")
    while ours and theirs and ours[-1] == theirs[-1]:
        ours, theirs = ours[:-1], theirs[:-1]
    return "".join(f"{key}/" for key in ours), "".join(f"{key}/" for key in theirs)
