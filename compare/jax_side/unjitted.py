"""Runs steps that are not compiled as a whole: their Python code runs at every step, and may read values of arrays.

Such a step is traced again each time, so that its own counters advance; equal programs are compiled once. Where it
reads a value, as `if loss > 1`, `float(loss)` and `np.asarray(x)` do, a tracer has none: the program up to there is run
to get the value, and the step is traced again with the value known.
"""

import contextlib
import functools
import hashlib
import operator
from collections.abc import Callable, Iterator, Sequence
from types import CodeType, FunctionType, MethodType
from typing import Any

import numpy as np

from compare.jax_side.labels import LOOK, Label, labelled
from compare.jax_side.primitives import Program, is_tracer, programs

_MOST = 200
"""Numbers that one step may look at: each is a trace of its own."""


class Looked(BaseException):
    """The step reads a value that is not known yet. Not an `Exception`, which the step might catch."""


class Refused:
    """Stands for a value that cannot be read, such as one inside of jit."""


def compiled_by_user(step: Callable[..., Any]) -> bool:
    """Return whether a step is compiled as a whole: by `jax.jit`, `nnx.jit`, `eqx.filter_jit`, `jax.pmap`."""
    while isinstance(step, functools.partial):
        step = step.func
    return hasattr(step, "lower")


@contextlib.contextmanager
def looking(known: Sequence[Any]) -> Iterator[None]:
    """Let traced values be read in this context: the first ones are known, and the next one raises `Looked`."""
    from unittest import mock

    import jax

    cls, at = jax.core.Tracer, iter(range(_MOST))

    def look(value: Any, original: Callable[..., Any], args: Any, convert: Callable[[Any], Any]) -> Any:
        number = next(at, None)
        if number is None:
            return original(value, *args)
        if number < len(known):
            found = known[number]
            return original(value, *args) if isinstance(found, Refused) else convert(found)
        _name(value)
        raise Looked

    with contextlib.ExitStack() as stack:
        for name, convert in _CONVERSIONS.items():
            if (original := getattr(cls, name, None)) is None:
                continue

            def method(self: Any, *args: Any, convert: Any = convert, original: Any = original, **kwargs: Any) -> Any:
                return look(self, original, args, lambda found: convert(found, *args, **kwargs))

            stack.enter_context(mock.patch.object(cls, name, method))
        yield


def _array(found: np.ndarray, dtype: Any = None, *_: Any, **__: Any) -> np.ndarray:
    return np.array(found, dtype)


_CONVERSIONS: dict[str, Callable[..., Any]] = {
    "__bool__": bool,
    "__int__": int,
    "__float__": float,
    "__complex__": complex,
    "__index__": lambda found: found.__index__(),
    "__array__": _array,
    "__format__": lambda found, spec: format(found.item(), spec),
    "item": lambda found, *at: found.item(*at),
    "tolist": lambda found: found.tolist(),
}
"""The methods by which Python and NumPy read a value of an array, and how to answer them from a known value."""


def _name(value: Any) -> None:
    """Leave the value in the program under a name, with its shape: inside of vmap it has another."""
    labelled(value, Label(LOOK, "", "x".join(map(str, value.shape)), ""))


def looked_at(shown: Sequence[Any]) -> Any:
    """Return the number that a program was stopped for, from what it shows; `Refused` if it does not show it."""
    for each in reversed(shown):
        for key, (value, _) in each.items():
            if key.what == LOOK:
                return np.asarray(value) if key.path == "x".join(map(str, value.shape)) else Refused()
    return Refused()


