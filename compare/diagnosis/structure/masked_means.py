"""Edits of means with a mask: over what it keeps, over everything, and row by row."""

from collections.abc import Iterator
from typing import TYPE_CHECKING, Any, NamedTuple

from compare.diagnosis.structure.edit import SILENT, Context, Edit, Kind, few_numbers, one, shown
from compare.diagnosis.structure.graph import Node, Operation, Ref, memory
from compare.diagnosis.structure.reductions import Reduction, reduction

if TYPE_CHECKING:
    import torch

_BY_LABELS = ("cross_entropy", "nll_loss")
_ELEMENTWISE = ("mse_loss", "l1_loss", "smooth_l1_loss", "huber_loss", "binary_cross_entropy")
_LOSSES = (*_BY_LABELS, *_ELEMENTWISE, "binary_cross_entropy_with_logits")
"""Losses that are means of one number for each label, or for each element."""


class _Mean(NamedTuple):
    """What an operation takes the mean of."""

    shape: tuple[int, ...]
    axes: tuple[int, ...]
    keepdim: bool = False


def _mean(context: Context, node: Node) -> _Mean | None:
    """Tell what an operation takes the mean of; None if it takes no mean."""
    if node.name in _LOSSES and node.kwargs.get("reduction", "mean") == "mean" and node.kwargs.get("weight") is None:
        of = node.args[1 if node.name in _BY_LABELS else 0]
        shape = tuple(context.value(of.number).shape) if isinstance(of, Ref) else ()
        return _Mean(shape, tuple(range(len(shape))))
    given = reduction(context, node) if node.name == "mean" else None
    if given is None:
        return None
    return _Mean(tuple(context.value(node.args[0].number).shape), given.axes, given.keepdim)


def _elements(operation: Operation) -> "torch.Tensor":
    """Compute what an operation takes the mean of."""
    if operation.node.name in _LOSSES:
        return operation.node.function(*operation.args, **{**operation.kwargs, "reduction": "none"})
    return operation.args[0]


def _masks(context: Context, node: Node) -> Iterator[int]:
    """List the masks that exist when an operation is computed, whatever their type: of ones and zeros, some of each."""
    seen: set[tuple[Any, ...]] = set()
    for number, value in enumerate(context.graph.values[: node.outputs[0]]):
        known = number in context.parameters or memory(value) in seen
        if known or value.is_complex() or not value.dim() or not context.exists(number, node):
            continue
        if few_numbers(value) and ((value == 0) | (value == 1)).all() and 0 < value.sum() < value.numel():
            seen.add(memory(value))
            yield number


def means_of_what_is_kept(context: Context, node: Node) -> Iterator[Edit]:
    """List means over what a mask keeps where torch takes the mean of all elements, and the reverse."""
    mean = _mean(context, node)
    if mean is None:
        return
    for number in _masks(context, node):
        mask, name = context.value(number), context.named(number)
        if tuple(mask.shape) == mean.shape[: mask.dim()] and set(range(mask.dim())) & set(mean.axes):

            def kept(operation: Operation, number: int = number) -> Any:
                x = _elements(operation)
                mask = operation.value(number).to(x.dtype)
                mask = mask.reshape(mask.shape + (1,) * (x.dim() - mask.dim())).expand_as(x)
                return (x * mask).sum(mean.axes, mean.keepdim) / mask.sum(mean.axes, mean.keepdim)

            does = f"takes the mean over what {name} keeps for {shown(node)}, torch over all elements"
            yield one(Kind.REDUCTION, node, kept, does, "take the mean over all elements, as torch does")
        if mean.shape[:1] == (int(mask.sum()),) and 0 in mean.axes and _selects(context, number):

            def every(operation: Operation, number: int = number) -> Any:
                mask = operation.value(number)
                return operation.run() * (int(mask.sum()) / mask.numel())

            does = f"divides by all {mask.numel()} elements for {shown(node)}, torch by those that {name} keeps"
            yield one(Kind.REDUCTION, node, every, does, f"divide by the number of elements that {name} keeps")


def _selects(context: Context, mask: int) -> bool:
    """Tell whether something is taken by a mask, as in x[mask]."""
    takes = (node for node in context.graph.nodes if node.name in ("getitem", "masked_select"))
    return any(number == mask for node in takes for _, number in node.inputs[1:])


def rows_first(context: Context, node: Node) -> Iterator[Edit]:
    """List the mean over rows of each row's masked mean, where torch divides two sums over everything."""
    sums = _quotient_of_sums(context, node)
    if sums is None:
        return
    (x, of_x), (count, of_count) = sums
    sizes = context.value(x).shape
    if len(sizes) < 2 or of_x.axes != of_count.axes or len(of_x.axes) < len(sizes):
        return
    axes = tuple(range(1, len(sizes)))

    def compute(operation: Operation) -> Any:
        return (operation.value(x).sum(axes) / operation.value(count).sum(axes).clamp(min=1)).mean()

    does = f"takes the mean of each row first, then the mean of the rows for {shown(node)}"
    does += "; torch divides two sums over all rows"
    yield one(Kind.REDUCTION, node, compute, does, "divide the sum over all rows by the count in all rows")


def _quotient_of_sums(context: Context, node: Node) -> "tuple[tuple[int, Reduction], tuple[int, Reduction]] | None":
    """Give what two sums are of, and over which axes, where an operation divides one by the other."""
    if node.name != "div" or len(node.args) != 2 or not all(isinstance(arg, Ref) for arg in node.args):
        return None
    found = [_sum(context, arg.number) for arg in node.args]
    return (found[0], found[1]) if found[0] and found[1] else None


def _sum(context: Context, number: int) -> tuple[int, Reduction] | None:
    """Give what a value is the sum of; a count may be kept from zero."""
    maker = context.makers.get(number)
    while maker is not None and (maker.name in SILENT or maker.name in ("clamp", "clamp_min")):
        maker = context.makers.get(maker.inputs[0][1])
    given = reduction(context, maker) if maker is not None else None
    return (maker.inputs[0][1], given) if maker is not None and given and given.name == "sum" else None


GENERATORS = (means_of_what_is_kept, rows_first)
