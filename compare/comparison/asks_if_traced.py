"""Finds out whether the port's code checks if JAX is tracing it: what it does without a trace is never compared."""

import inspect
from collections.abc import Iterable, Iterator
from types import CodeType, FunctionType
from typing import Any

from compare.step.user_code import of_a_library

_WORDS = frozenset(
    {"Tracer", "JVPTracer", "DynamicJaxprTracer", "is_concrete", "trace_state_clean", "get_opaque_trace_state"}
)
"""Names of JAX's by which a function can tell."""

_DEPTH = 3
"""How deep to look into the closures of functions, and into functions that they name."""


def asks_if_traced(parts: Iterable[Any]) -> str:
    """Name the function among some classes and functions, or in their closures, that asks; nothing if none does."""
    known: set[CodeType] = set()
    for part in parts:
        methods = [each for each in vars(part).values() if callable(each)] if inspect.isclass(part) else [part]
        for method in methods:
            for code in _codes(method, known, _DEPTH):
                if _WORDS & set(code.co_names):
                    return f"{code.co_name} ({code.co_filename.rpartition('/')[2]}:{code.co_firstlineno})"
    return ""


def _codes(function: Any, known: set[CodeType], depth: int) -> Iterator[CodeType]:
    function = inspect.unwrap(getattr(function, "__func__", getattr(function, "func", function)))
    if not isinstance(function, FunctionType) or not depth or of_a_library(function.__code__.co_filename):
        return
    if function.__code__ in known:
        return
    known.add(function.__code__)
    codes = list(_nested(function.__code__))
    yield from codes
    for cell in function.__closure__ or ():
        try:
            value = cell.cell_contents
        except ValueError:  # not yet assigned
            continue
        yield from _codes(value, known, depth - 1)
    for name in {name for code in codes for name in code.co_names}:
        yield from _codes(function.__globals__.get(name), known, depth - 1)


def _nested(code: CodeType) -> Iterator[CodeType]:
    yield code
    for constant in code.co_consts:
        if isinstance(constant, CodeType):
            yield from _nested(constant)
