"""Notes where the user's code makes its Flax modules and its optimizers."""

import contextlib
import functools
import inspect
import sys
from collections.abc import Callable, Iterator
from typing import Any

from compare.step.made import note
from compare.step.places import JAX_PACKAGES
from compare.step.user_code import passes_on


@contextlib.contextmanager
def noted() -> Iterator[None]:
    """Note each module, and each transformation of optax, that is made while this lasts."""
    from unittest import mock  # which brings asyncio: not for everybody who imports compare

    import optax

    with modules_noted(), contextlib.ExitStack() as stack:
        for name, function in vars(optax).items():
            # optax's transformations are tuples of functions. Only their makers can be seen, and only their
            # annotations tell which functions of optax are makers.
            if inspect.isfunction(function) and "GradientTransformation" in str(_result(function)):
                stack.enter_context(mock.patch.object(optax, name, _noting(function)))
        yield


@contextlib.contextmanager
def modules_noted() -> Iterator[None]:
    """Note each module of nnx, Linen, Equinox and Haiku that is made while this lasts."""
    from unittest import mock

    from flax import linen, nnx

    with contextlib.ExitStack() as stack:
        # The metaclass makes the object, before any code of the class runs: the caller's frame is the user's
        # line.
        others = (sys.modules.get(package) for package in ("equinox", "haiku"))
        for meta in (type(nnx.Module), *(type(package.Module) for package in others if package)):
            stack.enter_context(mock.patch.object(meta, "__call__", _noting(meta.__call__)))
        stack.enter_context(mock.patch.object(linen.Module, "__post_init__", _initializing(linen.Module.__post_init__)))
        yield


def _result(function: Any) -> Any:
    return getattr(function, "__annotations__", {}).get("return", "")


def _noting(make: Callable[..., Any]) -> Callable[..., Any]:
    @functools.wraps(make)
    @passes_on
    def noting(*args: Any, **kwargs: Any) -> Any:
        made = make(*args, **kwargs)
        note(made, *JAX_PACKAGES)
        return made

    return noting


def _initializing(original: Callable[..., None]) -> Callable[..., None]:
    @functools.wraps(original)
    @passes_on
    def initialize(module: Any, *args: Any, **kwargs: Any) -> None:
        note(module, *JAX_PACKAGES)
        original(module, *args, **kwargs)

    return initialize
