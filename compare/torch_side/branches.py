"""Finds conditions in the Python code of a torch step that have one and the same answer at every step.

An auxiliary loss from step 1000 on, a step that is left out where the gradient is too large, a warm-up that ends in
min(1, step / 1000), a queue's position that is taken % 500: no tensor shows what such a condition depends on. So the
step is compiled once more, from its source, with each condition handed on.
"""

import ast
import contextlib
import functools
import inspect
import itertools
import linecache
import numbers
import operator
import os
import warnings
from collections.abc import Callable, Iterable, Iterator, Mapping
from types import CellType, CodeType, FunctionType
from typing import Any, NamedTuple

from compare.step.user_code import of_a_library


class Condition(NamedTuple):
    """What an `if` asks, as a statement or within an expression; which number min and max take; whether % wraps."""

    text: str
    place: str
    says: Mapping[Any, str]
    """What is said of it where it has this answer alone; nothing of an answer that is not in it."""

    def __str__(self) -> str:
        """Like "torch's `if n > 1000` at train.py:12"."""
        return f"torch's `{self.text}` at {self.place}"


class Branches:
    """Sees the answers of the conditions in a step, and in functions and methods of the user's that it calls.

    Args:
        step: The user's function. Of one that has no Python code, or whose source is not known, nothing is seen.
        objects: Objects of the user's that it uses, such as the modules of its state.

    """

    def __init__(self, step: Callable[..., Any], objects: Iterable[Any] = ()) -> None:
        self.conditions: list[Condition] = []
        """Those that compare numbers."""
        self._answers: dict[int, set[Any]] = {}
        self._operands: dict[tuple[int, int], set[float]] = {}
        """The numbers that each operand of a condition has been."""
        every = itertools.islice(_functions(_function(step), objects), MOST)
        self._codes = {each: code for each in every if (code := self._compiled(each.__code__))}

    @contextlib.contextmanager
    def watching(self) -> Iterator[None]:
        """Look on while the step runs."""
        before = {each: each.__code__ for each in self._codes}
        try:
            for each, code in self._codes.items():
                each.__code__ = code
            yield
        finally:
            for each, code in before.items():
                each.__code__ = code

    def one_sided(self) -> list[str]:
        """Name the conditions whose numbers change, and whose answer does not."""
        # A setting is the same number each time.
        changing = {number for (number, _), values in self._operands.items() if len(values) > 1}
        return [
            f"{condition}: {said} at every step; use more steps or other batches"
            for number, condition in enumerate(self.conditions)
            if len(answers := self._answers.get(number, set())) == 1 and number in changing
            for said in [condition.says.get(next(iter(answers)))]
            if said
        ]

    def _note(self, number: int, value: Any, operand: int | None = None, *given: Any) -> Any:
        if given:  # a function of numbers
            result = value(*given)
            if value in (min, max, operator.mod) and all(isinstance(each, numbers.Real) for each in given):
                for place, each in enumerate(given):
                    self._note(number, each, place)
                self._answers.setdefault(number, set()).add(given.index(result) if result in given else None)
            return result
        if operand is None:
            self._answers.setdefault(number, set()).add(bool(value))
            return value
        known = self._operands.setdefault((number, operand), set())
        if hasattr(value, "shape") and value.ndim:
            known.update((0.0, 1.0))  # an array's elements change
        else:
            with contextlib.suppress(TypeError, ValueError):
                known.add(float(value.detach() if hasattr(value, "detach") else value))  # torch warns otherwise
        return value

    def _compiled(self, code: CodeType) -> CodeType | None:
        """Compile a function once more; None where it has no condition, or where that is not the same code."""
        definition, known = _definition(code), len(self.conditions)
        if definition is None:
            return None
        file = os.path.basename(code.co_filename)
        choosing = _Choosing(definition)
        for node in ast.walk(definition):
            if isinstance(node, ast.If | ast.IfExp) and (operands := list(_operands(node.test))):
                number = len(self.conditions)
                says = {answer: f"it is {str(answer).lower()}" for answer in (True, False)}
                self.conditions.append(Condition(f"if {ast.unparse(node.test)}", f"{file}:{node.test.lineno}", says))
                for operand, (parent, name, place) in enumerate(operands):
                    values = getattr(parent, name)
                    if place is None:
                        setattr(parent, name, _handed(number, values, operand))
                    else:
                        values[place] = _handed(number, values[place], operand)
                node.test = _handed(number, node.test)
        choosing.hand_on(definition, file, self.conditions)
        found = _code_within(definition, code) if len(self.conditions) > known else None
        if found is None:
            del self.conditions[known:]
        return found and _with(found, self._note)


