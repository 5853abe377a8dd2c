"""What is tried is computed on the CPU, also where the step runs on a GPU.

A change that is only tried may take an index out of range. The CPU raises an IndexError, and the search continues. On
a GPU it is an assertion in a kernel, after which every call of CUDA in this process fails, those of JAX too.
"""

from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import torch


def computed_on_cpu(compute: Callable[[Any, Any], Any], args: Any, kwargs: Any, name: str = "") -> Any:
    """Compute something of these arguments on the CPU, and give the result on the device where they are.

    What `compute` overwrites among them, such as running statistics, is overwritten on that device as well. Gradients
    go through.

    Args:
        compute: Takes arguments like these, which may be on the CPU.
        args: By position.
        kwargs: By name.
        name: Of the function of torch that they are meant for.

    """
    import torch

    copies: list[tuple[torch.Tensor, torch.Tensor, int]] = []

    def moved(tensor: "torch.Tensor") -> "torch.Tensor":
        if tensor.device.type == "cpu":
            return tensor
        copy = tensor.cpu()
        copies.append((tensor, copy, copy._version))
        return copy

    with torch.enable_grad():  # what is computed without gradients has none: the moves decide nothing
        taken = arguments_on_cpu(args, name, moved), arguments_on_cpu(kwargs, name, moved)
    given = compute(*taken)
    if not copies:
        return given
    device = copies[0][0].device
    for tensor, copy, version in copies:
        write_back(tensor, copy, version, name)
    with torch.enable_grad():
        return mapped_arguments(given, lambda item: item.to(device) if isinstance(item, torch.Tensor) else item)


def write_back(tensor: "torch.Tensor", copy: "torch.Tensor", version: int, name: str) -> None:
    """Overwrite a tensor with its copy, if a function of torch has overwritten the copy.

    Args:
        tensor: Where the step runs.
        copy: What the function was given instead.
        version: The copy's before that.
        name: The function's.

    """
    import torch

    # The kernels of norms overwrite running statistics without counting that as another version.
    unseen = name in ("batch_norm", "instance_norm") and not tensor.requires_grad
    if copy._version != version or (unseen and not torch.equal(copy, tensor.to(copy.device))):
        with torch.no_grad():
            tensor.copy_(copy)


def arguments_on_cpu(tree: Any, name: str = "", moved: "Callable[[torch.Tensor], torch.Tensor] | None" = None) -> Any:
    """Return arguments of a function of torch that keep it on the CPU: they may name another device.

    Args:
        tree: The arguments.
        name: The function's. Of `Tensor.to`, a whole number is a device.
        moved: What becomes of a tensor.

    """
    import torch

    def change(item: Any) -> Any:
        if isinstance(item, torch.Tensor):
            return item if moved is None else moved(item)
        if isinstance(item, torch.device) and item.type == "cuda":
            return torch.device("cpu")
        is_device = isinstance(item, str) and item.startswith("cuda")
        return "cpu" if is_device or (name == "to" and type(item) is int) else item

    return mapped_arguments(tree, change)


def stays(tensor: "torch.Tensor", *args: Any, **kwargs: Any) -> "torch.Tensor":
    """Return the tensor itself: what `Tensor.cuda` does on the CPU."""
    del args, kwargs
    return tensor


def mapped_arguments(tree: Any, change: Callable[[Any], Any]) -> Any:
    """Change each argument, also within lists, tuples and dicts; a named tuple is one argument."""
    if isinstance(tree, tuple) and hasattr(tree, "_fields"):
        return tree
    if isinstance(tree, Mapping):
        return {key: mapped_arguments(value, change) for key, value in tree.items()}
    if isinstance(tree, tuple | list):
        return type(tree)([mapped_arguments(value, change) for value in tree])
    return change(tree)
