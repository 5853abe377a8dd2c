"""Names the inputs and outputs of modules, and the gradients for optimizers, while a user's step is traced.

Modules and optimizers are patched for the time of the trace. JAX may trace a function once and call it many times. So
nothing is counted here: the number of a call is that of the name's occurrence in the traced program.
"""

import contextlib
import functools
import itertools
import sys
from collections.abc import Callable, Iterator, Mapping
from typing import Any, NamedTuple

from compare.jax_side.intercepting import equinox_classes, intercepted
from compare.jax_side.labels import Label, labelled, leaves, named
from compare.jax_side.made import modules_noted
from compare.jax_side.program_state import nnx_objects
from compare.step.made import made_at
from compare.step.places import Source
from compare.step.user_code import passes_on

PATH = "netparity_path"
"""The attribute under which an nnx module keeps its path in the state; it goes with the module through `nnx.jit`."""


class Ran(NamedTuple):
    """A module that ran."""

    cls: type
    made: Source | None
    """The user's line that made it, if that is known."""


@contextlib.contextmanager
def naming(state: Any, ran: dict[tuple[str, str], Ran]) -> Iterator[None]:
    """Name what modules and optimizers take and give, in everything that is traced while this lasts.

    Args:
        state: The state of the step.
        ran: Filled with the modules that run, by the root and the path in their names.

    """
    from unittest import mock

    from flax import linen, nnx
    from flax.training.train_state import TrainState

    _tell_paths(nnx_objects(state))
    names = _Names(ran)
    with contextlib.ExitStack() as stack:
        stack.enter_context(modules_noted())  # Linen and Haiku make their modules while they are traced
        stack.enter_context(intercepted(equinox_classes(state), names.equinox))
        stack.enter_context(intercepted(_callable(nnx.Module), names.nnx))
        stack.enter_context(mock.patch.object(nnx.Optimizer, "update", names.update(nnx.Optimizer.update)))
        apply_gradients = names.apply_gradients(TrainState.apply_gradients)
        stack.enter_context(mock.patch.object(TrainState, "apply_gradients", apply_gradients))
        # Not `Module.apply`: the user's step may have it as it was, as in `jax.jit(model.apply)`.
        stack.enter_context(mock.patch("flax.linen.module.apply", names.apply(linen.apply)))
        stack.enter_context(linen.intercept_methods(names.linen))
        if haiku := sys.modules.get("haiku"):
            stack.enter_context(haiku.intercept_methods(names.haiku))
        yield


def _tell_paths(objects: Mapping[str, Any]) -> None:
    """Tell each nnx module of a state its path there."""
    from flax import nnx

    for root, value in objects.items():
        if not isinstance(value, nnx.Module):
            continue
        for path, module in nnx.iter_modules(value):
            if callable(module) and PATH not in vars(module):
                setattr(module, PATH, "/".join(filter(None, [root, *map(str, path)])))


def _callable(cls: Any) -> Iterator[Any]:
    """Yield the classes below one that define how they are called, or have it from a class that is not below it."""
    for each in cls.__subclasses__():
        definers = [base for base in each.__mro__ if "__call__" in vars(base)]
        if definers and (definers[0] is each or not issubclass(definers[0], cls)):
            yield each
        yield from _callable(each)


