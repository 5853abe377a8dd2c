"""The state of a JAX program, taken apart into named arrays and put together again.

nnx modules, optimizers and generators are taken apart all at once by `nnx.split`, so that what two of them share stays
shared. Everything else is a pytree: its arrays and numbers change from step to step, and what is neither, such as a
function, stays as it is.
"""

from collections.abc import Callable, Container, Sequence
from enum import StrEnum
from typing import Any, NamedTuple

import numpy as np

from compare.errors import InputError
from compare.jax_side.state import equinox_places, is_equinox_module, is_equinox_state
from compare.numerics.constants import restored
from compare.weights.roots import best_pairs


class Role(StrEnum):
    """What an array of the state is."""

    WEIGHTS = "weights"
    """Parameters, averages of them, buffers, bare arrays: they start from the torch side's values."""
    OPTIMIZER = "optimizer"
    """What an optimizer remembers: it starts as `build` makes it."""
    OTHER = "other"
    """Random keys, sums of metrics, integers and booleans."""


class Leaf(NamedTuple):
    """One array of the state."""

    name: str
    """Its path: "model/fc1/kernel"."""
    role: Role
    path: tuple[Any, ...] = ()
    """The same as keys, outside of nnx objects."""
    buffer: bool = False
    """It is in an `eqx.nn.State`, and so not trained."""


class Structure:
    """How a state is taken apart.

    Args:
        state: What `build` gave.

    """

    def __init__(self, state: Any) -> None:
        import jax

        found: Any = jax.tree_util.tree_flatten_with_path(state, is_leaf=is_nnx)
        paths, self._tree = found
        optimizers = _optimizer_paths(state)
        of_equinox = _equinox_states(state, optimizers)
        self._keys = [of_equinox.get(path, _keys(path)) for path, _ in paths]
        self._names = [
            "/".join(map(str, keys)) if path in of_equinox else path_name(path)
            for keys, (path, _) in zip(self._keys, paths, strict=True)
        ]
        self._is_buffer = [path in of_equinox for path, _ in paths]
        self._is_nnx = [is_nnx(leaf) for _, leaf in paths]
        # Python's numbers in them, such as the rate of a dropout, are settings: `eqx.filter_jit` does not trace them.
        modules = [*outermost(state, is_equinox_module)]
        self._is_dynamic = [
            _dynamic(leaf) and not (isinstance(leaf, int | float) and _under(name, modules))
            for name, (_, leaf) in zip(self._names, paths, strict=True)
        ]
        varies = [nnx or dynamic for nnx, dynamic in zip(self._is_nnx, self._is_dynamic, strict=True)]
        self._static = [None if each else leaf for each, (_, leaf) in zip(varies, paths, strict=True)]
        self.objects = {name: leaf for name, (_, leaf) in zip(self._names, paths, strict=True) if is_nnx(leaf)}
        """The nnx objects of the state as it was built, by path."""
        self._graph, nnx_state = _split(list(self.objects.values()))
        self._nnx_tree: Any = jax.tree.structure(nnx_state)
        self.leaves = [*self._nnx_leaves(nnx_state, optimizers), *self._plain_leaves(paths, optimizers)]

    def _nnx_leaves(self, nnx_state: Any, optimizers: Sequence[str]) -> list[Leaf]:
        import jax
        from flax import nnx

        names = list(self.objects)
        keys = dict(zip(self._names, self._keys, strict=True))
        # optax's own states hold nnx variables where their `init` was given an nnx state.
        remembered = {
            root for root in names if isinstance(self.objects[root], nnx.Optimizer) or _under(root, optimizers)
        }
        found = []
        for path, variable in nnx.to_flat_state(nnx_state):
            root = names[int(str(path[0]))]
            name = "/".join(filter(None, [root, *map(str, path[1:])]))
            no_weight = isinstance(variable, nnx.RngState | nnx.metrics.MetricState)
            role = Role.OTHER if no_weight else Role.OPTIMIZER if root in remembered else Role.WEIGHTS
            if not jax.tree.leaves(variable):
                continue  # what `optax.masked` leaves out has a variable without an array
            # The state of `nnx.split` is a tree of variables: each has its place in it, as an array would.
            place = keys[root] if isinstance(self.objects[root], nnx.Variable) else ()
            found.append(Leaf(name, role if _floating(variable) or role == Role.OPTIMIZER else Role.OTHER, place))
        return found

    def _plain_leaves(self, paths: Sequence[Any], optimizers: Sequence[str]) -> list[Leaf]:
        def role(name: str, leaf: Any) -> Role:
            if _under(name, optimizers):
                return Role.OPTIMIZER
            return Role.WEIGHTS if _floating(leaf) else Role.OTHER

        each = zip(self._names, paths, self._keys, self._is_buffer, self._is_dynamic, strict=True)
        return [
            Leaf(name, role(name, leaf), keys, buffer) for name, (_, leaf), keys, buffer, dynamic in each if dynamic
        ]

    def take_apart(self, state: Any) -> list[Any]:
        """Return the arrays of a state of this structure, in the order of `leaves`.

        Raises:
            InputError: If the state has another structure: a step must keep it.

        """
        import jax

        flat, tree = jax.tree.flatten(state, is_leaf=is_nnx)
        if tree != self._tree:
            raise InputError(
                "the JAX step returns a state with another structure than the state that it takes, so it "
                f"cannot take the next step:\n  takes {_short(self._tree)}\n  returns {_short(tree)}"
            )
        _, nnx_state = _split([leaf for leaf, nnx in zip(flat, self._is_nnx, strict=True) if nnx])
        if (found := jax.tree.structure(nnx_state)) != self._nnx_tree:
            raise InputError(
                "the JAX step adds variables to an nnx module or removes some, so it cannot take the next "
                f"step:\n  takes {_short(self._nnx_tree)}\n  returns {_short(found)}"
            )
        self._check_numbers(flat)
        return [*jax.tree.leaves(nnx_state), *(x for x, dynamic in zip(flat, self._is_dynamic, strict=True) if dynamic)]

    def _check_numbers(self, flat: Sequence[Any]) -> None:
        """Refuse a step that changes a number of an Equinox module: the next step would start from the first again."""
        for name, fixed, now in zip(self._names, self._static, flat, strict=True):
            if isinstance(fixed, int | float) and not (isinstance(now, int | float) and now == fixed):
                raise InputError(
                    f"the JAX step returns another value for {name}, a Python number of an Equinox module, which "
                    f"eqx.filter_jit compiles as a constant. If the step changes it, make it an array: "
                    f"jnp.asarray({fixed})"
                )

    def put_together(self, arrays: Sequence[Any]) -> Any:
        """Make a state of its arrays."""
        import jax
        from flax import nnx

        size = self._nnx_tree.num_leaves
        objects = iter(nnx.merge(self._graph, jax.tree.unflatten(self._nnx_tree, list(arrays[:size]))))
        plain = iter(arrays[size:])
        each = zip(self._static, self._is_nnx, self._is_dynamic, strict=True)
        flat = [next(objects) if nnx else next(plain) if dynamic else fixed for fixed, nnx, dynamic in each]
        return jax.tree.unflatten(self._tree, flat)


