"""Intercepts the calls of Equinox's modules, as `linen.intercept_methods` does those of Linen's."""

import functools
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from typing import Any

from compare.jax_side.state import is_equinox_module
from compare.step.user_code import passes_on

Intercept = Callable[[Any, Callable[..., Any], Any, Any], Any]
"""It gets a module, its function, and the function's args and kwargs, without the module, which the function takes
first."""


def intercepted(tree: Any, call: Intercept) -> Iterator[AbstractContextManager[Any]]:
    """Give the patches under which `call` is called in the place of the modules in a pytree, and of those within them.

    It is called for other modules of the same classes, too: `eqx.filter_jit` and `eqx.filter_grad` take a module apart
    and call another one with the same arrays.
    """
    from unittest import mock  # which brings asyncio: not for everybody who imports compare

    inside: list[int] = []
    for cls in dict.fromkeys(type(module) for _, module in modules_in(tree) if callable(module)):
        yield mock.patch.object(cls, "__call__", _intercepted(cls.__call__, call, inside))


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
        if id(module) in inside:  # a super().__call__() is part of the same call
            return original(module, *args, **kwargs)
        return call(module, function, args, kwargs)

    return called
