"""The layers of a model, as its framework shows them: names, types, settings and the shapes of their tensors.

Both sides name a tensor by its path, torch as in "encoder.0.weight" and JAX as in "encoder/layers_0/kernel". The
weights are matched on these lists alone, so that no framework is needed for it.
"""

import math
import re
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from compare.problem import InputError

if TYPE_CHECKING:
    import torch
    from flax import linen, nnx

KINDS = {
    name: kind
    for kind, names in {
        "linear": "Linear Conv1D Dense DenseGeneral LinearGeneral",
        "conv": "Conv Conv1d Conv2d Conv3d Conv2D Conv3D",
        "transposed": "ConvTranspose ConvTranspose1d ConvTranspose2d ConvTranspose3d",
        "embedding": "Embedding EmbeddingBag Embed",
        "norm": "LayerNorm GroupNorm RMSNorm BatchNorm BatchNorm1d BatchNorm2d BatchNorm3d SyncBatchNorm "
        "InstanceNorm InstanceNorm1d InstanceNorm2d InstanceNorm3d",
        "prelu": "PReLU",
        "attention": "MultiheadAttention",
        "lstm": "LSTM LSTMCell OptimizedLSTMCell",
        "gru": "GRU GRUCell",
        "rnn": "RNN RNNCell SimpleCell",
    }.items()
    for name in names.split()
}
"""What a class is, by its name in torch, Flax, Equinox or Haiku, or by a base class's.

`Conv1D` is the linear layer of GPT-2 in `transformers`, whose weight lies the other way round.
"""

SETTINGS = ("groups", "transpose_kernel", "num_layers", "bidirectional", "hidden_size")
"""Attributes of a module that tell how its tensors lie."""

Names = dict[str, tuple[Any, ...]]
"""The path, within the model's own structure, of each tensor by its name."""


class Layer(NamedTuple):
    """One module that has tensors of its own, on either side; its children are layers of their own."""

    path: str
    """As in "encoder.0" of torch, or "encoder/0" of JAX; "" for the model itself."""
    type: str
    """The name of its class, or "" where that is unknown: a dictionary, Linen's variables alone."""
    settings: Mapping[str, Any]
    """What the map needs to know of it.

    `kind` is one of `KINDS`' values, or "". Of torch: `tied`, for each tensor that has several names the first of
    them; `integers`, its tensors that are no floating point numbers; `flattened`, the shape (C, *spatial) of the
    features that a linear layer takes flattened, or () where it takes no such thing, if a run has shown it. Of JAX:
    `ordered`, False where the order of definition is lost. Further those of `SETTINGS` that the module has.
    """
    tensors: dict[str, tuple[int, ...]]
    """Full name to shape; parameters first, then buffers, in the order of their definition."""


def torch_layers(model: "torch.nn.Module", flattened: Mapping[str, tuple[int, ...]] | None = None) -> list[Layer]:
    """List the layers of a torch module, in the order of definition, under all names that `state_dict()` has.

    Args:
        model: Any module.
        flattened: What `flattened_features` gives, if it was run.

    """
    kept = model.state_dict(keep_vars=True)
    first: dict[int, str] = {}
    several: set[int] = set()
    for name, tensor in kept.items():
        if first.setdefault(id(tensor), name) != name:
            several.add(id(tensor))
    layers = []
    for path, module in model.named_modules(remove_duplicate=False):
        own = [*module.named_parameters(path, recurse=False, remove_duplicate=False)]
        own += module.named_buffers(path, recurse=False, remove_duplicate=False)
        tensors = {name: kept[name] for name, _ in own if name in kept}
        if tensors:
            settings = {
                **_settings(module),
                **({"flattened": flattened[path]} if flattened is not None and path in flattened else {}),
                "tied": {name: first[id(tensor)] for name, tensor in tensors.items() if id(tensor) in several},
                "integers": [name for name, tensor in tensors.items() if not tensor.is_floating_point()],
            }
            shapes = {name: tuple(tensor.shape) for name, tensor in tensors.items()}
            layers.append(Layer(path, type(module).__name__, settings, shapes))
    named = {name for layer in layers for name in layer.tensors}
    # What a module adds to its state by other means has a name all the same, and is accounted for.
    extra = {name: tuple(getattr(tensor, "shape", ())) for name, tensor in kept.items() if name not in named}
    return [*layers, *(Layer(name, "", {"kind": ""}, {name: shape}) for name, shape in extra.items())]


