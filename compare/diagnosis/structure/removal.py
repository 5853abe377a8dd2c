"""Edits that leave out an operation, apply it twice, or exchange it with its neighbour."""

import itertools
from collections.abc import Iterator
from dataclasses import replace
from typing import Any

from compare.diagnosis.structure.edit import (
    COMPARISONS,
    JOINING,
    TRANSPOSES,
    Context,
    Edit,
    Kind,
    few_numbers,
    one,
    shown,
)
from compare.diagnosis.structure.graph import Node, Operation, Path
from compare.diagnosis.structure.written import function_of, joined_again, of_two
from compare.verdict.fix import Code, source


def applied(operation: Operation, node: Node, path: Path, tensor: Any) -> Any:
    """Compute another operation than this one, on a tensor of choice."""
    return operation.of(node).having(path, tensor).run()


def left_out(context: Context, node: Node) -> Iterator[Edit]:
    """List operations that the JAX side may have left out: then the result is one of their operands."""
    if len(node.outputs) != 1:
        return
    # What is applied to a parameter alone, such as exp to a temperature, may be left out as well.
    for path, number in context.data(node) or node.inputs[: len(node.inputs) == 1]:

        def compute(operation: Operation, path: Path = path) -> Any:
            return operation.at(path)

        others = [other for _, other in node.inputs if other != number]
        kept, code = context.named(number), None
        if others and node.name in JOINING:
            kept, other = context.both_named(number, others[0])
            zero = ", or has zero there" if node.name in ("add", "sub") else ""
            does = (
                f"leaves out the {JOINING[node.name]} of {kept} and {_at_line(other, node)}{zero}, and continues "
                f"with {kept}"
            )
            fix = f"take the {JOINING[node.name]} of {kept} and {other}"
            code = joined_again(context, node, number)
        else:
            does = f"leaves out {shown(node).replace(node.name, _with_number(node), 1)}"
            fix = f"apply {_with_number(node)} to {kept}{context.before_its_user(node)}, as torch does"
        yield one(Kind.LEFT_OUT, node, compute, does, fix, code)


def _at_line(named: str, node: Node) -> str:
    """Add the line of an operation to what it is applied to, unless that was made in the same line and says so."""
    return named if named.endswith(f"({node.line})") else f"{named} ({node.line})"


def both_factors_left_out(context: Context, node: Node) -> Iterator[Edit]:
    """List two factors or divisors in a row that the JAX side may have left out, as in loss * T * T.

    With two equal ones, one of them and its inverse come to the same: what is left out says it more plainly.
    """
    before = context.makers.get(node.inputs[0][1]) if _scales(node) else None
    if before is None or not _scales(before):
        return
    source = before.inputs[0][1]

    def compute(operation: Operation) -> Any:
        return operation.value(source)

    first, second = (f"{_with_number(each)} ({each.line})" for each in (before, node))
    fix = f"apply {_with_number(before)} and {_with_number(node)} to {context.named(source)}, as torch does"
    yield one(Kind.LEFT_OUT, node, compute, f"leaves out {first} and {second}", fix)


def _scales(node: Node) -> bool:
    return node.name in ("mul", "div") and len(node.args) == 2 and len(node.inputs) == 1


def first_left_out(context: Context, node: Node) -> Iterator[Edit]:
    """List differences a - b for which the JAX side may have -b."""
    if node.name != "sub" or len(node.inputs) != 2:
        return
    (path, number), (_, subtracted) = node.inputs
    first, second = context.both_named(number, subtracted)

    def compute(operation: Operation) -> Any:
        return operation.having(path, operation.at(path) * 0).run()

    does = f"leaves out {first} in the difference of it and {_at_line(second, node)}, or has zero there"
    yield one(Kind.LEFT_OUT, node, compute, does, f"take the difference of {first} and {second}")


def mask_left_out(context: Context, node: Node) -> Iterator[Edit]:
    """List products of a number and a mask. The JAX side may have the number alone: 0.9 for 0.9 * (1 - done)."""
    numbers = [each for each in node.args if isinstance(each, int | float) and not isinstance(each, bool)]
    if node.name != "mul" or len(node.args) != 2 or len(numbers) != 1 or len(context.data(node)) != 1:
        return
    mask = context.data(node)[0][1]
    if not few_numbers(context.value(mask)):
        return

    def compute(operation: Operation) -> Any:
        return operation.run().new_full((), numbers[0]).expand(context.shape(node))

    factor, of = source(numbers[0]), context.named(mask)
    does = f"leaves out {of} in {shown(node)}, and continues with {factor} everywhere"
    fix = f"multiply {factor} by {of}, as torch does"
    yield replace(one(Kind.LEFT_OUT, node, compute, does, fix), fixed=True)


