"""Edits of reductions: max, mean, sum or one element, over another axis, with another divisor of deviations."""

from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

from compare.diagnosis.structure.edit import Context, Edit, Kind, one, shown
from compare.diagnosis.structure.evidence import may_apply
from compare.diagnosis.structure.graph import Node, Operation, Ref
from compare.verdict.fix import Code


class Reduction(NamedTuple):
    """An operation that makes one number of many, in one form for all functions that do."""

    name: str
    axes: tuple[int, ...]
    """Counted from 0."""
    keepdim: bool


_DEVIATIONS = ("std", "var")


def reductions() -> dict[str, Callable[[Any, tuple[int, ...], bool], Any]]:
    """Return functions of a tensor, axes and whether to keep these, by name."""
    import torch

    def element(position: int) -> Callable[..., Any]:
        def take(x: Any, axes: tuple[int, ...], keepdim: bool) -> Any:
            for axis in sorted(axes, reverse=True):
                at = position % x.shape[axis]
                x = x.narrow(axis, at, 1) if keepdim else x.select(axis, at)
            return x

        return take

    return {
        "mean": lambda x, axes, keepdim: x.mean(axes, keepdim),
        "sum": lambda x, axes, keepdim: x.sum(axes, keepdim),
        "max": lambda x, axes, keepdim: x.amax(axes, keepdim),
        "min": lambda x, axes, keepdim: x.amin(axes, keepdim),
        "the first element": element(0),
        "the last element": element(-1),
        "the Euclidean norm": lambda x, axes, keepdim: torch.linalg.vector_norm(x, dim=axes, keepdim=keepdim),
        "the sum of squares": lambda x, axes, keepdim: (x * x).sum(axes, keepdim),
        "the mean of absolute values": lambda x, axes, keepdim: x.abs().mean(axes, keepdim),
        "logsumexp": lambda x, axes, keepdim: x.logsumexp(axes, keepdim),
        "std with ddof=1": lambda x, axes, keepdim: x.std(axes, correction=1, keepdim=keepdim),
        "std with ddof=0": lambda x, axes, keepdim: x.std(axes, correction=0, keepdim=keepdim),
        "var with ddof=1": lambda x, axes, keepdim: x.var(axes, correction=1, keepdim=keepdim),
        "var with ddof=0": lambda x, axes, keepdim: x.var(axes, correction=0, keepdim=keepdim),
    }


_SAME = {
    "mean": "mean",
    "sum": "sum",
    "max": "max",
    "amax": "max",
    "min": "min",
    "amin": "min",
    "norm": "the Euclidean norm",
    "logsumexp": "logsumexp",
    # By default torch.std and torch.var divide by n - 1, but jnp.std and jnp.var by n.
    "std": "std with ddof=1",
    "var": "var with ddof=1",
}


def reduction(context: Context, node: Node) -> Reduction | None:
    """Tell what an operation reduces, and how; None if it does not."""
    if not node.args or not isinstance(node.args[0], Ref):
        return None
    x = context.value(node.args[0].number)
    if node.name == "getitem":
        return _selected(node, x.dim())
    if node.name == "select" and len(node.args) == 3:
        return Reduction("the element", (node.args[1] % x.dim(),), False)
    # A pool to one point is a mean over the axes of space, and ports write it as x.mean((1, 2)).
    if node.name.startswith("adaptive_avg_pool") and set(_pair(node.args[1:] or node.kwargs.values())) == {1}:
        return Reduction("mean", tuple(range(x.dim() - int(node.name[-2]), x.dim())), True)
    if node.name not in _SAME or len(node.outputs) > 2:
        return None
    dims = node.kwargs.get("dim", node.kwargs.get("axis", node.args[1] if len(node.args) > 1 else None))
    if node.name == "norm" and dims is not None and "dim" not in node.kwargs:
        return None  # its second argument is an exponent
    keepdim = bool(node.kwargs.get("keepdim", len(node.args) > 2 and node.args[2] is True))
    if isinstance(dims, (Ref, float, bool)):
        return None
    axes = tuple(range(x.dim())) if dims is None else (dims,) if isinstance(dims, int) else tuple(dims)
    return Reduction(_SAME[node.name], tuple(axis % x.dim() for axis in axes), keepdim)


def _pair(given: Any) -> tuple[int, ...]:
    first = next(iter(given), None)
    return tuple(first) if isinstance(first, tuple | list) else (first,) if isinstance(first, int) else ()


