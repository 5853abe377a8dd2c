"""The layers of nnx, Linen and other JAX models, by name, type, settings and shapes."""

import re
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import numpy as np

from compare.errors import InputError
from compare.jax_side.state import keys, named_leaves, named_state
from compare.weights.layers import KINDS, Layer, Names, Tensor, at_path, collect, known_at, map_settings

if TYPE_CHECKING:
    from flax import linen, nnx


def nnx_variables(model: "nnx.Module") -> dict[str, "nnx.Variable[Any]"]:
    """Name the variables of an nnx module as `nnx.state` does, without random states, caches and intermediates.

    Returns:
        The module's own variables by their paths, as in "layers/0/kernel", in the order of definition.

    """
    from flax import nnx

    def defined(path: tuple[Any, ...]) -> list[int]:
        at = []
        for depth, key in enumerate(path):
            attributes = list(getattr(at_path(model, path[:depth]), "__dict__", ()))
            at.append(attributes.index(key) if key in attributes else key if isinstance(key, int) else 0)
        return at

    kept = nnx.state(model, nnx.Not(nnx.Any(nnx.RngState, nnx.Cache, nnx.Intermediate)))
    paths = sorted((path for path, _ in nnx.to_flat_state(kept)), key=defined)
    return {"/".join(map(str, path)): at_path(model, path) for path in paths}


def nnx_layers(model: "nnx.Module") -> list[Layer]:
    """List the layers of an nnx module in the order of definition, with all variables of `nnx_variables`."""
    from flax import nnx

    return collect(
        model,
        {
            _keys(name): _tensor(variable, buffer=not isinstance(variable, nnx.Param))
            for name, variable in nnx_variables(model).items()
        },
    )


def linen_names(variables: Mapping[str, Any]) -> Names:
    """Name the arrays of Linen's variables by their paths without the collection, as in "Dense_0/kernel".

    Args:
        variables: As `module.init` gives them: {"params": ..., "batch_stats": ...}.

    Returns:
        For each name the path in `variables`, collection first. Caches and intermediates are left out.

    Raises:
        InputError: If there is no collection "params", or if two collections hold the same path.

    """
    names: Names = {}
    if variables and "params" not in variables:
        raise InputError(
            f"the variables of a Linen module need a collection 'params', but have {', '.join(map(repr, variables))}: "
            "give (module, {'params': params}) if these are the parameters"
        )

    def walk(tree: Any, path: tuple[str, ...]) -> None:
        if isinstance(tree, Mapping):
            for key, value in tree.items():
                walk(value, (*path, key))
        elif path[0] not in ("cache", "intermediates") and not isinstance(tree, tuple):  # a tuple is what was sown
            name = "/".join(path[1:])
            if name in names:
                raise InputError(f"the collections {names[name][0]!r} and {path[0]!r} both hold {name!r}: rename one")
            names[name] = path

    for collection in sorted(variables, key=lambda collection: collection != "params"):
        walk(variables[collection], (collection,))
    return names


def linen_value(variables: Mapping[str, Any], path: tuple[Any, ...]) -> Any:
    """Look up an array of Linen's variables, out of the box that a partitioned one is in."""
    leaf = at_path(variables, path)
    return leaf.unbox() if hasattr(leaf, "unbox") else leaf


def linen_layers(variables: Mapping[str, Any], module: "linen.Module | None" = None) -> list[Layer]:
    """List the layers of a Linen module's variables.

    The type of a layer is read from its automatic name, as in "Dense_0". With `module`, also from submodules that
    are made in `setup` or given as attributes; those of a compact method are not to be seen without running it.

    Raises:
        InputError: As `linen_names`.

    """
    tensors = {
        path[1:]: _tensor(linen_value(variables, path), buffer=path[0] != "params")
        for path in linen_names(variables).values()
    }
    layers = []
    for layer in collect(None, tensors):
        found = _submodule(module, variables, layer.path)
        automatic = re.search(r"(?:^|/)([A-Z]\w*)_\d+$", layer.path)
        name = type(found).__name__ if found is not None else automatic[1] if automatic else ""
        settings = {**layer.settings, "kind": KINDS.get(name, ""), **({} if found is None else map_settings(found))}
        layers.append(layer._replace(type=name, settings=settings))
    return layers


