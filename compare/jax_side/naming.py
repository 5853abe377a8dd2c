"""Names the inputs and outputs of modules, and the gradients for optimizers, while a user's step is traced.

Modules and optimizers of nnx and Linen are patched for the time of the trace. JAX may trace a function once and call it
many times. So nothing is counted here: the number of a call is that of the name's occurrence in the traced program.
"""

import contextlib
import functools
import itertools
import sys
from collections.abc import Callable, Iterator, Mapping
from typing import Any

from compare.jax_side.equinox_calls import intercepted
from compare.jax_side.labels import Label, leaves, named
from compare.jax_side.program_state import nnx_objects
from compare.step.user_code import passes_on

PATH = "netparity_path"
"""The attribute under which an nnx module keeps its path in the state; it goes with the module through `nnx.jit`."""


@contextlib.contextmanager
def naming(state: Any, classes: dict[str, type | None]) -> Iterator[None]:
    """Name what modules and optimizers take and give, in everything that is traced while this lasts.

    Args:
        state: The state of the step.
        classes: Filled with the classes of the modules of Linen and Haiku that run, by name; None where several have a
            name.

    """
    from unittest import mock

    from flax import linen, nnx
    from flax.training.train_state import TrainState

    # A module of Linen, Equinox or Haiku does not know its place in the state. Each call gets a number, and the
    # parameters that it is applied to, which are named too, tell the place when the program is run.
    numbers = map(str, itertools.count())
    with contextlib.ExitStack() as stack:
        for patch in intercepted(state, functools.partial(_equinox_call, numbers)):
            stack.enter_context(patch)
        for cls in _classes(nnx_objects(state)):
            stack.enter_context(mock.patch.object(cls, "__call__", _named_call(cls.__call__)))
        stack.enter_context(mock.patch.object(nnx.Optimizer, "update", _named_update(nnx.Optimizer.update)))
        apply_gradients = _named_gradients(TrainState.apply_gradients, numbers)
        stack.enter_context(mock.patch.object(TrainState, "apply_gradients", apply_gradients))
        roots: list[str] = []
        # Not `Module.apply`: the user's step may have it as it was, as in `jax.jit(model.apply)`.
        stack.enter_context(mock.patch("flax.linen.module.apply", _named_apply(linen.apply, roots, numbers)))
        stack.enter_context(linen.intercept_methods(functools.partial(_linen_call, roots, classes)))
        if haiku := sys.modules.get("haiku"):
            stack.enter_context(haiku.intercept_methods(functools.partial(_haiku_call, numbers, classes)))
        yield


def _classes(objects: Mapping[str, Any]) -> set[type]:
    """Tell each nnx module its path, and give the modules' classes."""
    from flax import nnx

    classes = set()
    for root, value in objects.items():
        if not isinstance(value, nnx.Module):
            continue
        for path, module in nnx.iter_modules(value):
            if callable(module) and PATH not in vars(module):
                setattr(module, PATH, "/".join(filter(None, [root, *map(str, path)])))
                classes.add(type(module))
            elif callable(module):
                classes.add(type(module))
    return classes


def _named_call(original: Callable[..., Any]) -> Callable[..., Any]:
    """Name what a module of nnx takes and gives: Python looks `__call__` up on the class."""
    inside: list[int] = []

    @functools.wraps(original)
    @passes_on
    def call(module: Any, *args: Any, **kwargs: Any) -> Any:
        path = vars(module).get(PATH)
        if path is None or id(module) in inside:  # a super().__call__() is part of the same call
            return original(module, *args, **kwargs)
        inside.append(id(module))
        try:
            return _named_ports(functools.partial(original, module), args, kwargs, "", path, type(module))
        finally:
            inside.pop()

    return call


def _named_update(original: Callable[..., Any]) -> Callable[..., Any]:
    """Name the gradients that an `nnx.Optimizer` is given."""

    @functools.wraps(original)
    @passes_on
    def update(optimizer: Any, model: Any, grads: Any, *args: Any, **kwargs: Any) -> Any:
        return original(optimizer, model, _named_gradient(model, grads), *args, **kwargs)

    return update