def _selected(node: Node, dimensions: int) -> Reduction | None:
    """Read x[:, 0] as the choice of one element."""
    index = node.args[1] if isinstance(node.args[1], tuple) else (node.args[1],)
    if Ellipsis in [each for each in index if not isinstance(each, Ref)]:
        at = index.index(Ellipsis)
        index = (*index[:at], *[slice(None)] * (dimensions - len(index) + 1), *index[at + 1 :])
    numbers = [axis for axis, each in enumerate(index) if isinstance(each, int) and not isinstance(each, bool)]
    # x[:, 0] takes one element and keeps all others: a class token in the place of a mean, for instance.
    if len(numbers) != 1 or any(each != slice(None) for axis, each in enumerate(index) if axis not in numbers):
        return None
    return Reduction("the element", (numbers[0],), False)


def other_reductions(context: Context, node: Node) -> Iterator[Edit]:
    """List other numbers that may be made of the same elements, or the same of others."""
    known = reductions()
    # Reductions of one element are the identity, and any other would fit as well.
    given = reduction(context, node)
    if given is None or context.value(node.args[0].number).numel() == context.value(node.outputs[0]).numel():
        return
    dimensions = context.value(node.args[0].number).dim()
    own = f"{given.name} over axis {_listed(given.axes)}"
    for name, function in known.items():
        if name == given.name or not may_apply(name, context.theirs):
            continue
        yield _edit(
            Kind.REDUCTION,
            node,
            function,
            given.axes,
            given.keepdim,
            name,
            own,
            given.name,
            len(given.axes) < dimensions,
        )
    if given.name in ("sum", "mean") and len(given.axes) > 1:
        yield from _mixed(node, given, own)
    if given.name in known:
        for axis in range(dimensions):
            if (axis,) != given.axes:
                yield _edit(Kind.AXIS, node, known[given.name], (axis,), given.keepdim, given.name, own)
        if dimensions > 1 and len(given.axes) < dimensions:
            every = tuple(range(dimensions))
            yield _edit(Kind.AXIS, node, known[given.name], every, given.keepdim, given.name, own)


def _mixed(node: Node, given: Reduction, own: str) -> Iterator[Edit]:
    """List a sum over some axes and a mean over the others: torch has one of both over all."""
    for axis in given.axes:
        others = tuple(each for each in given.axes if each != axis)
        for meant, summed in dict.fromkeys([((axis,), others), (others, (axis,))]):

            def compute(operation: Operation, meant: tuple[int, ...] = meant, summed: tuple[int, ...] = summed) -> Any:
                made = operation.args[0].mean(meant, keepdim=True).sum(summed, keepdim=True)
                return made if given.keepdim else made.squeeze(given.axes)

            mean, total = f"the mean over axis {_listed(meant)}", f"the sum over axis {_listed(summed)}"
            does = f"takes {mean} and {total} for {shown(node)}, torch {own}"
            yield one(Kind.REDUCTION, node, compute, does, f"take {own}, in torch's layout")


def _taken(node: Node, axes: tuple[int, ...]) -> Code | None:
    """Write the choice of one element: `jnp.take(x, 0, axis=1)` for x[:, 0]."""
    given = node.args[1:] if node.name != "select" else node.args[2:]
    index = given[0] if given and isinstance(given[0], tuple) else given
    chosen = [each for each in index if isinstance(each, int)]
    return Code("jnp.take", ("x", str(chosen[0])), {"axis": axes[0]}) if len(chosen) == 1 else None


def _edit(
    kind: Kind,
    node: Node,
    function: Callable[[Any, tuple[int, ...], bool], Any],
    axes: tuple[int, ...],
    keepdim: bool,
    name: str,
    own: str,
    given: str = "",
    partial: bool = False,
) -> Edit:
    def compute(operation: Operation) -> Any:
        made = function(operation.args[0], axes, keepdim)
        if len(node.outputs) == 1:
            return made
        given = operation.run()  # of values and indices, which the user's code may take by these names
        return type(given)((made, given[1]))

    does = f"takes {name} over axis {_listed(axes)} for {shown(node)}, torch {own}"
    code = None
    if kind is Kind.REDUCTION and name in _FUNCTIONS:
        # With its axes, so that a patch never puts it in the place of a reduction of all elements.
        where = {"axis": axes[0] if len(axes) == 1 else axes} if partial else {}
        code = (
            Code(f"jnp.{given}", keywords=where)
            if given in _FUNCTIONS
            else _taken(node, axes)
            if given == "the element"
            else None
        )
    return one(kind, node, compute, does, f"take {own}, in torch's layout", code)


_FUNCTIONS = ("mean", "sum", "max", "min")
"""Which functions of JAX take the same arguments."""


def _listed(axes: tuple[int, ...]) -> str:
    return " and ".join(map(str, axes))


GENERATORS = (other_reductions,)