class _Names:
    """What gives the names.

    A module of nnx may know its path in the state. Any other does not: each of its calls gets a number, and the
    parameters that it is applied to, which are named too, tell the path when the program is run.

    Args:
        ran: See `naming`.

    """

    def __init__(self, ran: dict[tuple[str, str], Ran]) -> None:
        self._ran = ran
        self._numbers = map(str, itertools.count())
        self._roots: list[str] = []
        """The numbers of Linen's models that have begun and not ended, outermost first."""

    @passes_on
    def _ports(self, function: Callable[..., Any], args: Any, kwargs: Any, root: str, path: str, module: Any) -> Any:
        """Call a module's function, and name its inputs and outputs."""
        kind = type(module).__name__
        self._ran[root, path] = Ran(type(module), made_at(module))
        args, kwargs = named((args, kwargs), "input", root, path, kind)
        return named(function(*args, **kwargs), "output", root, path, kind)

    @passes_on
    def nnx(self, module: Any, function: Callable[..., Any], args: Any, kwargs: Any) -> Any:
        """Name what a module of nnx takes and gives."""
        root, path = self._place(module)
        if not (root or path):
            return function(module, *args, **kwargs)
        return self._ports(functools.partial(function, module), args, kwargs, root, path, module)

    def _place(self, module: Any) -> tuple[str, str]:
        """Give the root and the path of a module of nnx.

        `nnx.merge` makes one without a path. Where it has no parameters either, there is neither a root nor a path.
        """
        from flax import nnx

        if (path := _path_of(module)) is not None:
            return "", path
        variables = nnx.to_flat_state(nnx.state(module, nnx.Param))
        parameters = {"/".join(map(str, path)): variable.get_value() for path, variable in variables}
        if not leaves(parameters):
            return "", ""
        number = next(self._numbers)
        named(parameters, "parameter", number)
        return number, ""

    def update(self, original: Callable[..., Any]) -> Callable[..., Any]:
        """Name the gradients that an `nnx.Optimizer` is given."""

        @functools.wraps(original)
        @passes_on
        def update(optimizer: Any, model: Any, grads: Any, *args: Any, **kwargs: Any) -> Any:
            return original(optimizer, model, self._gradient(model, grads), *args, **kwargs)

        return update

    def _gradient(self, model: Any, grads: Any) -> Any:
        """Name each gradient by the path in the state of the innermost module that has one, and the path within it.

        The model may be a container of the state's modules that the step has made.
        """
        import jax
        from flax import nnx

        def name(path: Any, gradient: Any) -> Any:
            keys = [getattr(key, "key", getattr(key, "idx", getattr(key, "name", None))) for key in path]
            inner, root, rest = model, _path_of(model), keys
            for at, key in enumerate(keys):
                inner = _within(inner, key)
                if (own := _path_of(inner)) is not None:
                    root, rest = own, keys[at + 1 :]
            if root is None and not number:
                return gradient
            leaf = ".".join(str(key) for key in rest if key != "value")
            return labelled(gradient, Label("gradient", number if root is None else "", root or "", leaf))

        number = self._place(model)[0] if isinstance(model, nnx.Module) else ""
        return jax.tree_util.tree_map_with_path(name, grads)

    def apply_gradients(self, original: Callable[..., Any]) -> Callable[..., Any]:
        """Name the gradients that a Linen `TrainState` is given, and the parameters that tell which state it is."""

        @functools.wraps(original)
        @passes_on
        def apply_gradients(state: Any, *, grads: Any, **kwargs: Any) -> Any:
            number = next(self._numbers)
            state = state.replace(params=named(state.params, "parameter", number))
            return original(state, grads=named(grads, "gradient", number), **kwargs)

        return apply_gradients

    def apply(self, original: Callable[..., Any]) -> Callable[..., Any]:
        """Name the parameters that a Linen module is applied to."""

        @passes_on
        def apply(*settings: Any, **more: Any) -> Callable[..., Any]:
            applied = original(*settings, **more)

            @passes_on
            def call(variables: Any, *args: Any, **kwargs: Any) -> Any:
                number = next(self._numbers)
                if isinstance(variables, Mapping) and "params" in variables:
                    variables = {**variables, "params": named(variables["params"], "parameter", number)}
                self._roots.append(number)
                try:
                    return applied(variables, *args, **kwargs)
                finally:
                    self._roots.pop()

            return call

        return apply

    @passes_on
    def linen(self, function: Any, args: Any, kwargs: Any, context: Any) -> Any:
        """Name what a module of Linen takes and gives."""
        module = context.module
        if context.method_name != "__call__" or module.scope is None or not self._roots:
            return function(*args, **kwargs)
        return self._ports(function, args, kwargs, self._roots[-1], "/".join(module.path), module)

    @passes_on
    def equinox(self, module: Any, function: Callable[..., Any], args: Any, kwargs: Any) -> Any:
        """Name what a module of Equinox takes and gives; without parameters nothing tells which one it is."""
        if not leaves(module):
            return function(module, *args, **kwargs)
        number = next(self._numbers)
        module = named(module, "parameter", number)
        return self._ports(functools.partial(function, module), args, kwargs, number, "", module)

    @passes_on
    def haiku(self, function: Any, args: Any, kwargs: Any, context: Any) -> Any:
        """Name what a module of Haiku takes and gives; without parameters nothing tells which one it is."""
        module = context.module
        parameters = module.params_dict() if context.method_name == "__call__" else {}
        if not parameters:
            return function(*args, **kwargs)
        number, own = next(self._numbers), f"{module.module_name}/"
        named({name.removeprefix(own): array for name, array in parameters.items()}, "parameter", number)
        return self._ports(function, args, kwargs, number, "", module)


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
