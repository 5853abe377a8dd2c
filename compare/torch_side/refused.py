"""Checks, before it runs, what a kernel of CUDA asserts: indices in range, and probabilities from 0 to 1.

The CPU raises an error where one is not. On a GPU, an assertion fails, and afterwards every call of CUDA in this
process fails, those of JAX too. A check runs models on inputs that their authors did not choose, such as longer
sequences, so it looks first.
"""

from collections.abc import Callable, Iterator, Mapping
from typing import TYPE_CHECKING, Any

from compare.step.user_code import passes_on

if TYPE_CHECKING:
    import torch

Given = Mapping[str, Any]
"""The arguments of an operation, by the names in its schema."""

Bounds = Iterator[tuple["torch.Tensor", int, int]]
"""Values, with the lowest and the highest number that they may be."""


@passes_on
def refuse_what_asserts(operation: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
    """Raise the CPU's error where a kernel of CUDA would fail with an assertion.

    Args:
        operation: Of aten.
        args: By position, as the dispatcher has them.
        kwargs: By name.

    Raises:
        IndexError: For an index that is out of range.
        RuntimeError: For one too, from some operations, and for a number that is no probability.

    """
    bounds_of = _BOUNDS.get(operation.overloadpacket.__name__.rstrip("_"))
    if bounds_of is None:
        return
    given = {**dict(zip((each.name for each in operation._schema.arguments), args, strict=False)), **kwargs}
    # NaN is not within any bounds.
    if not all(bool(((values >= low) & (values <= high)).all()) for values, low, high in bounds_of(given)):
        operation(*_on_cpu(args), **_on_cpu(kwargs))


def _on_cpu(tree: Any) -> Any:
    """Copy the tensors among the arguments of an operation to the CPU."""
    if isinstance(tree, list | tuple):
        return type(tree)(map(_on_cpu, tree))
    if isinstance(tree, dict):
        return {name: _on_cpu(value) for name, value in tree.items()}
    return tree.to("cpu", copy=True) if hasattr(tree, "detach") else tree


def _rows(given: Given) -> Bounds:
    """Give the numbers of rows of a table."""
    yield given["indices"], 0, len(given["weight"]) - 1


def _along_axis(given: Given) -> Bounds:
    """Give the positions along one axis."""
    yield given["index"], 0, _size(given) - 1


def _from_either_end(given: Given) -> Bounds:
    """Give the positions along one axis; a negative one counts from its end."""
    size = _size(given)
    yield given["index"], -size, size - 1


def _size(given: Given) -> int:
    tensor = given["self"]
    return tensor.shape[given["dim"]] if tensor.ndim else 1


def _of_all_elements(given: Given) -> Bounds:
    """Give the positions in a tensor that is read as if it had one axis."""
    size = given["self"].numel()
    yield given["index"], -size, size - 1


def _several_axes(given: Given) -> Bounds:
    """Give the positions along each axis that is indexed by whole numbers."""
    import torch

    axis = 0
    for index in given["indices"]:
        if index is None:
            axis += 1
        elif index.dtype in (torch.bool, torch.uint8):  # a mask has as many axes as it indexes
            axis += index.ndim
        else:
            size = given["self"].shape[axis]
            yield index, -size, size - 1
            axis += 1


def _classes(given: Given) -> Bounds:
    """Give the labels of the samples that are not ignored."""
    scores, labels = given["self"], given["target"]
    yield labels[labels != given.get("ignore_index", -100)], 0, scores.shape[min(1, scores.ndim - 1)] - 1


def _probabilities(given: Given) -> Bounds:
    """Give the predicted probabilities, and those that they are compared with."""
    yield given["self"], 0, 1
    yield given["target"], 0, 1


_ALONG_AXIS = ("index_select", "gather", "scatter", "scatter_add", "scatter_reduce", "index_add", "index_copy")

_BOUNDS: dict[str, Callable[[Given], Bounds]] = {
    "embedding": _rows,
    "_embedding_bag": _rows,
    **dict.fromkeys((*_ALONG_AXIS, "index_reduce"), _along_axis),
    "index_fill": _from_either_end,
    **dict.fromkeys(("index", "_unsafe_index", "index_put", "_index_put_impl", "_unsafe_index_put"), _several_axes),
    **dict.fromkeys(("take", "put"), _of_all_elements),
    **dict.fromkeys(("nll_loss_forward", "nll_loss2d_forward", "multi_margin_loss"), _classes),
    "binary_cross_entropy": _probabilities,
}
"""By the operation's name, without the underscore of what overwrites its argument."""