def pytree_names(params: Any) -> Names:
    """Name the floating point arrays of a pytree by their paths, as in "layers/0/weight"."""
    import jax

    leaves = named_leaves(params)
    paths = [
        keys(path) for path, leaf in leaves if hasattr(leaf, "shape") and jax.numpy.issubdtype(leaf.dtype, np.inexact)
    ]
    return {"/".join(map(str, path)): path for path in paths}


def pytree_layers(params: Any, state: Any = None) -> list[Layer]:
    """List the layers of any pytree: an Equinox module, Haiku's parameters, dictionaries and lists of arrays.

    The arrays of a state are buffers, of the layers that have the same paths.

    Raises:
        InputError: If there is no way to look up an array, or if the state has an array of a parameter's name.

    """
    import jax

    try:
        tensors = {path: _tensor(at_path(params, path)) for path in pytree_names(params).values()}
    except (TypeError, KeyError, IndexError, AttributeError) as error:
        raise InputError(
            f"Jax(params=...) holds arrays that have no names: {error}. Pass state that is not trained but "
            "goes from step to step, such as an eqx.nn.State, as Jax(state=...)"
        ) from None
    layers = {layer.path: layer for layer in collect(params, tensors)}
    if state is None:
        return [layer._replace(settings={**layer.settings, "stateless": True}) for layer in layers.values()]
    for path, array in named_state(params, state):
        if not hasattr(array, "dtype") or jax.numpy.issubdtype(array.dtype, jax.dtypes.prng_key):
            continue
        owner, name = "/".join(map(str, path[:-1])), "/".join(map(str, path))
        layer = layers.setdefault(owner, _empty(params, path[:-1]))
        if name in layer.tensors:
            raise InputError(f"Jax(params=..., state=...) both hold {name!r}: rename one")
        tensor = _tensor(array, buffer=True)
        layer.tensors[name] = tensor.shape
        layer.settings["buffers"].append(name)
        layer.settings["integers"].extend([name] if tensor.integer else [])
    return list(layers.values())


def _empty(params: Any, path: tuple[Any, ...]) -> Layer:
    """Make the layer of a state's arrays, of the type of the module at that path, if there is one."""
    module = known_at(params, path)
    known = module is not None and not isinstance(module, Mapping | list | tuple)
    settings = {**(map_settings(module) if known else {"kind": ""}), "buffers": [], "integers": [], "ordered": False}
    return Layer("/".join(map(str, path)), type(module).__name__ if known else "", settings, {})


def _tensor(array: Any, *, buffer: bool = False) -> Tensor:
    import jax

    return Tensor(tuple(array.shape), buffer, integer=not jax.numpy.issubdtype(array.dtype, np.inexact))


def state_layers(state: Any, tensors: Mapping[tuple[Any, ...], Tensor]) -> list[Layer]:
    """List the layers in a program's state besides nnx modules, by the paths of the arrays.

    Types are read off Equinox modules; those of Linen's parameters from automatic names, as in "Dense_0".
    """
    layers = []
    for layer in collect(state, tensors):
        automatic = re.search(r"(?:^|/)([A-Z]\w*)_\d+$", layer.path)
        if not layer.type and automatic:
            layer = layer._replace(type=automatic[1], settings={**layer.settings, "kind": KINDS.get(automatic[1], "")})
        layers.append(layer)
    return layers


def _keys(name: str) -> tuple[Any, ...]:
    return tuple(int(key) if key.isdigit() else key for key in name.split("/"))


def _submodule(module: Any, variables: Mapping[str, Any], path: str) -> Any:
    """Find the Linen module at `path` among attributes: `layers_0` is the first of the list `layers`."""
    from flax import linen

    if module is None or not path:
        return module
    found = module.bind(variables)
    for key in path.split("/"):
        listed = re.fullmatch(r"(\w+)_(\d+)", key)
        inner = getattr(found, key, None)
        if inner is None and listed:
            among = getattr(found, listed[1], None)
            inner = among[int(listed[2])] if isinstance(among, list | tuple) else None
        if not isinstance(inner, linen.Module):
            return None
        found = inner
    return found


def under(root: str, layer: Layer) -> Layer:
    """Put a layer under the path of its root in the state."""

    def full(name: str) -> str:
        return "/".join(filter(None, (root, name)))

    named = {key: [*map(full, layer.settings[key])] for key in ("buffers", "integers") if key in layer.settings}
    return layer._replace(
        path=full(layer.path),
        settings={**layer.settings, **named},
        tensors={full(name): shape for name, shape in layer.tensors.items()},
    )