class Remembered:
    """What a function keeps in Python from one call to the next, to be put back where a call is begun again.

    That is what its variables outside of it refer to, and what lists, dicts and plain objects there hold.

    Args:
        function: The function.

    """

    def __init__(self, function: Callable[..., Any] | None) -> None:
        self._restore: list[Callable[[], None]] = []
        self._looks: list[tuple[Callable[[], Any], Any]] = []
        """What gives the content of each, and what it was."""
        self._known: set[int] = set()
        self._remember(function)

    def restore(self) -> None:
        """Put everything back."""
        for each in self._restore:
            each()

    @property
    def changed(self) -> bool:
        """Whether anything of it is another now."""
        return any(not _same(look(), before) for look, before in self._looks)

    def _remember(self, value: Any) -> None:
        if id(value) in self._known:
            return
        self._known.add(id(value))
        while isinstance(value, functools.partial):
            value = value.func
        if isinstance(value, MethodType):
            self._remember(value.__self__)
            value = value.__func__
        value = getattr(value, "__wrapped__", value)
        if isinstance(value, FunctionType):
            self._variables(value)
        elif isinstance(value, list):
            self._restore.append(functools.partial(value.__setitem__, slice(None), list(value)))
            self._looks.append((functools.partial(list, value), list(value)))
        elif isinstance(value, dict):
            self._looks.append((lambda: list(value.items()), list(value.items())))
            self._restore.append(functools.partial(_refill, value, dict(value)))
        elif _plain(value):
            self._restore.append(functools.partial(_refill, vars(value), dict(vars(value))))

    def _variables(self, function: FunctionType) -> None:
        for cell in function.__closure__ or ():
            with contextlib.suppress(ValueError):  # not bound yet
                self._restore.append(functools.partial(setattr, cell, "cell_contents", cell.cell_contents))
                self._looks.append((functools.partial(_content, cell), _content(cell)))
                self._remember(cell.cell_contents)
        for name in _global_names(function.__code__):
            value = function.__globals__.get(name)
            if isinstance(value, int | float | list | dict):
                self._restore.append(functools.partial(function.__globals__.__setitem__, name, value))
                self._looks.append((functools.partial(_variable, function.__globals__, name), [value]))
                self._remember(value)


def _content(cell: Any) -> list[Any]:
    return [cell.cell_contents]


def _variable(variables: dict[str, Any], name: str) -> list[Any]:
    return [variables.get(name)]


def _same(now: list[Any], before: list[Any]) -> bool:
    """Return whether two lists hold the same objects, or pairs of them."""
    if len(now) != len(before):
        return False
    pairs = zip(now, before, strict=True)
    return all(
        all(map(operator.is_, one, other)) if isinstance(one, tuple) and len(one) == 2 == len(other) else one is other
        for one, other in pairs
    )


def _plain(value: Any) -> bool:
    """Tell whether a value is an object of a class of the user's own, and no pytree: these change by being replaced."""
    import jax

    kind = type(value)
    library = kind.__module__.partition(".")[0] in ("builtins", "jax", "jaxlib", "flax", "optax", "equinox", "numpy")
    return (
        not library and not isinstance(value, type) and hasattr(value, "__dict__") and jax.tree.leaves(value) == [value]
    )


def _refill(kept: dict[Any, Any], content: dict[Any, Any]) -> None:
    kept.clear()
    kept.update(content)


def _global_names(code: CodeType) -> Iterator[str]:
    yield from code.co_names
    for constant in code.co_consts:
        if isinstance(constant, CodeType):
            yield from _global_names(constant)


def fingerprint(program: Any) -> str:
    """Return a text that is the same for two programs that compute the same from the same arguments."""
    # The text of a program has its operations, types and small constants, and leaves out the values of
    # its arrays.
    text = hashlib.sha256(str(program).encode())
    for constant in _constants(program):
        array = constant if not is_tracer(constant) else None
        if hasattr(array, "dtype") and getattr(array, "ndim", None) is not None:
            with contextlib.suppress(TypeError):  # a random key
                array = np.asarray(array)
        text.update(array.tobytes() if isinstance(array, np.ndarray) else repr(constant).encode())
    return text.hexdigest()


def _constants(program: Any) -> Iterator[Any]:
    taken = Program.of(program)
    yield from taken.constants
    for equation in taken.equations:
        for inner in programs(equation):
            yield from _constants(inner)
