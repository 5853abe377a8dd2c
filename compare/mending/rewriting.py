"""Fixes that replace one expression by another. The first is a pattern that is found in the user's syntax tree.

The names of a pattern stand for any expression. `jax.nn.relu(x, ...) + y` is found in `nnx.relu(self.norm(h)) + skip`,
and with `jax.nn.relu(x + y, ...)` as the fix it becomes `nnx.relu(self.norm(h) + skip)`.
"""

import ast
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

import libcst

from compare.mending.calls import parameters, position
from compare.mending.functions import expressions, is_function, put
from compare.mending.syntax import Edit, SourceFile, Unfit
from compare.mending.values import gives_value, name_of_value
from compare.verdict.divergence import Line, Role
from compare.verdict.fix import Code

Values = Mapping[str, Sequence[Line]]
"""The lines that have the values which names of a fix stand for."""


@dataclass(frozen=True)
class Match:
    """Which expression of the user's each name of a pattern stands for."""

    names: Mapping[str, libcst.BaseExpression]
    rest: str = ""
    """The arguments of a call for which the pattern has "..."."""


def rewrite(file: SourceFile, code: Code, lines: Sequence[Line], values: Values) -> list[Edit]:
    """Put a fix in the place of the one expression that is what it replaces.

    Args:
        file: The file that the lines are in.
        code: The fix, with `before`.
        lines: Those that compute what differs.
        values: See `Values`.

    """
    found = list(_found(file, code, lines, values))
    if len(found) > 1:  # where x + y is also y + x, what the names stand for decides
        found = [(node, match) for node, match in found if _fits(file, match, values)]
    if len(found) != 1 or _may_be_meant(file, code, lines, found[0][0]):
        raise Unfit("which expression it changes is not known")
    node, match = found[0]
    text = str(code).replace(", ...", f", {match.rest}" if match.rest else "")
    names = {each.id for each in ast.walk(ast.parse(text, mode="eval")) if isinstance(each, ast.Name)}
    missing = names & values.keys() - match.names.keys()
    others = {name: name_of_value(file, values[name], node) for name in missing}
    return put(file, node, text, {**match.names, **others})


def _found(
    file: SourceFile, code: Code, lines: Sequence[Line], values: Values
) -> Iterator[tuple[libcst.BaseExpression, Match]]:
    for pattern in code.before:
        tree = ast.parse(pattern, mode="eval").body
        # A name alone is a value itself: the call of the layer that gives it.
        at = values.get(tree.id, ()) if isinstance(tree, ast.Name) else lines
        for node in _of(file, at):
            for match in _matches(file, tree, node, Match({})):
                yield node, match


def _of(file: SourceFile, lines: Sequence[Line]) -> list[libcst.BaseExpression]:
    return expressions(file, [line for line in lines if line.role in (Role.CALLED, Role.COMPUTED)])


def _may_be_meant(file: SourceFile, code: Code, lines: Sequence[Line], found: libcst.BaseExpression) -> bool:
    """Tell whether another call of the same function may be meant: it is given a list that is no literal."""
    for pattern in code.before:
        tree = ast.parse(pattern, mode="eval").body
        if not isinstance(tree, ast.Call) or not tree.args or not isinstance(tree.args[0], ast.List):
            continue
        calls = [each for each in _of(file, lines) if isinstance(each, libcst.Call) and each.args and each is not found]
        for call in calls:
            literal = isinstance(call.args[0].value, libcst.List | libcst.Tuple)
            if not literal and is_function(file.meaning(call.func), ast.unparse(tree.func)):
                return True
    return False


def _fits(file: SourceFile, match: Match, values: Values) -> bool:
    bound = [(match.names[name], lines) for name, lines in values.items() if name in match.names]
    return all(gives_value(file, node, lines) for node, lines in bound)


def _matches(file: SourceFile, pattern: ast.expr, node: libcst.BaseExpression, so_far: Match) -> Iterator[Match]:
    """List the ways in which an expression is what a pattern says."""
    match pattern, node:
        case ast.Name(id=name), _:
            # A name that occurs twice in a pattern must stand for the same code both times.
            if name not in so_far.names or file.code(so_far.names[name]) == file.code(node):
                yield Match({**so_far.names, name: node}, so_far.rest)
        case ast.BinOp(left=left, op=op, right=right), libcst.BinaryOperation():
            if not isinstance(node.operator, _OPERATORS[type(op)]):
                return
            # Addition and multiplication are commutative, so their operands may be written in either order.
            sides = [(node.left, node.right), (node.right, node.left)]
            for first, second in sides if isinstance(op, ast.Add | ast.Mult) else sides[:1]:
                for match in _matches(file, left, first, so_far):
                    yield from _matches(file, right, second, match)
        case ast.List(elts=parts), libcst.List(elements=elements) | libcst.Tuple(elements=elements):
            if len(parts) == len(elements) and all(isinstance(each, libcst.Element) for each in elements):
                yield from _all(file, parts, [each.value for each in elements], so_far)
        case ast.Call(), libcst.Call():
            if is_function(file.meaning(node.func), ast.unparse(pattern.func)):
                yield from _arguments(file, pattern, node, so_far)


def _all(
    file: SourceFile, patterns: Sequence[ast.expr], nodes: Sequence[libcst.BaseExpression], so_far: Match
) -> Iterator[Match]:
    if not patterns:
        yield so_far
        return
    for match in _matches(file, patterns[0], nodes[0], so_far):
        yield from _all(file, patterns[1:], nodes[1:], match)


def _arguments(file: SourceFile, pattern: ast.Call, node: libcst.Call, so_far: Match) -> Iterator[Match]:
    """Match the arguments of a call: those by position, those by name with their values, and the others."""
    wanted = [each for each in pattern.args if not _is_rest(each)]
    order, taken = parameters(file.meaning(node.func)), set(range(len(wanted)))
    if len(node.args) < len(wanted) or any(each.keyword or each.star for each in node.args[: len(wanted)]):
        return
    for keyword in pattern.keywords:
        at = position(node.args, order, keyword.arg or "")
        if at is None or _value(file.code(node.args[at].value)) != _value(ast.unparse(keyword.value)):
            return
        taken.add(at)
    rest = ", ".join(file.code(each) for number, each in enumerate(node.args) if number not in taken)
    rest = rest.rstrip(", ")  # the comma before the parenthesis that closes a call of several lines
    if rest and len(wanted) == len(pattern.args):
        return
    yield from _all(file, wanted, [each.value for each in node.args], Match(so_far.names, rest or so_far.rest))


def _is_rest(node: ast.expr) -> bool:
    return isinstance(node, ast.Constant) and node.value is Ellipsis


def _value(text: str) -> object:
    """Return the value of a literal; another expression is equal to none."""
    try:
        return ast.literal_eval(text.strip())
    except (ValueError, SyntaxError):
        return object()


_OPERATORS: dict[type[ast.operator], type[libcst.BaseBinaryOp]] = {
    ast.Add: libcst.Add,
    ast.Sub: libcst.Subtract,
    ast.Mult: libcst.Multiply,
    ast.Div: libcst.Divide,
    ast.MatMult: libcst.MatrixMultiply,
}