def flattened_features(model: "torch.nn.Module", inputs: Any) -> dict[str, tuple[int, ...]]:
    """Run a torch model once, to see which of its linear layers take features flattened from an image.

    Args:
        model: Any module; it is run in eval mode and without gradients, and left as it was.
        inputs: An array or tensor, a tuple of them (positional), or a dictionary (keyword).

    Returns:
        For each linear layer that was run its features' shape `(C, *spatial)`, or () where it takes no such thing.

    """
    import torch

    found: dict[str, tuple[int, ...]] = {}
    latest: tuple[int, ...] = ()

    def before(path: str) -> Callable[[torch.nn.Module, tuple[Any, ...]], None]:
        def see(module: torch.nn.Module, args: tuple[Any, ...]) -> None:
            taken = tuple(args[0].shape) if args else ()
            flat = len(latest) > 2 and taken[1:] == (math.prod(latest[1:]),) and math.prod(latest[2:]) > 1
            found.setdefault(path, latest[1:] if flat else ())

        return see

    def after(module: torch.nn.Module, args: tuple[Any, ...], output: Any) -> None:
        nonlocal latest
        # A module that only flattens or drops out passes on what it was given.
        if isinstance(output, torch.Tensor) and (output.ndim > 2 or math.prod(output.shape) != math.prod(latest)):
            latest = tuple(output.shape)

    handles = []
    for path, module in model.named_modules():
        if KINDS.get(type(module).__name__) == "linear":
            handles.append(module.register_forward_pre_hook(before(path)))
        if not any(True for _ in module.children()):
            handles.append(module.register_forward_hook(after))
    modes = {module: module.training for module in model.modules()}
    args = inputs if isinstance(inputs, tuple) else () if isinstance(inputs, dict) else (inputs,)
    kwargs = inputs if isinstance(inputs, dict) else {}
    try:
        with torch.no_grad():
            model.eval()
            model(*map(torch.as_tensor, args), **{name: torch.as_tensor(value) for name, value in kwargs.items()})
    finally:
        for module, training in modes.items():
            module.training = training
        for handle in handles:
            handle.remove()
    return found


def nnx_variables(model: "nnx.Module") -> dict[str, "nnx.Variable[Any]"]:
    """Name the variables of an nnx module as `nnx.state` does, without random states, caches and intermediates.

    Returns:
        The module's own variables by their paths, as in "layers/0/kernel", in the order of definition.

    """
    from flax import nnx

    def defined(path: tuple[Any, ...]) -> list[int]:
        at = []
        for depth, key in enumerate(path):
            attributes = list(getattr(_at(model, path[:depth]), "__dict__", ()))
            at.append(attributes.index(key) if key in attributes else key if isinstance(key, int) else 0)
        return at

    kept = nnx.state(model, nnx.Not(nnx.Any(nnx.RngState, nnx.Cache, nnx.Intermediate)))
    paths = sorted((path for path, _ in nnx.to_flat_state(kept)), key=defined)
    return {"/".join(map(str, path)): _at(model, path) for path in paths}


def nnx_layers(model: "nnx.Module") -> list[Layer]:
    """List the layers of an nnx module in the order of definition, with all variables of `nnx_variables`."""
    return _collect(model, {_keys(name): tuple(variable.shape) for name, variable in nnx_variables(model).items()})


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
        elif path[0] not in ("cache", "intermediates"):
            name = "/".join(path[1:])
            if name in names:
                raise InputError(f"the collections {names[name][0]!r} and {path[0]!r} both hold {name!r}: rename one")
            names[name] = path

    for collection in sorted(variables, key=lambda collection: collection != "params"):
        walk(variables[collection], (collection,))
    return names