def counted(leaves: Sequence[Leaf], values: Sequence[Any], start: Sequence[Any]) -> dict[str, np.ndarray]:
    """Give how far the integers of a state are from those at the start, by name: counters, pointers, not optax's."""
    each = zip(leaves, values, start, strict=True)
    own = ((leaf.name, now, before) for leaf, now, before in each if leaf.role == Role.OTHER)
    return {
        name: np.asarray(now).astype(np.int64) - np.asarray(before).astype(np.int64)
        for name, now, before in own
        if getattr(now.dtype, "kind", "") in ("b", "i", "u")  # a key has no such kind
    }


def remembered(leaves: Sequence[Leaf], names: Container[str]) -> list[Leaf]:
    """Take some arrays of the state for what an optimizer remembers."""
    return [leaf._replace(role=Role.OPTIMIZER) if leaf.name in names else leaf for leaf in leaves]


def unshared(state: Any) -> Any:
    """Copy the variables that stand in a state beside the module that they belong to, as `nnx.state(model)` gives them.

    They are an average, or a target, that starts as the model: a step gives others in their place.
    """
    import jax
    from flax import nnx

    leaves, tree = jax.tree.flatten(state, is_leaf=is_nnx)
    modules = (leaf for leaf in leaves if is_nnx(leaf) and not isinstance(leaf, nnx.Variable))
    seen = {id(variable) for module in modules for variable in jax.tree.leaves(nnx.state(module), is_leaf=is_nnx)}
    own = []
    for leaf in leaves:
        shared = isinstance(leaf, nnx.Variable) and id(leaf) in seen
        seen.add(id(leaf))
        own.append(leaf.copy() if shared else leaf)
    return jax.tree.unflatten(tree, own)


