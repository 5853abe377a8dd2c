"""Keeps the numbers that a function holds in Python from one call to the next, such as a count of steps."""

import contextlib
import functools
from collections.abc import Callable
from types import FunctionType, MethodType, ModuleType
from typing import Any


def counts(function: Callable[..., Any]) -> Callable[[], None]:
    """Keep the numbers in a function's closure and globals, and give the function that puts them back.

    They may be variables, elements of lists and dicts, and attributes of objects of the user's own.
    """
    restores: list[Callable[[], None]] = []
    _keep(function, restores, set())

    def restore() -> None:
        for each in restores:
            each()

    return restore


def _keep(value: Any, restores: list[Callable[[], None]], known: set[int]) -> None:
    if id(value) in known:
        return
    known.add(id(value))
    while isinstance(value, functools.partial):
        value = value.func
    if isinstance(value, MethodType):
        _keep(value.__self__, restores, known)
        value = value.__func__
    if isinstance(value, FunctionType):
        for cell in value.__closure__ or ():
            with contextlib.suppress(ValueError):  # not bound yet
                if _is_number(cell.cell_contents):
                    restores.append(functools.partial(setattr, cell, "cell_contents", cell.cell_contents))
                else:
                    _keep(cell.cell_contents, restores, known)
        names, variables = set(value.__code__.co_names), value.__globals__
        _keep_numbers({name: each for name, each in variables.items() if name in names}, variables, restores)
    elif isinstance(value, dict):
        _keep_numbers(value, value, restores)
    elif isinstance(value, list) and all(map(_is_number, value)):
        restores.append(functools.partial(value.__setitem__, slice(None), list(value)))
    elif _is_users(value):
        _keep_numbers(vars(value), vars(value), restores)


def _keep_numbers(known: dict[str, Any], kept: dict[str, Any], restores: list[Callable[[], None]]) -> None:
    numbers = {name: each for name, each in known.items() if _is_number(each)}
    if numbers:
        restores.append(functools.partial(kept.update, numbers))


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float)


def _is_users(value: Any) -> bool:
    """Tell whether a value is an object of a class of the user's own."""
    library = type(value).__module__.partition(".")[0] in ("builtins", "torch", "numpy")
    return not library and hasattr(value, "__dict__") and not isinstance(value, type | ModuleType)
