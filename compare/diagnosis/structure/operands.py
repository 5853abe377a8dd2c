"""Edits of operands: another tensor of the same shape, operands exchanged, a tensor added or multiplied."""

import itertools
from collections import Counter
from collections.abc import Iterator
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from compare.diagnosis.structure.edit import END, Context, Edit, Kind, few_numbers, one, result, shown
from compare.diagnosis.structure.graph import Node, Operation, Path
from compare.diagnosis.structure.insertion import shifted
from compare.diagnosis.structure.written import taken

if TYPE_CHECKING:
    import torch


def other_operands(context: Context, node: Node) -> Iterator[Edit]:
    """List what else an operation may take of what there is by then."""
    if node.frozen:
        return
    for path, number in _taken(context, node):
        for other in _of_its_kind(context, node, number):

            def compute(operation: Operation, path: Path = path, other: int = other) -> Any:
                return operation.having(path, operation.value(other)).run()

            own, name = context.both_named(number, other)
            place = "at this place" if node.name == END else f"for {result(node)}"
            does, fix = f"takes {name} {place}, where torch takes {own}", f"take {own}, and not {name}"
            edit = one(Kind.OPERAND, node, compute, does, fix, taken(context, number, other, fix))
            yield replace(edit, taken=(path, other))


def _of_its_kind(context: Context, node: Node, number: int) -> Iterator[int]:
    """List what may be taken for a value: real numbers for real ones, counts for counts, and masks for masks.

    Others may fit where the rest of the line undoes the difference, as a product with the same mask does.
    """
    own = _numbers(context.value(number))
    kinds = {"equal", own, "mask" if own == "counts" else own}  # labels of 0 and 1, for those of -1 and 1
    return (other for other in context.likes(node, number) if _numbers(context.value(other)) in kinds)


def _numbers(tensor: "torch.Tensor") -> str:
    """Name the kind of a tensor's numbers."""
    if (tensor == tensor.flatten()[:1]).all():
        return "equal"  # as a first state is, which may be taken for a later one
    if (tensor != tensor.round()).any():
        return "real"
    return "mask" if ((tensor == 0) | (tensor == 1)).all() else "counts"


def _taken(context: Context, node: Node) -> list[tuple[Path, int]]:
    """List the values that an operation takes and that are not parameters: real numbers, and indices or masks."""
    return [each for each in node.inputs if each[1] not in context.parameters]


def other_at_every_use(context: Context, node: Node) -> Iterator[Edit]:
    """List what may be taken for a value wherever it is used, or by all operations of one kind: a sum and its count."""
    if node.name != END:
        return
    for number, users in context.users.items():
        uses = [(user, path) for user in users for path, other in _taken(context, user) if other == number]
        if len(uses) < 2 or any(user.frozen for user, _ in uses):
            continue
        names = [user.name for user, _ in uses]
        whole = sum(other == number for user in context.graph.nodes for _, other in _taken(context, user))
        # Behind a place that agrees, it was taken for something else before.
        every = [""] if whole == len(uses) else []
        some = [name for name, count in Counter(names).items() if 2 <= count < whole]
        for other, kind in itertools.product(_of_its_kind(context, uses[0][0], number), (*every, *some)):

            def compute(operation: Operation, number: int = number, other: int = other) -> Any:
                for path, each in operation.node.inputs:
                    if each == number:
                        operation = operation.having(path, operation.value(other))
                return operation.run()

            own, name = context.both_named(number, other)
            at = tuple((user.number, compute) for user, _ in uses if kind in ("", user.name))
            where = f"for each {kind} for which" if kind else "wherever"
            does = f"takes {name} {where} torch takes {own}"
            yield Edit(Kind.OPERAND, at, does, f"take {own}, and not {name}")


def swapped_operands(context: Context, node: Node) -> Iterator[Edit]:
    """List operations whose operands the JAX side may take the other way round."""
    operands = context.data(node)
    # Commutative operations give the same, and joining has edits of its own in `arrangement`.
    if len(operands) < 2 or node.name in ("add", "mul", "maximum", "minimum", "cat", "stack"):
        return
    for first in range(len(operands)):
        for second in range(first + 1, len(operands)):
            (a, number), (b, other) = operands[first], operands[second]

            def compute(operation: Operation, a: Path = a, b: Path = b) -> Any:
                return operation.having(a, operation.at(b)).having(b, operation.at(a)).run()

            names = " and ".join(context.both_named(number, other))
            does = f"exchanges {names} in {shown(node)}"
            fix = f"take {names} in this order in {node.name}"
            yield one(Kind.OPERAND, node, compute, does, fix)


