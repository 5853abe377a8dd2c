"""What a step of a torch program may change, kept so that the step can be taken again."""

import copy
from collections.abc import Callable, Iterator
from typing import Any

from compare.torch_side.counts import counts
from compare.torch_side.program_run import TorchProgramRun


def snapshot(run: TorchProgramRun) -> Callable[[], None]:
    """Keep the state of a run, and give the function that puts it back.

    What the user's step keeps elsewhere is not put back, but for numbers such as a count in a closure.
    """
    import torch

    count = counts(run.user_step)

    tensors = [*run.kept().values(), *run.state.tensors().values()]
    values = [(tensor, tensor.detach().clone(), _copied(tensor.grad)) for tensor in tensors]
    others = [
        (part, copy.deepcopy(part.state_dict()))
        for part in run.state.parts(object).values()
        if hasattr(part, "load_state_dict") and not isinstance(part, torch.nn.Module)
    ]
    containers = [(each, copy.copy(each)) for each in _containers(run.state.entries)]

    def restore() -> None:
        count()
        for container, before in containers:  # an entry may have been replaced by another
            container.clear()
            container.update(before) if isinstance(container, dict) else container.extend(before)
        for tensor, value, gradient in values:
            tensor.data.copy_(value)
            if tensor.is_leaf:
                tensor.grad = _copied(gradient)
        for part, state in others:
            part.load_state_dict(copy.deepcopy(state))

    return restore


def _copied(gradient: Any) -> Any:
    return None if gradient is None else gradient.detach().clone()


def _containers(tree: Any) -> Iterator[Any]:
    """List the dicts and lists of a state, from the outside in."""
    if isinstance(tree, dict | list):
        yield tree
    for each in tree.values() if isinstance(tree, dict) else tree if isinstance(tree, list | tuple) else ():
        yield from _containers(each)