MOST = 20
"""Functions that are looked at."""


def _handed(number: int, value: ast.expr, operand: int | None = None) -> ast.expr:
    """Write the call that notes a value and gives it back."""
    call = ast.Call(ast.Constant(_HERE), [ast.Constant(number), value, ast.Constant(operand)], [])
    return ast.fix_missing_locations(ast.copy_location(call, value))


class _Choosing(ast.NodeTransformer):
    """Hands on the numbers of which min and max take one, and those of which a remainder is taken."""

    def __init__(self, definition: ast.FunctionDef) -> None:
        tests = [node.test for node in ast.walk(definition) if isinstance(node, ast.If | ast.IfExp)]
        # Whether a remainder in a condition wraps, its answers show.
        asked = {id(node) for test in tests for node in ast.walk(test) if isinstance(node, ast.BinOp)}
        self._texts = {
            id(node): ast.unparse(node)
            for node in ast.walk(definition)
            if _chooses(node)
            or (isinstance(node, ast.BinOp) and isinstance(node.op, ast.Mod) and id(node) not in asked)
        }
        """The expressions, as they are written."""

    def hand_on(self, definition: ast.FunctionDef, file: str, conditions: list[Condition]) -> None:
        self._file, self._conditions = file, conditions
        self.visit(definition)

    def visit_Call(self, node: ast.Call) -> ast.AST:
        said = {place: f"it is {ast.unparse(each)}" for place, each in enumerate(node.args)} if _chooses(node) else {}
        self.generic_visit(node)
        return self._handed(node, said, node.func, node.args) if said else node

    def visit_BinOp(self, node: ast.BinOp) -> ast.AST:
        self.generic_visit(node)
        if id(node) not in self._texts:
            return node
        return self._handed(
            node,
            {0: f"it leaves {self._texts[id(node)].rpartition(' % ')[0]} as it is"},
            ast.Constant(_REMAINDER),
            [node.left, node.right],
        )

    def _handed(self, node: ast.expr, says: Mapping[Any, str], function: ast.expr, given: list[ast.expr]) -> ast.expr:
        number = len(self._conditions)
        self._conditions.append(Condition(self._texts[id(node)], f"{self._file}:{node.lineno}", says))
        call = ast.Call(ast.Constant(_HERE), [ast.Constant(number), function, ast.Constant(None), *given], [])
        return ast.fix_missing_locations(ast.copy_location(call, node))


def _chooses(node: ast.AST) -> bool:
    """Tell whether an expression is min or max of several numbers."""
    if not (isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id in ("min", "max")):
        return False
    return len(node.args) > 1 and not node.keywords and not any(isinstance(each, ast.Starred) for each in node.args)


_REMAINDER = "netparity: the function that takes a remainder"

_HERE = "netparity: the function that a condition is handed to"
"""A constant in whose place the function is put. A name would have to be known in the user's module."""


def _with(code: CodeType, note: Callable[[int, Any], Any]) -> CodeType:
    put = {_HERE: note, _REMAINDER: operator.mod}
    consts = (
        _with(each, note) if isinstance(each, CodeType) else put.get(each, each) if isinstance(each, str) else each
        for each in code.co_consts
    )
    return code.replace(co_consts=tuple(consts))