def exchanged_between(context: Context, node: Node) -> Iterator[Edit]:
    """List a sum of two products of which the JAX side may exchange two factors, as a gate and its complement.

    It is one slip with two places: `z * h + (1 - z) * n` for `(1 - z) * h + z * n`.
    """
    if node.name not in ("add", "sub") or node.frozen:
        return
    parts = [context.makers.get(number) for _, number in context.data(node)]
    if len(parts) != PARTS or any(part is None or part.name != "mul" for part in parts):
        return
    first, second = (part for part in parts if part is not None)
    for (a, one_), (b, other) in itertools.product(context.data(first), context.data(second)):
        if one_ == other or context.value(one_).shape != context.value(other).shape:
            continue

        def given(operation: Operation, path: Path = a, other: int = other) -> Any:
            return operation.having(path, operation.value(other)).run()

        def taken(operation: Operation, path: Path = b, other: int = one_) -> Any:
            return operation.having(path, operation.value(other)).run()

        names = " and ".join(context.both_named(one_, other))
        does = f"exchanges {names} between the two products of {result(node)}"
        fix = f"multiply {names} with what torch multiplies each with, in {result(node)}"
        yield Edit(Kind.OPERAND, ((first.number, given), (second.number, taken)), does, fix)


def parameters_exchanged(context: Context, node: Node) -> Iterator[Edit]:
    """List two parameters of one shape of which each may be in the place of the other, such as two bias vectors."""
    if node.name != END:
        return
    used: dict[int, list[tuple[Node, Path]]] = {}
    for user in context.nodes:
        for path, number in user.inputs:
            if (number in context.parameters or number in context.names) and not user.frozen:
                used.setdefault(number, []).append((user, path))
    for one_, other in itertools.combinations(used, 2):
        if context.value(one_).shape != context.value(other).shape:
            continue
        others = {one_: other, other: one_}

        def compute(operation: Operation, others: dict[int, int] = others) -> Any:
            for path, number in operation.node.inputs:
                if number in others:
                    operation = operation.having(path, operation.value(others[number]))
            return operation.run()

        at = {user.number: compute for number in others for user, _ in used[number]}
        names = " and ".join(context.both_named(one_, other))
        yield Edit(Kind.OPERAND, tuple(at.items()), f"exchanges {names}", f"exchange {names} in the map or the port")


PARTS = 2
"""Products of a sum between which factors are exchanged."""


def joined(context: Context, node: Node) -> Iterator[Edit]:
    """List what may be added to, or multiplied with, what an operation gives."""
    if len(node.outputs) != 1 or not context.value(node.outputs[0]).is_floating_point() or node.frozen:
        return
    what = context.named(node.inputs[0][1]) if node.name == END else f"the output of {shown(node)}"
    for other in context.likes(node, node.outputs[0]):
        name = context.named(other)

        def added(operation: Operation, other: int = other) -> Any:
            return operation.run() + operation.value(other)

        def multiplied(operation: Operation, other: int = other) -> Any:
            return operation.run() * operation.value(other)

        again = other in (number for _, number in node.inputs)  # relu(x) * x is a square of relu(x)
        edit = one(Kind.ADDED, node, added, f"adds {name} to {what}", f"do not add {name} to {what}")
        yield replace(edit, odd=again, taken=((), other))
        if _is_scaled_mask_of(context, node, other):
            continue
        does = f"multiplies {what} by {name}"
        edit = one(Kind.ADDED, node, multiplied, does, f"do not multiply {what} by {name}")
        yield replace(edit, odd=again, taken=((), other))


def _is_scaled_mask_of(context: Context, node: Node, other: int) -> bool:
    """Return whether a product has a mask, scaled or not, as a factor already: a second time, it changes the scale."""
    return node.name == "mul" and other in (number for _, number in node.inputs) and few_numbers(context.value(other))


def delayed(context: Context, node: Node) -> Iterator[Edit]:
    """List what else an operand may be, one step later or earlier: a causal sum or convolution that looks ahead."""
    for path, number in context.data(node):
        for other in itertools.islice(context.likes(node, number), 4):
            own, name = context.both_named(number, other)
            for axis, by in itertools.product(range(context.value(other).dim()), (1, -1)):
                if context.value(other).shape[axis] < 2:
                    continue

                def compute(
                    operation: Operation, path: Path = path, other: int = other, axis: int = axis, by: int = by
                ) -> Any:
                    return operation.having(path, shifted(operation.value(other), axis, by)).run()

                what = f"{name}, shifted by {by} along axis {axis} with zeros,"
                does = f"takes {what} for {result(node)}, where torch takes {own}"
                yield one(Kind.OPERAND, node, compute, does, f"take {own}, and not {what[:-1]}")


GENERATORS = (
    other_operands,
    swapped_operands,
    exchanged_between,
    parameters_exchanged,
    other_at_every_use,
    joined,
    delayed,
)
