"""Edits of the order of axes and elements: reshapes, transposes, concatenations, chunks and slices."""

import itertools
import math
from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import Any

from compare.diagnosis.structure.edit import TRANSPOSES, Context, Edit, Kind, one, shown
from compare.diagnosis.structure.graph import Node, Operation, Path, Ref
from compare.diagnosis.structure.written import reordered

_RESHAPES = {"view", "reshape", "flatten", "unflatten", "ravel"}

MOST = 4
"""Axes, at most, of which every order is tried."""


LONG = 200
"""Characters, at most, that the names of parts may take."""


def reshaped(context: Context, node: Node) -> Iterator[Edit]:
    """List other orders in which an axis may be split, or axes be merged."""
    if node.name not in _RESHAPES or not isinstance(node.args[0], Ref):
        return
    source, shape = tuple(context.value(node.args[0].number).shape), context.shape(node)
    for before, after in _groups(source, shape):
        if len(after) > 1 and len(before) == 1:
            yield from _split(node, shape, after)
        elif len(before) > 1 and len(after) == 1:
            yield from _merged(node, source, before)
    for order in _orders(range(len(source))):  # "heads merged without a transpose", and with one too many

        def compute(operation: Operation, order: Sequence[int] = order) -> Any:
            return operation.args[0].permute(*order).reshape(context.shape(operation.node))

        does = f"transposes by {tuple(order)} before {shown(node)}"
        yield one(Kind.LAYOUT, node, compute, does, f"reshape as torch does: {source} to {shape} without it")


def _groups(source: tuple[int, ...], shape: tuple[int, ...]) -> list[tuple[list[int], list[int]]]:
    """Say which axes of one shape become which of the other: each group has as many elements on both sides."""
    found: list[tuple[list[int], list[int]]] = []
    i = j = 0
    while i < len(source) and j < len(shape):
        # Both shapes are read from the left. Axes are added to the side with the smaller product until both
        # products agree: a reshape preserves row-major order, so that each such group is reshaped by itself.
        before, after = [i], [j]
        while (left := math.prod(source[n] for n in before)) != (right := math.prod(shape[n] for n in after)):
            if left < right and before[-1] + 1 < len(source):
                before.append(before[-1] + 1)
            elif right < left and after[-1] + 1 < len(shape):
                after.append(after[-1] + 1)
            else:
                return found
        found.append((before, after))
        i, j = before[-1] + 1, after[-1] + 1
    return found


def _orders(axes: Sequence[int]) -> Iterator[tuple[int, ...]]:
    """List all orders but the own; with many axes, those that exchange two."""
    own = tuple(axes)
    if len(own) <= MOST:
        yield from (order for order in itertools.permutations(own) if order != own)
        return
    for a, b in itertools.combinations(range(len(own)), 2):
        order = list(own)
        order[a], order[b] = order[b], order[a]
        yield tuple(order)


def _split(node: Node, shape: tuple[int, ...], after: list[int]) -> Iterator[Edit]:
    for order in _orders(after):
        # The axis is split as if its parts came in another order, and then transposed to torch's: (heads, 3,
        # size) for (3, heads, size), as in a fused projection whose parts are interleaved.
        full = [*range(after[0]), *order, *range(after[-1] + 1, len(shape))]
        # Sorting the positions of a permutation by its entries gives the inverse permutation.
        back = sorted(range(len(full)), key=full.__getitem__)

        def compute(operation: Operation, full: list[int] = full, back: list[int] = back) -> Any:
            return operation.args[0].reshape([shape[n] for n in full]).permute(*back)

        theirs, ours = tuple(shape[n] for n in order), tuple(shape[n] for n in after)
        moves = tuple(order.index(n) for n in after)
        does = f"splits the axis in {shown(node)} as {theirs}, transposed by {moves}, torch as {ours}"
        local = tuple(n - after[0] for n in order)
        fix, then = f"split the axis in torch's order: as {ours}", f"put the new axes in the order {local}"
        if after[-1] == len(shape) - 1:  # elsewhere the port may have the axis in another place
            fix = f"split the axis in torch's order: x.reshape(..., {_listed(ours)})"
            then = f".transpose({_listed(tuple(full))})"
        # What follows on the JAX side takes the axes in its own order, as a layout with channels last does: the
        # reshape alone would give it an array of another shape.
        both = f"{fix}, and then {then}, where the JAX side takes the axes as {theirs}"
        yield one(Kind.LAYOUT, node, compute, does, both)
        if theirs != ours:  # and what follows exchanges the axes all the same

            def as_split(operation: Operation, full: list[int] = full) -> Any:
                return operation.args[0].reshape([shape[n] for n in full])

            yield one(
                Kind.LAYOUT, node, as_split, f"splits the axis in {shown(node)} as {theirs}, torch as {ours}", fix
            )


