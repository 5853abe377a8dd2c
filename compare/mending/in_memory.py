"""Runs the user's functions as edits would leave them, without writing a file or importing a module again."""

import contextlib
import functools
import inspect
from collections.abc import Iterator, Sequence
from types import CodeType, FunctionType
from typing import Any

from compare.mending.syntax import Edit, before_and_after
from compare.step.live import live


@contextlib.contextmanager
def in_force(edits: Sequence[Edit]) -> Iterator[bool]:
    """Give the functions that exist the code that they would have with edits; yield whether any changes.

    What a module or a class body computes stays as it is, and so does what was made before: a layer, an optimizer.
    A function keeps its code if it was made by another one than the file has now, or if edits give it variables of the
    functions around it that it does not use.
    """
    changed: dict[CodeType, CodeType] = {}
    for file, *texts in before_and_after(edits):
        # As bytes: Python takes a byte order mark there alone.
        changed |= _pairs(*(compile(text.encode(), file, "exec", dont_inherit=True) for text in texts))
    files = {code.co_filename for code in changed}
    functions = live([FunctionType]) if changed else []
    known = [(each, code) for each in functions if (code := each.__code__).co_filename in files and code in changed]
    swapped = [(each, code) for each, code in known if code.co_freevars == changed[code].co_freevars]
    try:
        for function, code in swapped:
            function.__code__ = changed[code]
        if swapped:
            _forget_traces(files)
        yield bool(swapped)
    finally:
        for function, code in swapped:
            function.__code__ = code
        if swapped:
            _forget_traces(files)


def _pairs(before: CodeType, after: CodeType) -> dict[CodeType, CodeType]:
    """Give the code of each function that edits change, by the code that it has; nothing if the functions differ."""
    inner = [[each for each in code.co_consts if isinstance(each, CodeType)] for code in (before, after)]
    if [code.co_name for code in inner[0]] != [code.co_name for code in inner[1]]:
        return {}
    found = {} if before == after else {before: after}
    for one, other in zip(*inner, strict=True):
        found |= _pairs(one, other)
    return found


def _forget_traces(files: set[str]) -> None:
    """Make JAX trace the compiled functions of some files again: it keeps traces by function, whatever its code is."""
    import jax

    for each in live([type(jax.jit(lambda: None))]):
        if _file(each) in files:
            each.clear_cache()


def _file(function: Any) -> str:
    """Give the file of a function that others wrap, also Flax's, which keep it as `f`."""
    with contextlib.suppress(ValueError):  # what wraps itself
        function = inspect.unwrap(function)
    while not isinstance(function, FunctionType):
        function = function.func if isinstance(function, functools.partial) else getattr(function, "f", None)
        if function is None:
            return ""
    return function.__code__.co_filename
