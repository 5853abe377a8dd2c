"""A JAX model as a pure function: of nnx, of Linen, or over any pytree."""

import contextlib
import functools
import inspect
from collections.abc import Callable, Iterator, Mapping
from typing import Any, NamedTuple

import numpy as np

from compare.jax_side.lift_modules import lift_nnx
from compare.jax_side.record import JaxRecord
from compare.jax_side.state import StateArrays


class Functional(NamedTuple):
    """A model as a pure function."""

    params: Any
    """What is differentiated and updated: a pytree of the user's own structure."""
    buffers: Any
    """What else the model keeps and changes, such as running statistics."""
    rngs: Any
    """Its random number generators."""
    apply: Callable[..., Any]
    """`apply(params, buffers, rngs, args, kwargs, record)` gives the output, and new buffers and rngs."""
    collections: bool = False
    """Whether the first key of `buffers` is a collection of Linen's, which is no part of a buffer's name."""


def _floating(leaf: Any) -> bool:
    return (hasattr(leaf, "dtype") and np.issubdtype(np.dtype(leaf.dtype), np.floating)) or _low_precision(leaf)


def _low_precision(leaf: Any) -> bool:
    return getattr(getattr(leaf, "dtype", None), "name", "") == "bfloat16"


def _cast(tree: Any, dtype: str) -> Any:
    """Copy a pytree, with every floating-point leaf cast to `dtype`."""
    import jax
    import jax.numpy as jnp

    def cast(leaf: Any) -> Any:
        if not hasattr(leaf, "dtype") or not jnp.issubdtype(leaf.dtype, jnp.floating):
            return jnp.array(leaf) if hasattr(leaf, "dtype") else leaf
        return jax.device_put(np.asarray(leaf, np.float64).astype(dtype))  # NumPy's cast compiles nothing

    return jax.tree.map(cast, tree)


_TRAINING = {"train": True, "training": True, "is_training": True, "deterministic": False, "use_running_average": False}
"""What modules call the argument that chooses between training and evaluation, and its value for training."""


def _mode(function: Callable[..., Any], kwargs: dict[str, Any], training: bool) -> dict[str, Any]:
    """Put a model in torch's mode, if it takes that as an argument that the batch does not give."""
    takes = inspect.signature(function).parameters
    chosen = {name: value == training for name, value in _TRAINING.items() if name in takes and name not in kwargs}
    return kwargs | chosen


def of_nnx(model: Any, dtype: str, training: bool) -> Functional:
    """Make a pure function of a copy of an `nnx.Module`, in the given mode."""
    import jax
    from flax import nnx

    copied = nnx.clone(model)
    copied.train() if training else copied.eval()
    if dtype == "float64":
        lift_nnx(copied)
    graph, *states = nnx.split(copied, nnx.Param, nnx.RngState, ...)
    params, rngs, buffers = states

    def apply(params: Any, buffers: Any, rngs: Any, args: Any, kwargs: Any, record: Any) -> Any:
        # Taken apart and put together, so that they belong to this trace: nnx lets no other change them.
        rngs, buffers = jax.tree.map(lambda leaf: leaf, (rngs, buffers))
        merged = nnx.merge(graph, params, rngs, buffers)
        with _recorded_nnx(merged, record):
            output = merged(*args, **_mode(type(merged).__call__, kwargs, training))
        _, *states = nnx.split(merged, nnx.RngState, nnx.Param, ...)
        return output, states[2], states[0]

    return Functional(_cast(params, dtype), _cast(buffers, dtype), rngs, apply)