def quotient_left_out(context: Context, node: Node) -> Iterator[Edit]:
    """List quotients of a number and a tensor. The JAX side may have the number alone: 0.1 for 0.1 / norm."""
    if node.name != "rdiv" or len(node.args) != 2 or not isinstance(node.args[1], int | float):
        return
    number, of = float(node.args[1]), context.named(node.inputs[0][1])

    def compute(operation: Operation) -> Any:
        return operation.run().new_full(context.shape(node), number)

    does = f"leaves out the division of {source(number)} by {of}, and continues with {source(number)}"
    fix = f"divide {source(number)} by {of}, as torch does"
    yield replace(one(Kind.LEFT_OUT, node, compute, does, fix), fixed=True)


def comparison_left_out(context: Context, node: Node) -> Iterator[Edit]:
    """List comparisons in whose place the JAX side may have true, or false, everywhere, as where nothing is dropped."""
    if node.name not in COMPARISONS:
        return
    for answer in (True, False):

        def compute(operation: Operation, answer: bool = answer) -> Any:
            return operation.run().new_full(context.shape(node), answer)

        does = f"leaves out the comparison {shown(node)}, and has {str(answer).lower()} everywhere"
        yield replace(
            one(Kind.LEFT_OUT, node, compute, does, f"make the comparison {shown(node)}, as torch does"), fixed=True
        )


def _with_number(node: Node) -> str:
    """Name an operation and the number that it joins its operand with: "mul by 0.5"."""
    number = node.args[1] if node.name in JOINING and len(node.args) == 2 else None
    return f"{node.name} by {source(number)}" if isinstance(number, int | float) else node.name


def applied_twice(context: Context, node: Node) -> Iterator[Edit]:
    """List operations that the JAX side may apply to their own result."""
    data = context.data(node)
    if len(data) != 1 or len(node.outputs) != 1 or tuple(context.value(data[0][1]).shape) != context.shape(node):
        return
    if context.value(data[0][1]).dtype != context.value(node.outputs[0]).dtype:  # a comparison
        return
    if node.name in ("mul", "div") and len(node.inputs) == 1:  # by a number: its square says it more plainly
        return

    def compute(operation: Operation, path: Path = data[0][0]) -> Any:
        return operation.having(path, operation.run()).run()

    yield one(Kind.TWICE, node, compute, f"applies {shown(node)} twice", f"apply {node.name} once")


_OF_A_SHAPE = frozenset({"zeros_like", "ones_like", "full_like", "new_zeros", "new_ones", "new_full"})
"""Functions that take nothing but the shape of a tensor: what they give is the same wherever they stand."""


def moved(context: Context, after: Node) -> Iterator[Edit]:
    """List neighbours that may stand in another order."""
    for path, number in context.data(after):
        before = context.makers.get(number)
        if before is None or len(after.outputs) != 1 or before.name in _OF_A_SHAPE:
            continue
        yield from _exchanged(context, before, after, path)
        yield from _joined_first(context, before, after, path)
        if len(context.data(before)) == 1:
            yield from _behind(context, before, after, path)
        if len(context.data(after)) == 1:
            yield from _before(context, before, after)


def _exchanged(context: Context, before: Node, after: Node, path: Path) -> Iterator[Edit]:
    """Exchange two operations that follow one another: g(f(x)) becomes f(g(x))."""
    if len(context.data(before)) != 1 or len(context.data(after)) != 1:
        return
    ((start, source),) = context.data(before)

    def compute(operation: Operation) -> Any:
        return applied(operation, before, start, applied(operation, after, path, operation.value(source)))

    does = f"applies {shown(after)} before {shown(before)}, torch after it"
    fix = f"apply {before.name} to {context.named(source)} first, then {after.name}"
    # An axis that is exchanged before another operation is that operation over another axis.
    odd = not {before.name, after.name}.isdisjoint(TRANSPOSES)
    yield replace(one(Kind.MOVED, after, compute, does, fix), odd=odd)