def _named_gradient(model: Any, grads: Any) -> Any:
    """Name each gradient by the path in the state of the innermost module that has one, and the path within it.

    The model may be a container of the state's modules that the step has made.
    """
    import jax
    from jax.ad_checkpoint import checkpoint_name

    def name(path: Any, gradient: Any) -> Any:
        keys = [getattr(key, "key", getattr(key, "idx", getattr(key, "name", None))) for key in path]
        inner, root, rest = model, _path_of(model), keys
        for at, key in enumerate(keys):
            inner = _within(inner, key)
            if (own := _path_of(inner)) is not None:
                root, rest = own, keys[at + 1 :]
        if root is None:
            return gradient
        leaf = ".".join(str(key) for key in rest if key != "value")
        return checkpoint_name(gradient, str(Label("gradient", "", root, leaf)))

    return jax.tree_util.tree_map_with_path(name, grads)


def _path_of(module: Any) -> str | None:
    """Return the path of a module in the state; a tuple, a list or a dictionary of modules has none."""
    path: str | None = getattr(module, "__dict__", {}).get(PATH)
    return path


def _within(container: Any, key: Any) -> Any:
    """Return what a module, or a tuple, a list or a dictionary of modules, has under a key of its state."""
    from flax import nnx

    if isinstance(container, nnx.Variable):  # its `value` is no module, and deprecated
        return None
    if isinstance(key, str) and not isinstance(container, Mapping):
        return getattr(container, key, None)
    try:
        return container[key]
    except (TypeError, LookupError):  # what the gradients are of is no module of the step's state
        return None


def _named_gradients(original: Callable[..., Any], numbers: Iterator[str]) -> Callable[..., Any]:
    """Name the gradients that a Linen `TrainState` is given, and the parameters that tell which state it is."""

    @functools.wraps(original)
    @passes_on
    def apply_gradients(state: Any, *, grads: Any, **kwargs: Any) -> Any:
        number = next(numbers)
        state = state.replace(params=named(state.params, "parameter", number))
        return original(state, grads=named(grads, "gradient", number), **kwargs)

    return apply_gradients


def _named_apply(original: Callable[..., Any], roots: list[str], numbers: Iterator[str]) -> Callable[..., Any]:
    """Name the parameters that a Linen module is applied to: they tell which part of the state they are."""

    @functools.wraps(original)
    @passes_on
    def apply(*settings: Any, **more: Any) -> Callable[..., Any]:
        applied = original(*settings, **more)

        @passes_on
        def call(variables: Any, *args: Any, **kwargs: Any) -> Any:
            number = next(numbers)
            if isinstance(variables, Mapping) and "params" in variables:
                variables = {**variables, "params": named(variables["params"], "parameter", number)}
            roots.append(number)
            try:
                return applied(variables, *args, **kwargs)
            finally:
                roots.pop()

        return call

    return apply


@passes_on
def _linen_call(
    roots: list[str], classes: dict[str, type | None], function: Any, args: Any, kwargs: Any, context: Any
) -> Any:
    module = context.module
    if context.method_name != "__call__" or module.scope is None or not roots:
        return function(*args, **kwargs)
    _note(classes, type(module))
    return _named_ports(function, args, kwargs, roots[-1], "/".join(module.path), type(module))


@passes_on
def _equinox_call(numbers: Iterator[str], module: Any, function: Callable[..., Any], args: Any, kwargs: Any) -> Any:
    if not leaves(module):  # without parameters nothing tells which module it is
        return function(module, *args, **kwargs)
    number = next(numbers)
    module = named(module, "parameter", number)
    return _named_ports(functools.partial(function, module), args, kwargs, number, "", type(module))


@passes_on
def _haiku_call(
    numbers: Iterator[str], classes: dict[str, type | None], function: Any, args: Any, kwargs: Any, context: Any
) -> Any:
    module = context.module
    parameters = module.params_dict() if context.method_name == "__call__" else {}
    if not parameters:  # without parameters nothing tells which module it is
        return function(*args, **kwargs)
    _note(classes, type(module))
    number, own = next(numbers), f"{module.module_name}/"
    named({name.removeprefix(own): array for name, array in parameters.items()}, "parameter", number)
    return _named_ports(function, args, kwargs, number, "", type(module))


def _note(classes: dict[str, type | None], cls: type) -> None:
    classes[cls.__name__] = cls if classes.get(cls.__name__, cls) is cls else None


@passes_on
def _named_ports(function: Callable[..., Any], args: Any, kwargs: Any, root: str, path: str, cls: type) -> Any:
    """Call a module's function, and name its inputs and outputs."""
    args, kwargs = named((args, kwargs), "input", root, path, cls.__name__)
    return named(function(*args, **kwargs), "output", root, path, cls.__name__)