def is_nnx(value: Any) -> bool:
    """Return whether a value is an nnx module, optimizer, generator or variable."""
    from flax import nnx

    return isinstance(value, nnx.Module | nnx.Optimizer | nnx.Rngs | nnx.RngStream | nnx.Variable)


def nnx_objects(state: Any) -> dict[str, Any]:
    """Return the nnx objects of a state by path."""
    return outermost(state, is_nnx)


def modules_of(state: Any) -> dict[str, Any]:
    """Return the nnx objects and the modules of Equinox in a state, by path, without those within others."""
    return outermost(state, lambda value: is_nnx(value) or is_equinox_module(value))


def outermost(state: Any, wanted: Callable[[Any], bool]) -> dict[str, Any]:
    """Return the outermost values of a state that are wanted, by path."""
    import jax

    found = jax.tree_util.tree_flatten_with_path(state, is_leaf=lambda value: is_nnx(value) or wanted(value))[0]
    return {path_name(path): value for path, value in found if wanted(value)}


def _split(objects: list[Any]) -> Any:
    from flax import nnx

    return nnx.split(objects)


def _dynamic(leaf: Any) -> bool:
    """Return whether a leaf is data: an array, a key or a number."""
    import jax

    return isinstance(leaf, jax.Array | np.ndarray | np.generic | int | float)


def _floating(leaf: Any) -> bool:
    import jax.numpy as jnp
    from flax import nnx

    value = leaf.get_value() if isinstance(leaf, nnx.Variable) else leaf
    if isinstance(value, bool | int | float):
        return isinstance(value, float)
    return hasattr(value, "dtype") and jnp.issubdtype(value.dtype, jnp.floating)


def _keys(path: Any) -> tuple[Any, ...]:
    return tuple(getattr(key, "name", getattr(key, "idx", getattr(key, "key", None))) for key in path)


def path_name(path: Any) -> str:
    """Write a path of JAX's as text: "model/fc1"."""
    import jax

    return jax.tree_util.keystr(path, simple=True, separator="/")


def paths_of(tree: Any) -> list[Any]:
    """Return the paths of the leaves of a pytree, in their order."""
    import jax

    return [path for path, _ in jax.tree_util.tree_flatten_with_path(tree)[0]]


def _optimizer_paths(state: Any) -> list[str]:
    """List where the state keeps what an optax optimizer remembers: its states are named tuples of optax's."""

    def optax_state(value: Any) -> bool:
        return isinstance(value, tuple) and hasattr(value, "_fields") and type(value).__module__.startswith("optax")

    return [*outermost(state, optax_state)]


def _equinox_states(state: Any, optimizers: Sequence[str]) -> dict[Any, tuple[Any, ...]]:
    """Name the arrays of each `eqx.nn.State` by the module that they belong to, by their paths in the program's state.

    Where several states and several copies of a model are there, the words of their paths tell which go together. What
    belongs to no module of the state keeps its own path.
    """
    import jax

    found = jax.tree_util.tree_flatten_with_path(state, is_leaf=lambda value: is_nnx(value) or is_equinox_state(value))
    alike: dict[tuple[Any, ...], list[Any]] = {}
    named: dict[Any, tuple[Any, ...]] = {}
    for path, value in found[0]:
        if is_equinox_state(value):
            for inner, places in zip(paths_of(value), equinox_places(state, value), strict=True):
                own = (place for place in places if not _under("/".join(map(str, place)), optimizers))
                alike.setdefault(tuple(own), []).append((*path, *inner))
                named[*path, *inner] = _keys((*path, *inner))
    for holders, paths in alike.items():
        if holders:
            _, best = best_pairs([*map(path_name, paths)], ["/".join(map(str, place)) for place in holders])
            named |= {paths[at]: holders[to] for at, to in best.items()}
    return named


def _under(name: str, paths: Sequence[str]) -> bool:
    return any(name == path or name.startswith(f"{path}/") for path in paths)


def _short(tree: Any) -> str:
    text = str(tree)
    return text if len(text) < 300 else f"{text[:300]}..."


def meant(array: Any) -> Any:
    """Return the number whose float32 rounding a state holds, such as the 0.999 of `optax.inject_hyperparams`."""
    if getattr(array, "dtype", None) != np.float32 or np.size(array) != 1:
        return array
    number = restored(np.asarray(array))
    return array if number is None else number
