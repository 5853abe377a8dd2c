"""Finds conditions in the Python code of a torch step that are always true, or never, in the steps that are taken.

An auxiliary loss from step 1000 on, or a step that is left out where the gradient is too large: no tensor shows what
such a condition depends on. Which lines run does.
"""

import ast
import contextlib
import functools
import inspect
import linecache
import os
import sys
from collections.abc import Callable, Iterator
from types import CodeType, FrameType
from typing import Any, NamedTuple


class Condition(NamedTuple):
    """An `if` with lines of its own."""

    text: str
    place: str
    lines: range
    """Its own lines."""
    first: int
    """The first line of what runs if it is true."""

    def __str__(self) -> str:
        """Like "torch's `if n > 1000` at train.py:12"."""
        return f"torch's `if {self.text}` at {self.place}"


class Branches:
    """Sees which lines of a step run after which.

    Args:
        step: The user's function. One that has no Python code, or whose source is not known, has no conditions.

    """

    def __init__(self, step: Callable[..., Any]) -> None:
        self._code = _code_of(step)
        self.conditions = list(self._conditions())
        """Those that compare numbers of the step."""
        self._pairs: set[tuple[int, int | None]] = set()
        """Each line that ran, with a line that ran after it; None where the function returned."""

    @contextlib.contextmanager
    def watching(self) -> Iterator[None]:
        """Look on while a step runs; a debugger or a coverage measurement of this thread is set aside for so long."""
        if self._code is None:
            yield
            return
        inside, before = frozenset(_nested(self._code)), sys.gettrace()

        def follow(frame: FrameType, event: str, _: Any) -> Any:
            if frame.f_code not in inside:
                return None
            last = frame.f_lineno

            def line(frame: FrameType, event: str, _: Any) -> Any:
                nonlocal last
                if event in ("line", "return"):
                    self._pairs.add((last, frame.f_lineno if event == "line" else None))
                    last = frame.f_lineno
                return line

            return line

        sys.settrace(follow)
        try:
            yield
        finally:
            sys.settrace(before)

    def one_sided(self) -> list[str]:
        """Name the conditions that had one and the same answer each time."""
        found = []
        for condition in self.conditions:
            answers = {
                line == condition.first
                for before, line in self._pairs
                if before in condition.lines and line not in condition.lines
            }
            if len(answers) == 1:
                answer = "true" if answers == {True} else "false"
                found.append(f"{condition}: it is {answer} at every step; use more steps or other batches")
        return found

    def _conditions(self) -> Iterator[Condition]:
        if self._code is None or (step := _function(self._code)) is None:
            return
        file, own = os.path.basename(self._code.co_filename), _own_names(step)
        for node in ast.walk(step):
            if not isinstance(node, ast.If) or not _compares_numbers(node.test, own):
                continue
            lines = range(node.test.lineno, (node.test.end_lineno or 0) + 1)
            if node.body[0].lineno not in lines:  # or it runs if its condition does, as far as lines show
                yield Condition(ast.unparse(node.test), f"{file}:{lines[0]}", lines, node.body[0].lineno)


def _code_of(step: Any) -> CodeType | None:
    """Return the code of a function, a method, a partial, or an object that is called."""
    step = inspect.unwrap(step)
    if isinstance(step, functools.partial):
        return _code_of(step.func)
    code = getattr(step, "__code__", None) or getattr(vars(type(step)).get("__call__"), "__code__", None)
    return code if isinstance(code, CodeType) else None


def _nested(code: CodeType) -> Iterator[CodeType]:
    """Yield a function's code and that of the functions in it, such as the closure of an optimizer."""
    yield code
    for constant in code.co_consts:
        if isinstance(constant, CodeType):
            yield from _nested(constant)


def _function(code: CodeType) -> Any:
    """Find a function in its file."""
    try:
        tree = ast.parse("".join(linecache.getlines(code.co_filename)))
    except SyntaxError:
        return None
    for node in ast.walk(tree):
        if isinstance(node, ast.FunctionDef) and node.name == code.co_name:
            first = min([node.lineno, *(each.lineno for each in node.decorator_list)])
            if first == code.co_firstlineno:
                return node
    return None


_ORDERS = ast.Lt | ast.LtE | ast.Gt | ast.GtE
_TESTS = {"isfinite", "isnan", "isinf", "any", "all", "allclose", "equal"}
"""Functions whose answer depends on numbers."""

_SIZES = {"shape", "ndim", "dim", "size", "numel", "len"}
"""What a step has the same of at each step, unless its batches have other shapes."""


def _compares_numbers(test: ast.expr, own: set[str]) -> bool:
    """Tell whether a condition compares numbers, and no setting, which is the same at all steps, decides it."""
    operands = test.values if isinstance(test, ast.BoolOp) else [test]
    if _names(test) & _SIZES or not all(_names(operand) & own for operand in operands):
        return False
    for node in ast.walk(test):
        if isinstance(node, ast.Compare):
            remainder = isinstance(node.left, ast.BinOp) and isinstance(node.left.op, ast.Mod)
            if remainder or any(isinstance(each, _ORDERS) for each in node.ops):
                return True
        if isinstance(node, ast.Call) and _names(node.func) & _TESTS:
            return True
    return False


def _names(node: ast.AST) -> set[str]:
    """Return all names and attributes in an expression."""
    found = {each.id for each in ast.walk(node) if isinstance(each, ast.Name)}
    return found | {each.attr for each in ast.walk(node) if isinstance(each, ast.Attribute)}


def _own_names(step: Any) -> set[str]:
    """Return the names that a function takes or assigns: what it only reads from outside is a setting."""
    taken = {each.arg for each in ast.walk(step.args) if isinstance(each, ast.arg)}
    return taken | {
        each.id for each in ast.walk(step) if isinstance(each, ast.Name) and isinstance(each.ctx, ast.Store)
    }