def linen_value(variables: Mapping[str, Any], path: tuple[Any, ...]) -> Any:
    """Look up an array of Linen's variables, out of the box that a partitioned one is in."""
    leaf = _at(variables, path)
    return leaf.unbox() if hasattr(leaf, "unbox") else leaf


def linen_layers(variables: Mapping[str, Any], module: "linen.Module | None" = None) -> list[Layer]:
    """List the layers of a Linen module's variables.

    The type of a layer is read from its automatic name, as in "Dense_0". With `module`, also from submodules that
    are made in `setup` or given as attributes; those of a compact method are not to be seen without running it.

    Raises:
        InputError: As `linen_names`.

    """
    shapes = {path[1:]: tuple(linen_value(variables, path).shape) for path in linen_names(variables).values()}
    layers = []
    for layer in _collect(None, shapes):
        found = _submodule(module, variables, layer.path)
        automatic = re.search(r"(?:^|/)([A-Z]\w*)_\d+$", layer.path)
        name = type(found).__name__ if found is not None else automatic[1] if automatic else ""
        settings = {**layer.settings, "kind": KINDS.get(name, ""), **({} if found is None else _settings(found))}
        layers.append(layer._replace(type=name, settings=settings))
    return layers


def pytree_names(params: Any) -> Names:
    """Name the floating point arrays of a pytree by their paths, as in "layers/0/weight"."""
    import jax

    leaves = jax.tree_util.tree_flatten_with_path(params)[0]
    paths = [
        tuple(getattr(key, "name", getattr(key, "idx", getattr(key, "key", None))) for key in path)
        for path, leaf in leaves
        if hasattr(leaf, "shape") and jax.numpy.issubdtype(leaf.dtype, np.inexact)
    ]
    return {"/".join(map(str, path)): path for path in paths}


def pytree_layers(params: Any) -> list[Layer]:
    """List the layers of any pytree: an Equinox module, Haiku's parameters, dictionaries and lists of arrays."""
    shapes = {path: tuple(_at(params, path).shape) for path in pytree_names(params).values()}
    return _collect(params, shapes)


def _collect(model: Any, shapes: Mapping[tuple[Any, ...], tuple[int, ...]]) -> list[Layer]:
    """Gather tensors by the module that has them; types are read off `model`, if it is given.

    JAX sorts the keys of every dictionary that it maps over: where they are sorted, their order may mean nothing.
    """
    keys: dict[tuple[Any, ...], list[str]] = {}
    layers: dict[tuple[Any, ...], Layer] = {}
    for path, shape in shapes.items():
        for depth, key in enumerate(path):
            if model is None or isinstance(_at(model, path[:depth]), Mapping):
                beside = keys.setdefault(path[:depth], [])
                beside.extend([str(key)] if str(key) not in beside else [])
        owner, name = path[:-1], "/".join(map(str, path[:-1]))
        if owner not in layers:
            module = None if model is None else _at(model, owner)
            plain = module is None or isinstance(module, Mapping | Sequence)
            settings = {"kind": ""} if plain else _settings(module)
            layers[owner] = Layer(name, "" if plain else type(module).__name__, settings, {})
        layers[owner].tensors["/".join(map(str, path))] = shape
    lost = {prefix for prefix, beside in keys.items() if len(beside) > 1 and beside == sorted(beside)}
    return [
        layer._replace(
            settings={**layer.settings, "ordered": not any(owner[:n] in lost for n in range(len(owner) + 1))}
        )
        for owner, layer in layers.items()
    ]


def _settings(module: Any) -> dict[str, Any]:
    kind = next((KINDS[base.__name__] for base in type(module).__mro__ if base.__name__ in KINDS), "")
    return {"kind": kind, **{name: getattr(module, name) for name in SETTINGS if hasattr(module, name)}}


def _keys(name: str) -> tuple[Any, ...]:
    return tuple(int(key) if key.isdigit() else key for key in name.split("/"))


def _child(parent: Any, key: Any) -> Any:
    if isinstance(key, str) and not isinstance(parent, Mapping):
        return getattr(parent, key)
    return parent[key]


def _at(tree: Any, path: tuple[Any, ...]) -> Any:
    for key in path:
        tree = _child(tree, key)
    return tree


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
