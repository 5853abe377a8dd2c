"""Intercepts the calls of modules of nnx and Equinox, as `linen.intercept_methods` does those of Linen's."""

import contextlib
import functools
from collections.abc import Callable, Iterable, Iterator
from typing import Any

from compare.jax_side.state import is_equinox_module
from compare.step.user_code import passes_on

Intercept = Callable[[Any, Callable[..., Any], Any, Any], Any]
"""It gets a module, its function, and the function's args and kwargs, without the module, which the function takes
first."""


@contextlib.contextmanager
def intercepted(classes: Iterable[Any], call: Intercept) -> Iterator[None]:
    """Have `call` called in the place of the modules of these classes, while this lasts.

    Python looks `__call__` up on the class, so `call` gets all modules of a class. A call that a module makes of its
    base class, `super().__call__()`, is part of its own.
    """
    from unittest import mock  # which brings asyncio: not for everybody who imports compare

    inside: list[int] = []
    with contextlib.ExitStack() as stack:
        for cls in dict.fromkeys(classes):
            stack.enter_context(mock.patch.object(cls, "__call__", _intercepted(cls.__call__, call, inside)))
        yield


def equinox_classes(tree: Any) -> Iterator[type]:
    """Yield the classes of the modules of Equinox in a pytree that can be called.

    `eqx.filter_jit` and `eqx.filter_grad` take a module apart, and call another one of its class with the same arrays.
    """
    return (type(module) for _, module in modules_in(tree) if callable(module))


def modules_in(tree: Any, path: str = "") -> Iterator[tuple[str, Any]]:
    """Yield the modules of Equinox in a pytree with their paths, each before those within it."""
    import jax

    for keys, value in jax.tree_util.tree_flatten_with_path(tree, is_leaf=is_equinox_module)[0]:
        if is_equinox_module(value):
            own = "/".join(filter(None, (path, jax.tree_util.keystr(keys, simple=True, separator="/"))))
            yield own, value
            yield from modules_in(vars(value), own)


def _intercepted(original: Callable[..., Any], call: Intercept, inside: list[int]) -> Callable[..., Any]:
    @passes_on
    def function(module: Any, *args: Any, **kwargs: Any) -> Any:
        inside.append(id(module))
        try:
            return original(module, *args, **kwargs)
        finally:
            inside.pop()

    @functools.wraps(original)
    @passes_on
    def called(module: Any, *args: Any, **kwargs: Any) -> Any:
        if id(module) in inside:
            return original(module, *args, **kwargs)
        return call(module, function, args, kwargs)

    return called