def _function(step: Any) -> FunctionType | None:
    """Return the Python function behind a function, a method, a partial, or an object that is called."""
    step = inspect.unwrap(step)
    if isinstance(step, functools.partial):
        return _function(step.func)
    step = getattr(step, "__func__", step)
    if not isinstance(step, FunctionType):
        step = vars(type(step)).get("__call__")
    return step if isinstance(step, FunctionType) else None


def _definition(code: CodeType) -> ast.FunctionDef | None:
    """Find a function in its file, without its decorators."""
    try:
        tree = ast.parse("".join(linecache.getlines(code.co_filename)))
    except SyntaxError:
        return None
    for node in ast.walk(tree):
        if isinstance(node, ast.FunctionDef) and node.name == code.co_name:
            first = min([node.lineno, *(each.lineno for each in node.decorator_list)])
            if first == code.co_firstlineno:
                node.decorator_list = []
                return node
    return None


def _code_within(definition: ast.FunctionDef, like: CodeType) -> CodeType | None:
    """Compile a function within one that has the names which it reads from around it; None if it is another one."""
    around = [ast.arg(name) for name in like.co_freevars]
    outer = ast.FunctionDef("outer", ast.arguments([], around, None, [], [], None, []), [definition], [])
    tree = ast.fix_missing_locations(ast.Module([ast.copy_location(outer, definition)], []))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", SyntaxWarning)  # that a constant cannot be called
        whole = compile(tree, like.co_filename, "exec", dont_inherit=True)
    for outside in (each for each in whole.co_consts if isinstance(each, CodeType)):
        for code in (each for each in outside.co_consts if isinstance(each, CodeType)):
            same = all(
                getattr(code, name) == getattr(like, name) for name in ("co_freevars", "co_varnames", "co_names")
            )
            if same and code.co_name == like.co_name:
                return code
    return None


def _functions(function: FunctionType | None, objects: Iterable[Any]) -> Iterator[FunctionType]:
    """Yield a function, those of the user's that it calls by their names, and methods of objects, each once."""
    found, left = set[FunctionType | None](), [function]
    methods = [each for used in objects for each in _methods(used)]
    while left or methods:
        each = (left or methods).pop(0)  # a model may have many methods: what the step calls by name comes first
        if each is None or each in found or of_a_library(each.__code__.co_filename):
            continue
        found.add(each)
        yield each
        cells = [cell.cell_contents for cell in each.__closure__ or () if cell != CellType()]
        for value in (*cells, *(each.__globals__[name] for name in each.__code__.co_names if name in each.__globals__)):
            if isinstance(value, FunctionType | functools.partial):
                left.append(_function(value))
            elif not isinstance(value, type):
                methods += _methods(value)


def _methods(used: Any) -> list[FunctionType]:
    """List the methods of an object, and of the modules in it."""
    inner = used.modules() if hasattr(used, "named_modules") else (used,)
    kinds = dict.fromkeys(kind for each in inner for kind in type(each).__mro__)
    return [each for kind in kinds for each in vars(kind).values() if isinstance(each, FunctionType)]


_ORDERS = ast.Lt | ast.LtE | ast.Gt | ast.GtE
_TESTS = {"isfinite", "isnan", "isinf", "any", "all", "allclose", "equal"}
"""Functions whose answer depends on numbers."""


def _operands(test: ast.expr) -> Iterator[tuple[ast.AST, str, int | None]]:
    """Yield the numbers that a condition compares: each as a field of a node, and its place in it if that is a list."""
    for node in ast.walk(test):
        if isinstance(node, ast.Compare):
            remainder = isinstance(node.left, ast.BinOp) and isinstance(node.left.op, ast.Mod)
            if remainder or any(isinstance(each, _ORDERS) for each in node.ops):
                yield node, "left", None
                yield from ((node, "comparators", place) for place in range(len(node.comparators)))
        elif isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute | ast.Name):
            name = node.func.attr if isinstance(node.func, ast.Attribute) else node.func.id
            if name in _TESTS:
                yield from ((node, "args", place) for place in range(len(node.args)))
                if isinstance(node.func, ast.Attribute) and not node.args:
                    yield node.func, "value", None
