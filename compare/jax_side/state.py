"""The state that a pure JAX function carries from step to step: its arrays, by name."""

import sys
from collections.abc import Mapping
from typing import Any, NamedTuple

from compare.errors import InputError
from compare.step.batch import kinds_of

RUNNING_STATISTICS = {
    name: {"0": "mean", "1": "var"} for name in ("batch_state_index", "ema_state_index", "state_index")
}
"""How `eqx.nn.BatchNorm` keeps its running mean and variance: as a pair under one of these attributes."""

Path = tuple[Any, ...]


class Named(NamedTuple):
    """An array of a state."""

    path: Path
    """Where it is: the keys of the state; of an `eqx.nn.State`, those of the module that it belongs to."""
    array: Any


def named_state(params: Any, state: Any) -> list[Named]:
    """Name the arrays of a state, in the order of its leaves.

    An `eqx.nn.State` has no names of its own: an array is found under the attribute of the module that has its index.

    Raises:
        InputError: If an `eqx.nn.State` belongs to another model than `params`.

    """
    import jax

    if not is_equinox_state(state):
        return [Named(keys(path), leaf) for path, leaf in jax.tree_util.tree_flatten_with_path(state)[0]]
    places = equinox_places(params, state)
    if not all(places):
        raise InputError(
            "Jax(state=...) is an eqx.nn.State with entries that no layer in params has: give the model and the state "
            "that eqx.nn.make_with_state made together"
        )
    return [Named(found[-1], leaf) for found, leaf in zip(places, jax.tree.leaves(state), strict=True)]


def is_equinox_state(value: Any) -> bool:
    """Return whether a value is an `eqx.nn.State`."""
    equinox = sys.modules.get("equinox")  # who has such a state has imported it
    return equinox is not None and isinstance(value, equinox.nn.State)


def is_equinox_module(value: Any) -> bool:
    """Return whether a value is an `eqx.Module`."""
    equinox = sys.modules.get("equinox")
    return equinox is not None and isinstance(value, equinox.Module)


def equinox_places(modules: Any, state: Any) -> list[list[Path]]:
    """Give the places in `modules` that each array of an `eqx.nn.State` belongs to, in the order of its leaves.

    It maps the `StateIndex` objects of a model to arrays. Which layer an index belongs to is only known from the
    model, whose attributes hold it. A copy of the model, such as an average of its weights, holds the same index.
    """
    import equinox
    import jax

    def is_index(leaf: Any) -> bool:
        return isinstance(leaf, equinox.nn.StateIndex)

    structure: Any = jax.tree.structure(state)
    numbered = jax.tree.unflatten(structure, range(structure.num_leaves))
    places: list[list[Path]] = [[] for _ in range(structure.num_leaves)]
    for path, index in jax.tree_util.tree_flatten_with_path(modules, is_leaf=is_index)[0]:
        if is_index(index):
            try:
                value = numbered.get(index)
            except KeyError:
                continue  # it belongs to another state
            for inner, at in jax.tree_util.tree_flatten_with_path(value)[0]:
                places[at].append(_equinox_path(keys(path), tuple(map(str, keys(inner)))))
    return places


def _equinox_path(index: Path, inner: Path) -> Path:
    statistic = RUNNING_STATISTICS.get(str(index[-1]), {}).get("/".join(inner))
    return (*index[:-1], statistic) if statistic else (*index, *inner)


def named_leaves(tree: Any) -> list[tuple[Path, Any]]:
    """List the leaves of a pytree with their paths, as `jax.tree_util` has them; the array of an nnx variable has its.

    JAX calls that array `value`, within the variable. An attribute of that name of another class is a name.
    """
    import jax
    from flax import nnx

    def is_variable(value: Any) -> bool:
        return isinstance(value, nnx.Variable)

    found: list[tuple[Path, Any]] = []
    for path, each in jax.tree_util.tree_flatten_with_path(tree, is_leaf=is_variable)[0]:
        inner = jax.tree_util.tree_flatten_with_path(each)[0] if is_variable(each) else [((), each)]
        found += [((*path, *rest[1:]), leaf) for rest, leaf in inner]
    return found


def keys(path: Path) -> Path:
    """Return the attributes, keys and indices of a path of `jax.tree_util`."""
    return tuple(getattr(key, "name", getattr(key, "idx", getattr(key, "key", None))) for key in path)


class StateArrays:
    """Takes the arrays of a state out of it, by name, and puts others in."""

    def __init__(self, params: Any, state: Any) -> None:
        import jax

        self._leaves, self._structure = jax.tree.flatten(state)
        self._names = ["/".join(map(str, each.path)) for each in named_state(params, state)]

    def arrays(self, state: Any) -> tuple[dict[str, Any], dict[str, Any]]:
        """Return the arrays of a state with this one's structure, and apart from them its random keys."""
        import jax

        buffers: dict[str, Any] = {}
        random: dict[str, Any] = {}
        for name, leaf in zip(self._names, jax.tree.leaves(state), strict=True):
            if hasattr(leaf, "dtype"):
                is_key = jax.numpy.issubdtype(leaf.dtype, jax.dtypes.prng_key)
                (random if is_key else buffers)[name] = leaf
        return buffers, random

    def filled(self, buffers: Mapping[str, Any], random: Mapping[str, Any]) -> Any:
        """Make a state of these arrays."""
        import jax

        arrays = {**buffers, **random}
        leaves = [arrays.get(name, leaf) for name, leaf in zip(self._names, self._leaves, strict=True)]
        return jax.tree.unflatten(self._structure, leaves)

    def checked(self, result: Any) -> tuple[Any, Any]:
        """Take apart what the function gives.

        Raises:
            InputError: If it is not a pair of an output and a state like the one before.

        """
        import jax

        if not isinstance(result, tuple) or len(result) != 2:
            raise InputError(
                f"Jax(apply, params, state=...) must return a pair (output, new state), but returned {kinds_of(result)}"
            )
        given: Any = jax.tree.structure(result[1])
        if given != self._structure:
            raise InputError(
                "Jax(apply, params, state=...) must return a new state with the same structure as "
                f"state=, {self._structure}, but returned {given}"
            )
        return result
