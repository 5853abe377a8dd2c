"""Reads numbers in the user's code: literals, variables that are assigned once, arguments of a helper's one call."""

import ast
import operator
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import NamedTuple

import libcst
from libcst.metadata import Access, Assignment

from compare.mending.calls import position
from compare.mending.syntax import SourceFile


class Number(NamedTuple):
    """An expression that is a number."""

    value: float
    literals: Mapping[libcst.BaseExpression, float]
    """The literals that it is made of, each with its value."""
    text: str
    """As an expression of the literals, numbered: "1 - {0}"."""


class Reader:
    """Reads numbers.

    Args:
        file: The file.
        nodes: The expressions in which a number may change.

    """

    def __init__(self, file: SourceFile, nodes: Sequence[libcst.CSTNode]) -> None:
        self.file, self.ranges = file, [file.range(node) for node in nodes]

    def numbers(self, nodes: Sequence[libcst.CSTNode]) -> Iterator[Number]:
        """Yield the largest expressions in some that are numbers."""
        for node in nodes:
            if isinstance(node, libcst.BaseExpression) and (number := self.number(node)) is not None:
                yield number
            else:
                yield from self.numbers(node.children)

    def number(self, node: libcst.BaseExpression) -> Number | None:
        """Return the value of an expression; None if it is no number."""
        match node:
            case libcst.Integer() | libcst.Float():
                value = float(ast.literal_eval(node.value))
                return Number(value, {node: value}, "{}")
            case libcst.BinaryOperation(operator=libcst.Add() | libcst.Subtract() | libcst.Multiply()):
                return self._operation(node)
            case libcst.Name():
                return self._variable(node)
        return None

    def _operation(self, node: libcst.BinaryOperation) -> Number | None:
        left, right = self.number(node.left), self.number(node.right)
        if left is None or right is None or left.literals.keys() & right.literals.keys():
            return None
        text = f"({left.text} {self.file.code(node.operator).strip()} {right.text})"
        literals = {**left.literals, **right.literals}
        return Number(eval(text.format(*literals.values()), {}), literals, text)

    def _variable(self, name: libcst.Name) -> Number | None:
        assignment, value = _only_assignment(self.file, name), value_of(self.file, name)
        number = None if value is None else self.number(value)
        # What is used elsewhere too stays as it is, and the number takes its place here.
        if number is not None and assignment is not None and not all(map(self._within, assignment.references)):
            return Number(number.value, {name: number.value}, "{}")
        return number

    def _within(self, access: Access) -> bool:
        start, end = self.file.range(access.node)
        return any(first <= start and end <= last for first, last in self.ranges)


def value_of(file: SourceFile, name: libcst.Name) -> libcst.BaseExpression | None:
    """Return the expression of a variable's value, if it has only one in its scope; None if that is not known."""
    assignment = _only_assignment(file, name)
    return None if assignment is None else _value(file, assignment)


def _only_assignment(file: SourceFile, name: libcst.Name) -> Assignment | None:
    """Return where a variable gets its value, if that is one place."""
    scope = file.scope(name)
    found = [] if scope is None else [*scope[name.value]]
    return found[0] if len(found) == 1 and isinstance(found[0], Assignment) else None


def _value(file: SourceFile, assignment: Assignment) -> libcst.BaseExpression | None:
    parent = file.parent(assignment.node)
    match assignment.node, parent:
        case libcst.Param() as parameter, _:
            return _argument(file, parameter)
        case _, libcst.Param():
            return _argument(file, parent)
        case _, libcst.Element():
            return _in_a_tuple(file, parent)
        case _, libcst.AssignTarget():
            parent = file.parent(parent)
    value = getattr(parent, "value", None)
    assigns = isinstance(parent, libcst.Assign | libcst.AnnAssign)
    return value if assigns and isinstance(value, libcst.BaseExpression) else None


def _in_a_tuple(file: SourceFile, element: libcst.Element) -> libcst.BaseExpression | None:
    """Return what `a, b = 1, 2` assigns to one of the names."""
    names = file.parent(element)
    target = None if names is None else file.parent(names)
    statement = None if target is None else file.parent(target)
    match names, target, statement:
        case (
            libcst.Tuple(elements=to),
            libcst.AssignTarget(),
            libcst.Assign(value=libcst.Tuple(elements=values)),
        ) if len(to) == len(values) and not any(isinstance(each, libcst.StarredElement) for each in (*to, *values)):
            return values[to.index(element)].value
    return None


def _argument(file: SourceFile, parameter: libcst.Param) -> libcst.BaseExpression | None:
    """Return what a function of the file is given for a parameter, if it is called once."""
    function = file.above(parameter, libcst.FunctionDef)
    if function is None or file.above(parameter, libcst.Lambda) is not None:
        return None
    names = [each.name.value for each in function.params.params]
    called = [
        call
        for call in file.nodes(libcst.Call)
        if isinstance(call.func, libcst.Name) and call.func.value == function.name.value
    ]
    if len(called) != 1 or any(each.star for each in called[0].args):
        return None
    at = position(called[0].args, names, parameter.name.value)
    return parameter.default if at is None else called[0].args[at].value


_FUNCTIONS: dict[type, Callable[[float, float], float]] = {
    libcst.Add: operator.add,
    libcst.Subtract: operator.sub,
    libcst.Multiply: operator.mul,
    libcst.Divide: operator.truediv,
    libcst.FloorDivide: operator.floordiv,
    libcst.Power: operator.pow,
    ast.Add: operator.add,
    ast.Sub: operator.sub,
    ast.Mult: operator.mul,
    ast.Div: operator.truediv,
    ast.Pow: operator.pow,
}
"""What the operators of a file and of a fix compute."""

_OPERAND = 0.7071
"""Any value, for an operand that is not known."""


def computed(kind: type, constant: float, *, behind: bool) -> float | None:
    """Compute an operation of some operand and a constant, which is its second operand if `behind`.

    The same operation written in another way gives the same: x / 2 and x * 0.5.
    """
    return _result(kind, _OPERAND, constant) if behind else _result(kind, constant, _OPERAND)


def _result(kind: type, one: float, other: float) -> float | None:
    try:
        result = _FUNCTIONS[kind](one, other)
    except ArithmeticError:
        return None
    return None if isinstance(result, complex) else result


def number(file: SourceFile, node: libcst.BaseExpression) -> float | None:
    """Return the value of an expression of numbers and of the module's constants alone: `WIDTH**-0.5`."""
    match node:
        case libcst.Integer() | libcst.Float():
            return float(ast.literal_eval(node.value))
        case libcst.UnaryOperation(operator=libcst.Minus(), expression=inner):
            return None if (value := number(file, inner)) is None else -value
        case libcst.BinaryOperation(operator=operation, left=left, right=right) if type(operation) in _FUNCTIONS:
            one, other = number(file, left), number(file, right)
            return None if one is None or other is None else _result(type(operation), one, other)
        case libcst.Name() | libcst.Attribute():
            known = file.meaning(node)
            if isinstance(known, int | float):
                return float(known)
            read = Reader(file, ()).number(node)
            return None if read is None else read.value
        case libcst.Call(func=libcst.Attribute(attr=libcst.Name(value="sqrt")), args=[libcst.Arg(value=inner)]):
            return None if (value := number(file, inner)) is None else _result(libcst.Power, value, 0.5)
    return None