@contextlib.contextmanager
def _recorded_nnx(model: Any, record: JaxRecord) -> Iterator[None]:
    """Record the calls of all modules of a model: Python looks `__call__` up on the class."""
    from flax import nnx

    paths = {id(module): "/".join(map(str, path)) for path, module in nnx.iter_modules(model)}
    classes = {type(module) for _, module in nnx.iter_modules(model) if callable(module)}
    inside: list[int] = []

    def recorded(original: Callable[..., Any]) -> Callable[..., Any]:
        def call(module: Any, *args: Any, **kwargs: Any) -> Any:
            if id(module) not in paths or id(module) in inside:  # a super().__call__() is part of the same call
                return original(module, *args, **kwargs)
            inside.append(id(module))
            try:
                return record.call(paths[id(module)], functools.partial(original, module), args, kwargs, module)
            finally:
                inside.pop()

        return call

    from unittest import mock  # which brings asyncio: not for everybody who imports compare

    with contextlib.ExitStack() as stack:
        for cls in classes:
            stack.enter_context(mock.patch.object(cls, "__call__", recorded(cls.__call__)))
        yield


def of_linen(model: tuple[Any, Mapping[str, Any]], dtype: str, training: bool) -> Functional:
    """Make a pure function of a Linen module and its variables, in the given mode."""
    import jax
    from flax import linen

    module, variables = model
    params, buffers = variables["params"], {name: tree for name, tree in variables.items() if name != "params"}

    def apply(params: Any, buffers: Any, rngs: Any, args: Any, kwargs: Any, record: Any) -> Any:
        def recorded(function: Any, args: Any, kwargs: Any, context: Any) -> Any:
            if context.method_name != "__call__" or context.module.scope is None:
                return function(*args, **kwargs)
            return record.call("/".join(context.module.path), function, args, kwargs, context.module)

        keys = {"dropout": jax.random.fold_in(rngs["key"], rngs["count"])}
        with linen.intercept_methods(recorded):
            output, changed = module.apply(
                {"params": params, **buffers},
                *args,
                rngs=keys,
                mutable=list(buffers) if training else [],
                **_mode(module.__call__, kwargs, training),
            )
        return output, {**buffers, **changed}, rngs | {"count": rngs["count"] + 1}

    rngs = {"key": jax.random.key(0), "count": np.int32(0)}
    return Functional(_cast(params, dtype), _cast(buffers, dtype), rngs, apply, collections=True)


def of_pytree(function: Callable[..., Any], params: Any, dtype: str, training: bool, state: Any = None) -> Functional:
    """Make a function of a pytree one of its floating-point arrays alone, in the given mode.

    With a state it is `function(params, state, *inputs)`, and gives the output and a new state. The state's arrays are
    the buffers, by name, and its random keys the generators.
    """
    import jax

    kept = StateArrays(params, state)

    flat, structure = jax.tree.flatten(params)
    trained = [_floating(leaf) for leaf in flat]
    fixed = [None if is_trained else leaf for leaf, is_trained in zip(flat, trained, strict=True)]

    def apply(params: Any, buffers: Any, rngs: Any, args: Any, kwargs: Any, record: Any) -> Any:
        values = iter(jax.tree.leaves(params))
        whole = [next(values) if is_trained else leaf for leaf, is_trained in zip(fixed, trained, strict=True)]
        kwargs = _mode(function, kwargs, training)
        model = functools.partial(function, jax.tree.unflatten(structure, whole))
        if state is None:
            return record.call("", model, args, kwargs), buffers, rngs
        after: list[Any] = []  # the state is no output of the model: it is compared as buffers

        def stateful(*args: Any, **kwargs: Any) -> Any:
            output, new = kept.checked(model(kept.filled(buffers, rngs), *args, **kwargs))
            after.append(new)
            return output

        output = record.call("", stateful, args, kwargs)
        return output, *kept.arrays(after[-1])

    chosen = [leaf if is_trained else None for leaf, is_trained in zip(flat, trained, strict=True)]
    params = _cast(jax.tree.unflatten(structure, chosen), dtype)
    if state is None:
        return Functional(params, (), (), apply)
    buffers, keys = kept.arrays(state)
    return Functional(params, _cast(buffers, dtype), keys, apply)