def _merged(node: Node, source: tuple[int, ...], before: list[int]) -> Iterator[Edit]:
    for order in _orders(before):
        full = [*range(before[0]), *order, *range(before[-1] + 1, len(source))]

        def compute(operation: Operation, full: list[int] = full) -> Any:
            given = operation.run()
            return operation.args[0].permute(*full).reshape(given.shape)

        sizes = tuple(source[n] for n in before)
        moves = tuple(n - before[0] for n in order)
        does = f"merges the axes {sizes} in {shown(node)} in the order {moves}, torch as they are"
        yield one(Kind.LAYOUT, node, compute, does, f"merge the axes in torch's order, {sizes}: transpose before")


def _listed(sizes: Sequence[int]) -> str:
    return ", ".join(map(str, sizes))


def transposed(context: Context, node: Node) -> Iterator[Edit]:
    """List a reshape in the place of a transpose, and other transposes to the same shape."""
    if node.name not in TRANSPOSES or not isinstance(node.args[0], Ref):
        return

    def compute(operation: Operation) -> Any:
        return operation.args[0].reshape(operation.run().shape)

    does = f"reshapes in the place of {shown(node)}, which leaves the elements in their order"
    yield one(Kind.LAYOUT, node, compute, does, "transpose the axes: a reshape does not")
    source, shape = tuple(context.value(node.args[0].number).shape), context.shape(node)
    if len(source) <= MOST:
        for order in itertools.permutations(range(len(source))):
            if tuple(source[n] for n in order) == shape:

                def other(operation: Operation, order: Sequence[int] = order) -> Any:
                    return operation.args[0].permute(*order)

                does = f"transposes by {tuple(order)} for {shown(node)}"
                yield one(Kind.LAYOUT, node, other, does, "exchange the axes that torch does")


def parts(context: Context, node: Node) -> Iterator[Edit]:
    """List other orders of what is put together or taken to pieces, other axes, and blocks for every n-th."""
    if node.name in ("cat", "stack", "hstack", "vstack") and isinstance(node.args[0], tuple | list):
        yield from _joined(context, node)
    elif node.name in ("chunk", "split", "unbind", "tensor_split", "unsafe_chunk") and 2 <= len(node.outputs) <= 6:
        yield from _pieces(context, node)


def _joined(context: Context, node: Node) -> Iterator[Edit]:
    names = [context.named(each.number) for each in node.args[0] if isinstance(each, Ref)]
    for order in _orders(range(len(node.args[0]))):

        def compute(operation: Operation, order: Sequence[int] = order) -> Any:
            return operation.having(("args", 0), [operation.args[0][n] for n in order]).run()

        ours, theirs = ", ".join(names), ", ".join(names[n] for n in order) if len(names) == len(order) else ""
        if len(set(names)) < len(order) or len(ours) > LONG:  # too much to be read, or names that say nothing
            ours, theirs = _listed(range(len(order))), _listed(order)
        does = f"joins the parts of {shown(node)} in the order {theirs}; torch's is {ours}"
        code = reordered(_JOINED_BY[node.name], tuple(order)) if node.name in _JOINED_BY else None
        yield one(Kind.PARTS, node, compute, does, f"join the parts in torch's order: {ours}", code)
    dimensions = context.value(node.outputs[0]).dim()
    for axis in range(dimensions):

        def along(operation: Operation, axis: int = axis) -> Any:
            import torch

            tensors = operation.args[0]
            return getattr(torch, operation.node.name)(tensors, axis).reshape(operation.run().shape)

        does = f"joins the parts of {shown(node)} along axis {axis}"
        yield replace(one(Kind.AXIS, node, along, does, "join them along torch's axis"), odd=True)


_JOINED_BY = {"cat": "jnp.concatenate", "stack": "jnp.stack", "hstack": "jnp.hstack", "vstack": "jnp.vstack"}


def _pieces(context: Context, node: Node) -> Iterator[Edit]:
    for order in _orders(range(len(node.outputs))):

        def compute(operation: Operation, order: Sequence[int] = order) -> Any:
            given = operation.run()
            return [given[n] for n in order]

        does = f"takes the pieces of {shown(node)} in the order {tuple(order)}"
        yield one(Kind.PARTS, node, compute, does, "take the pieces in torch's order")
    count = len(node.outputs)
    source, piece = context.value(node.args[0].number), context.value(node.outputs[0])
    axes = [n for n in range(piece.dim()) if piece.dim() == source.dim() and piece.shape[n] != source.shape[n]]
    if len(axes) == 1 and source.shape[axes[0]] == count * piece.shape[axes[0]]:

        def strided(operation: Operation, axis: int = axes[0]) -> Any:
            x = operation.args[0]
            # The axis becomes a row-major matrix with `count` columns. Column n holds every count-th element from n on.
            return x.unflatten(axis, (-1, count)).unbind(axis + 1)

        does = f"takes every {count}th element for a piece of {shown(node)}, torch takes blocks"
        yield one(Kind.PARTS, node, strided, does, f"take blocks: jnp.split(x, {count}, axis={axes[0]})")


