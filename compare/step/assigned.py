"""Finds in the source of a class the call that makes what it assigns to an attribute, such as a layer.

Where the user's objects were made before this package could watch, this is how their lines are known.
"""

import ast
import builtins
import functools
import inspect
import linecache
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from compare.step.places import Source


def made_in(parents: Sequence[tuple[Any, str]], kind: type) -> Source | None:
    """Return the call that makes a module, as the class that holds it has it.

    Args:
        parents: The objects that the module is inside, the innermost first, each with the attribute that leads to it.
        kind: The module's class: of several calls, as in a list, the one that calls it.

    Returns:
        None where no class of the user's assigns it, or where several calls may make it.

    """
    for holder, name in parents:
        if found := [
            call for value, names, file in _assigned(holder, name) for call in _calls(value, kind, names, file)
        ]:
            return found[0] if len(set(found)) == 1 else None
    return None


def given_to(call: Source, name: str, position: int) -> Source | None:
    """Return the expression that a call has for an argument: of a variable, the one that it was assigned to."""
    tree = _parsed(call.file)
    if tree is None or call.span is None:
        return None
    within = [node for node in ast.walk(tree) if isinstance(node, ast.Call) and _span(node) == call.span]
    if not within:
        return None
    arguments, plain = within[0].args, None
    if position < len(arguments) and not any(isinstance(each, ast.Starred) for each in arguments):
        plain = arguments[position]
    given: ast.expr | None = next((each.value for each in within[0].keywords if each.arg == name), plain)
    if isinstance(given, ast.Name):
        values = [value for target, value in _assignments(_around(tree, call.line)) if _is_name(target, given.id)]
        given = values[0] if len(values) == 1 else None
    return _source(call.file, given) if isinstance(given, ast.Call) else None


def _assigned(holder: Any, name: str) -> Iterator[tuple[ast.expr, Mapping[str, Any], str]]:
    """List what the methods of an object's class assign to an attribute, with what names mean there."""
    for base in type(holder).__mro__:
        for method in map(inspect.unwrap, filter(inspect.isfunction, vars(base).values())):
            file = method.__code__.co_filename
            tree = _parsed(file)
            if tree is None or Source(file, 0, "").is_installed:
                continue
            for function in _functions(tree, method.__code__.co_firstlineno):
                for target, value in _assignments(function):
                    if isinstance(target, ast.Attribute) and target.attr == name:
                        yield value, method.__globals__, file


def _functions(tree: ast.Module, line: int) -> Iterator[ast.FunctionDef]:
    for node in ast.walk(tree):
        if isinstance(node, ast.FunctionDef) and line in (node.lineno, *(each.lineno for each in node.decorator_list)):
            yield node


def _around(tree: ast.Module, line: int) -> ast.AST:
    """Return the innermost function that a line is in, or the module."""
    within = [
        node
        for node in ast.walk(tree)
        if isinstance(node, ast.FunctionDef) and node.lineno <= line <= (node.end_lineno or 0)
    ]
    return max(within, key=lambda node: node.lineno, default=tree)


def _assignments(node: ast.AST) -> Iterator[tuple[ast.expr, ast.expr]]:
    """List what is assigned in a function, each target with its value: `a, b = f(), g()` are two."""
    for each in ast.walk(node):
        if isinstance(each, ast.AnnAssign) and each.value is not None:
            yield each.target, each.value
        for target in each.targets if isinstance(each, ast.Assign) else ():
            value = each.value  # type: ignore[attr-defined]
            if not isinstance(target, ast.Tuple):
                yield target, value
            elif isinstance(value, ast.Tuple) and len(value.elts) == len(target.elts):
                yield from zip(target.elts, value.elts, strict=True)
            else:
                yield from ((part, value) for part in target.elts)


def _is_name(node: ast.expr, name: str) -> bool:
    return isinstance(node, ast.Name) and node.id == name


def _calls(value: ast.expr, kind: type, names: Mapping[str, Any], file: str) -> Iterator[Source]:
    for node in ast.walk(value):
        if isinstance(node, ast.Call) and _meaning(node.func, names) is kind:
            yield _source(file, node)


def _meaning(node: ast.expr, names: Mapping[str, Any]) -> Any:
    match node:
        case ast.Name(id=name):
            return names.get(name, getattr(builtins, name, None))
        case ast.Attribute(value=value, attr=name):
            return getattr(_meaning(value, names), name, None)
    return None


def _span(node: ast.expr) -> tuple[int, int, int, int]:
    return node.lineno, node.end_lineno or node.lineno, node.col_offset, node.end_col_offset or node.col_offset


def _source(file: str, node: ast.expr) -> Source:
    return Source(file, node.lineno, linecache.getline(file, node.lineno).strip(), _span(node))


def _parsed(file: str) -> ast.Module | None:
    try:
        return _tree(file, Path(file).stat().st_mtime)
    except (OSError, SyntaxError, ValueError):
        return None


@functools.lru_cache(maxsize=32)
def _tree(file: str, changed: float) -> ast.Module:
    del changed  # a file that has changed is read anew
    return ast.parse(Path(file).read_text(encoding="utf-8"))