def _joined_first(context: Context, before: Node, after: Node, path: Path) -> Iterator[Edit]:
    """What is joined second is joined first: (x + b) * a for x * a + b."""
    if before.name == after.name or not {before.name, after.name} <= {*JOINING}:
        return
    ours, others = context.data(before), [each for each in context.data(after) if each[0] != path]
    for (start, origin), (_, second) in itertools.product(ours, others):

        def compute(operation: Operation, start: Path = start, origin: int = origin) -> Any:
            inner = operation.having(path, operation.value(origin)).run()
            return applied(operation, before, start, inner)

        what, other = context.both_named(origin, second)
        does = (
            f"takes the {JOINING[after.name]} of {what} and {other} before the {JOINING[before.name]} ({before.line}), "
            "torch after it"
        )
        fix = f"take the {JOINING[before.name]} first, and then the {JOINING[after.name]} with {other}"
        yield one(Kind.MOVED, after, compute, does, fix)


def _behind(context: Context, before: Node, after: Node, path: Path) -> Iterator[Edit]:
    """Move an operation from one operand to the result or to another operand: f(x) + y to f(x + y) or x + f(y)."""
    ((start, source),) = context.data(before)
    others = [each for each in context.data(after) if each[0] != path]
    if not others:
        return
    what, joined = context.named(source), JOINING.get(after.name, "result")

    def compute(operation: Operation) -> Any:
        whole = operation.having(path, operation.value(source)).run()
        return applied(operation, before, start, whole)

    does = f"applies {shown(before)} to the {joined} that {shown(after)} gives, torch to {what} alone"
    fix, code = f"apply {before.name} to {what}, before {after.name}", None
    if (name := function_of(before)) and (pattern := of_two(after)):
        ours = [f"{name}(x, ...)" if place == path else "y" for place, _ in after.inputs]
        code = Code(
            around=pattern.format(*ours),
            before=(f"{name}({pattern.format(*('x' if place == path else 'y' for place, _ in after.inputs))}, ...)",),
            values={"x": context.ports_of(source), "y": context.ports_of(others[0][1])},
            words=fix,
        )
    yield one(Kind.MOVED, after, compute, does, fix, code)
    for other, number in others:

        def crossed(operation: Operation, other: Path = other) -> Any:
            turned = applied(operation, before, start, operation.at(other))
            return operation.having(path, operation.value(source)).having(other, turned).run()

        does = f"applies {shown(before)} to {context.named(number)}, torch to {what}"
        yield one(
            Kind.MOVED, after, crossed, does, f"apply {before.name} to {what}, and not to {context.named(number)}"
        )


def _before(context: Context, before: Node, after: Node) -> Iterator[Edit]:
    """Move an operation from the result to one operand, or to each: f(x + y) becomes f(x) + y or f(x) + f(y)."""
    operands = context.data(before)
    if len(operands) < 2:
        return
    ((path, _),) = context.data(after)
    joined = JOINING.get(before.name, "result")
    choices = [*([each] for each in operands), operands]
    for chosen in choices:

        def compute(operation: Operation, chosen: list[tuple[Path, int]] = chosen) -> Any:
            inner = operation.of(before)
            for place, _ in chosen:
                inner = inner.having(place, applied(operation, after, path, inner.at(place)))
            return inner.run()

        to = " and to ".join(context.named(number) for _, number in chosen)
        does = f"applies {shown(after)} to {to} before the {joined} ({before.line}), torch to the {joined}"
        fix, code = f"take the {joined} first, then apply {after.name} to it", None
        if (name := function_of(after)) and (pattern := of_two(before)):
            places, first = [place for place, _ in chosen], [place for place, _ in before.inputs]
            rest = ", ..." if len(places) == 1 else ""
            theirs = [f"{name}({x}{rest})" if place in places else x for x, place in zip("xy", first, strict=True)]
            values = {x: context.ports_of(number) for x, (_, number) in zip("xy", before.inputs, strict=True)}
            ours = f"{name}({pattern.format('x', 'y')}{rest})"
            code = Code(around=ours, before=(pattern.format(*theirs),), values=values, words=fix)
        yield one(Kind.MOVED, after, compute, does, fix, code)


GENERATORS = (
    left_out,
    both_factors_left_out,
    first_left_out,
    mask_left_out,
    comparison_left_out,
    quotient_left_out,
    moved,
    applied_twice,
)