def slices(context: Context, node: Node) -> Iterator[Edit]:
    """List other slices of the same size, the next or the one before: labels shifted, halves exchanged."""
    if node.name != "getitem" or not isinstance(node.args[0], Ref):
        return
    index = node.args[1] if isinstance(node.args[1], tuple) else (node.args[1],)
    if any(isinstance(each, Ref) for each in index):
        return
    for position, own in enumerate(index):
        for words, other in _other_slices(own, _length(context, node, index, position)):

            def compute(operation: Operation, position: int = position, other: Any = other) -> Any:
                changed = (*index[:position], other, *index[position + 1 :])
                return operation.having(("args", 1), changed).run()

            does = f"takes {words} for {_written(own)} in {shown(node)}"
            yield one(Kind.SLICE, node, compute, does, f"take {_written(own)}, as torch does")


def _length(context: Context, node: Node, index: tuple[Any, ...], position: int) -> int:
    shape = context.value(node.args[0].number).shape
    ahead = sum(each is not None and each is not Ellipsis for each in index[:position])
    if Ellipsis in index[:position]:
        behind = sum(each is not None for each in index[position:])
        return shape[len(shape) - behind] if behind <= len(shape) else 0
    return shape[ahead] if ahead < len(shape) else 0


def _other_slices(own: Any, length: int) -> Iterator[tuple[str, Any]]:
    if isinstance(own, int) and not isinstance(own, bool):
        at = own % length if length else own
        for other in dict.fromkeys((0, length - 1, at + 1, at - 1)):
            if other != at and 0 <= other < length:
                yield str(other), other
    if not isinstance(own, slice) or not length:
        return
    chosen = range(length)[own]
    size, step = len(chosen), chosen.step
    if size == length:
        if step == 1:
            return
        yield "all in order", slice(None)
    for start in dict.fromkeys((0, length - size, chosen.start + 1, chosen.start - 1, chosen.start + size)):
        if step == 1 and start != chosen.start and 0 <= start <= length - size:
            yield _written(slice(start, start + size)), slice(start, start + size)
    if step == 1 and size * 2 == length:  # halves for every other
        yield _written(slice(chosen.start // size, None, 2)), slice(chosen.start // size, None, 2)
    if step == 2 and size * 2 == length:
        at = chosen.start * size
        yield _written(slice(at, at + size)), slice(at, at + size)


def _written(index: Any) -> str:
    if not isinstance(index, slice):
        return str(index)
    start, stop = ("" if each is None else str(each) for each in (index.start, index.stop))
    return f"[{start}:{stop}{f':{index.step}' if index.step not in (None, 1) else ''}]"


def shifted(context: Context, node: Node) -> Iterator[Edit]:
    """List other directions and distances of roll, flip and cumsum."""
    if node.name == "roll":

        def back(operation: Operation) -> Any:
            shifts = operation.args[1] if len(operation.args) > 1 else operation.kwargs["shifts"]
            turned = tuple(-n for n in shifts) if isinstance(shifts, tuple | list) else -shifts
            path = ("args", 1) if len(operation.args) > 1 else ("kwargs", "shifts")
            return operation.having(path, turned).run()

        yield one(Kind.SLICE, node, back, f"rolls the other way in {shown(node)}", "roll as torch does")
    if node.name in _ALONG:
        yield from _along_another(context, node)


_ALONG = {"flip", "cumsum", "softmax", "log_softmax", "glu", "argmax", "argmin", "normalize"}
"""Functions that go along one axis."""


def _along_another(context: Context, node: Node) -> Iterator[Edit]:
    given: list[tuple[Path, Any]] = []
    given += [(("kwargs", name), node.kwargs[name]) for name in ("dim", "axis") if name in node.kwargs]
    place = 2 if node.name == "normalize" else 1
    given += [(("args", place), own) for own in node.args[place : place + 1]]
    for path, own in given:
        for axis in range(context.value(node.args[0].number).dim()):

            def along(operation: Operation, path: Path = path, axis: int = axis) -> Any:
                return operation.having(path, axis).run()

            does = f"goes along axis {axis} in {shown(node)}, torch along {own}"
            yield one(Kind.AXIS, node, along, does, f"go along axis {own}")


GENERATORS = (slices, parts, reshaped, transposed, shifted)
