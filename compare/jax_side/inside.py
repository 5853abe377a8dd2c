"""Records the modules of Linen, Haiku and Equinox that a pure function runs, by their paths in its parameters."""

import contextlib
import functools
import sys
from collections.abc import Iterator, Mapping
from typing import Any

from compare.jax_side.intercepting import Intercept, equinox_classes, intercepted, modules_in
from compare.jax_side.record import JaxRecord, names
from compare.step.user_code import passes_on


@contextlib.contextmanager
def recorded_inside(params: Any, record: JaxRecord) -> Iterator[None]:
    """Record the calls of modules that run meanwhile, each under the name that its parameters have in the pytree.

    Args:
        params: What the function is called with.
        record: Where they are recorded.

    """
    with contextlib.ExitStack() as stack:
        if linen := sys.modules.get("flax.linen"):
            stack.enter_context(linen.intercept_methods(_linen(params, record)))
        if haiku := sys.modules.get("haiku"):
            stack.enter_context(haiku.intercept_methods(_haiku(names(params), record)))
        stack.enter_context(intercepted(equinox_classes(params), _equinox(params, record)))
        yield


def _linen(params: Any, record: JaxRecord) -> Any:
    """Return what intercepts the methods of Linen's modules.

    The path of a module within its model is not the name of its parameters: a pytree may have several models in it, or
    Linen's collections at the top. So parameters are recognised as the very arrays that the function was given.
    """
    import jax

    # By identity: inside the trace, each leaf is a tracer of its own, and a model that is given part of
    # the pytree gets these very tracers.
    known = dict(zip(map(id, jax.tree.leaves(params)), names(params), strict=True))
    prefixes: dict[int, str | None] = {}

    @passes_on
    def recorded(function: Any, args: Any, kwargs: Any, context: Any) -> Any:
        module = context.module
        if context.method_name != "__call__" or module.scope is None:
            return function(*args, **kwargs)
        root = id(module.scope.root)
        if root not in prefixes:
            prefixes[root] = _prefix(module.scope.root.variables(), known)
        path = "/".join(filter(None, (prefixes[root], *module.path)))
        if prefixes[root] is None or not _is_part(path, known.values()):
            return function(*args, **kwargs)
        return record.call(path, function, args, kwargs, module)

    return recorded


def _prefix(variables: Any, known: Mapping[int, str]) -> str | None:
    """Return the path at which a model's parameters stand in the pytree; None where they are not in it."""
    import jax

    params = dict(variables).get("params", {})
    for leaf, name in zip(jax.tree.leaves(params), names(params), strict=True):
        whole = known.get(id(leaf), "")
        if f"/{whole}".endswith(f"/{name}"):
            return whole.removesuffix(name).strip("/")
    return None


def _haiku(parameters: list[str], record: JaxRecord) -> Any:
    """Return what intercepts the methods of Haiku's modules, which know their names: "mlp/~/linear_0"."""

    @functools.cache
    def whole(name: str) -> str | None:
        """Return the name of a module in the pytree; None where it is none there, or of several models."""
        found = {each.partition(f"/{name}/")[0] for each in (f"/{each}" for each in parameters) if f"/{name}/" in each}
        return f"{found.pop()}/{name}".strip("/") if len(found) == 1 else None

    @passes_on
    def recorded(function: Any, args: Any, kwargs: Any, context: Any) -> Any:
        path = whole(context.module.module_name) if context.method_name == "__call__" else None
        if path is None or not _is_part(path, parameters):
            return function(*args, **kwargs)
        return record.call(path, function, args, kwargs, context.module)

    return recorded


def _equinox(params: Any, record: JaxRecord) -> Intercept:
    """Return what intercepts the calls of Equinox's modules, which are the very ones of the pytree."""
    paths, parameters = {id(module): path for path, module in modules_in(params)}, names(params)

    @passes_on
    def recorded(module: Any, function: Any, args: Any, kwargs: Any) -> Any:
        path = paths.get(id(module))  # `eqx.filter_vmap` calls one that it has put together
        if path is None or not _is_part(path, parameters):
            return function(module, *args, **kwargs)
        return record.call(path, functools.partial(function, module), args, kwargs, module)

    return recorded


def _is_part(path: str, parameters: Any) -> bool:
    """Return whether a module is not the whole model, which is recorded as such."""
    return bool(path) and not all(name.startswith(f"{path}/") for name in parameters)
