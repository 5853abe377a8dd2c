"""Names the inputs and outputs of modules, and the gradients for optimizers, while a user's step is traced.

Modules and optimizers are patched for the time of the trace. JAX may trace a function once and call it many times. So
nothing is counted here: the number of a call is that of the name's occurrence in the traced program.
"""

import contextlib
import functools
import itertools
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any

from compare.jax_side.intercepting import equinox_classes, intercepted, modules_in
from compare.jax_side.labels import Label, labelled, leaves, named
from compare.jax_side.made import modules_noted
from compare.jax_side.program_state import nnx_objects
from compare.jax_side.record import JaxRecord
from compare.step.user_code import passes_on

PATH = "_netparity_path"
"""The attribute under which an nnx module keeps its path in the state; it goes with the module through `nnx.jit`."""


@contextlib.contextmanager
def naming(state: Any, record: JaxRecord) -> Iterator[None]:
    """Name what modules and optimizers take and give, in everything that is traced while this lasts.

    Args:
        state: The state of the step.
        record: Where the modules that run are recorded.

    """
    from unittest import mock

    from flax import linen, nnx
    from flax.training.train_state import TrainState

    tell_paths(nnx_objects(state))
    names = _Names(record)
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


def tell_paths(objects: Mapping[str, Any]) -> None:
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
    parameters that it is applied to, which are named too, tell the path when the program is run. A module without
    parameters is known by the module that holds it.

    Args:
        record: See `naming`.

    """

    def __init__(self, record: JaxRecord) -> None:
        self._record = record
        self._numbers = map(str, itertools.count())
        self._roots: list[str] = []
        """The numbers of Linen's models that have begun and not ended, outermost first."""
        self._held: dict[int, tuple[str, str]] = {}
        """The number and the path of each module within those that have begun and not ended, by identity."""

    @passes_on
    def nnx(self, module: Any, function: Callable[..., Any], args: Any, kwargs: Any) -> Any:
        """Name what a module of nnx takes and gives."""
        from flax import nnx

        call = functools.partial(function, module)
        if (path := _path_of(module)) is not None:
            return self._record.call("", path, call, args, kwargs, module) if path else call(*args, **kwargs)
        if number := self._number(module):
            modules = (("/".join(map(str, path)), each) for path, each in nnx.iter_modules(module))
            return self._holding(number, modules, call, args, kwargs, module)
        return self._within(call, args, kwargs, module)

    def _number(self, module: Any) -> str:
        """Name the parameters of a module of nnx, and give the number that stands for it; "" if it has none.

        `nnx.merge` makes one without a path.
        """
        from flax import nnx

        variables = nnx.to_flat_state(nnx.state(module, nnx.Param))
        parameters = {"/".join(map(str, path)): variable.get_value() for path, variable in variables}
        if not leaves(parameters):
            return ""
        number = next(self._numbers)
        self._record.applied(number, parameters)
        return number

    @passes_on
    def _holding(
        self, number: str, modules: Iterable[tuple[str, Any]], function: Any, args: Any, kwargs: Any, module: Any
    ) -> Any:
        """Name what a module takes and gives; until it ends, those within it are known by their paths in it."""
        before = self._held
        self._held = before | {id(each): (number, path) for path, each in modules}
        try:
            return self._record.call(number, "", function, args, kwargs, module)
        finally:
            self._held = before

    @passes_on
    def _within(self, function: Any, args: Any, kwargs: Any, module: Any) -> Any:
        """Name what a module without parameters takes and gives, if a module that holds it runs."""
        if (held := self._held.get(id(module))) is None:
            return function(*args, **kwargs)
        return self._record.call(*held, function, args, kwargs, module)

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

        number = self._number(model) if isinstance(model, nnx.Module) and _path_of(model) is None else ""
        return jax.tree_util.tree_map_with_path(name, grads)

    def apply_gradients(self, original: Callable[..., Any]) -> Callable[..., Any]:
        """Name the gradients that a Linen `TrainState` is given, and the parameters that tell which state it is."""

        @functools.wraps(original)
        @passes_on
        def apply_gradients(state: Any, *, grads: Any, **kwargs: Any) -> Any:
            number = next(self._numbers)
            state = state.replace(params=self._record.applied(number, state.params))
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
                    variables = {**variables, "params": self._record.applied(number, variables["params"])}
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
        return self._record.call(self._roots[-1], "/".join(module.path), function, args, kwargs, module)

    @passes_on
    def equinox(self, module: Any, function: Callable[..., Any], args: Any, kwargs: Any) -> Any:
        """Name what a module of Equinox takes and gives."""
        if not leaves(module):
            return self._within(functools.partial(function, module), args, kwargs, module)
        number = next(self._numbers)
        module = self._record.applied(number, module)
        return self._holding(number, modules_in(module), functools.partial(function, module), args, kwargs, module)

    @passes_on
    def haiku(self, function: Any, args: Any, kwargs: Any, context: Any) -> Any:
        """Name what a module of Haiku takes and gives; without parameters nothing tells which one it is."""
        module = context.module
        parameters = module.params_dict() if context.method_name == "__call__" else {}
        if not parameters:
            return function(*args, **kwargs)
        number, own = next(self._numbers), f"{module.module_name}/"
        self._record.applied(number, {name.removeprefix(own): array for name, array in parameters.items()})
        return self._record.call(number, "", function, args, kwargs, module)


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
