"""Tells what a cause explains where every module of torch's is given what it has without the cause.

The JAX side's modules are given torch's values, so that a difference shows only in the part that causes it. A value
that is also used outside of modules, as by a residual connection, carries the difference past them. Torch's step with
the cause is then run in the same way: with its modules' own values from before.
"""

import contextlib
from collections import Counter
from collections.abc import Collection, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from compare.diagnosis.changes import Changed
from compare.diagnosis.experiment import seen_with
from compare.diagnosis.rewriting import Rerun
from compare.errors import InputError, Signal
from compare.numerics.distance import distance
from compare.step.observation import Port, to_numpy
from compare.torch_side.record import leaves, replaced

if TYPE_CHECKING:
    import torch


def explains_held(
    rerun: Rerun,
    changed: Sequence[Changed],
    given: Collection[Port],
    limit: float,
    values: Sequence[tuple[Port, np.ndarray]],
) -> bool:
    """Tell whether torch has these values with a cause, where its modules take and give what they do without it.

    Args:
        rerun: The part of torch's step in which the cause is.
        changed: The changes of its calls that are the cause.
        given: The inputs and outputs that the JAX side is given.
        limit: The distance up to which values are equal.
        values: What the JAX side has at ports of torch's.

    """
    try:
        before = {port: tensor.clone() for port, tensor in rerun.to_the_end()({}).forward.items() if port in given}
    except (Signal, InputError):
        return False
    for everywhere in (False, True):
        with holding(rerun.model, before) as computed:
            seen = seen_with(rerun, changed, everywhere=everywhere)
        ours = [(computed.get(port, (seen or {}).get(port)), theirs) for port, theirs in values]
        if all(one is not None and _near(to_numpy(one), theirs, limit) for one, theirs in ours):
            return True
    return False


def _near(ours: np.ndarray, theirs: np.ndarray, limit: float) -> bool:
    return ours.shape == theirs.shape and distance(np.asarray(ours, np.float64), theirs) <= limit


@contextlib.contextmanager
def holding(model: "torch.nn.Module", values: Mapping[Port, "torch.Tensor"]) -> "Iterator[dict[Port, torch.Tensor]]":
    """Give modules these values for what they take, and these in place of what they give, while this lasts.

    Yields:
        What the modules gave by themselves, filled as they run.

    """
    computed: dict[Port, torch.Tensor] = {}
    begun: Counter[str] = Counter()
    open_calls: list[tuple[str, int]] = []
    handles = []

    def held(path: str, call: int, kind: str, tree: Any) -> Any:
        for leaf, tensor in leaves(tree):
            port = Port(path, call, kind, leaf)
            if port in values:
                computed[port] = tensor.detach()
                tree = replaced(tree, tensor, values[port].to(tensor.device, tensor.dtype))
        return tree

    def enter(path: str) -> Any:
        def hook(_module: Any, args: Any, kwargs: Any) -> Any:
            open_calls.append((path, begun[path]))
            begun[path] += 1
            return held(*open_calls[-1], "input", (args, kwargs))

        return hook

    def leave(path: str) -> Any:
        def hook(_module: Any, _args: Any, output: Any) -> Any:
            ended = open_calls.pop()
            while ended[0] != path:  # the model caught an error in it, and went on
                ended = open_calls.pop()
            return held(*ended, "output", output)

        return hook

    for path in {port.path for port in values}:
        module = model.get_submodule(path)
        handles += [
            module.register_forward_pre_hook(enter(path), with_kwargs=True),
            module.register_forward_hook(leave(path)),
        ]
    try:
        yield computed
    finally:
        for handle in handles:
            handle.remove()
