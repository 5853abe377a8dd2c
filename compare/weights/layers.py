"""The layers of a model, as its framework shows them: names, types, settings and the shapes of their tensors.

Both sides name a tensor by its path, torch as in "encoder.0.weight" and JAX as in "encoder/layers_0/kernel". The
weights are matched on these lists alone, so that no framework is needed for it.
"""

from collections.abc import Iterable, Mapping, Sequence
from typing import Any, NamedTuple

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

`Conv1D` is the linear layer of GPT-2 in `transformers`, whose weight is (in, out).
"""

SETTINGS = ("groups", "transpose_kernel", "num_layers", "bidirectional", "hidden_size")
"""Attributes of a module that decide the layout of its tensors."""

Names = dict[str, tuple[Any, ...]]
"""The path, within the model's own structure, of each tensor by its name."""


class Layer(NamedTuple):
    """One module that has tensors of its own, on either side; its children are layers of their own."""

    path: str
    """As in "encoder.0" of torch, or "encoder/0" of JAX; "" for the model itself."""
    type: str
    """The name of its class, or "" where that is unknown: a dictionary, Linen's variables alone."""
    settings: Mapping[str, Any]
    """The properties of a layer that the map needs.

    `kind` is one of `KINDS`' values, or "". `buffers` are the names of its tensors that are not trained, and `integers`
    those of its tensors that are not floating-point. `leaves` and `derived` are those of `reparametrized`. Of torch:
    `tied`, for each tensor that has several names the first of them; `flattened`, the shape (C, *spatial) of the
    features that a linear layer takes flattened, or () where it takes no such thing, if a run has shown it. Of JAX:
    `ordered`, False where the order of definition is lost; `stateless`, True where the model has no place for buffers.
    Further those of `SETTINGS` that the module has.
    """
    tensors: dict[str, tuple[int, ...]]
    """Full name to shape; parameters first, then buffers, in the order of their definition."""


class Tensor(NamedTuple):
    """The properties of one tensor that the map needs."""

    shape: tuple[int, ...]
    buffer: bool = False
    """It is part of the model's state, and not trained."""
    integer: bool = False
    """Its numbers are not floating-point."""


def buffer_names(layers: Iterable[Layer]) -> set[str]:
    """Return the names of what is part of a model's state, and not trained."""
    return {name for layer in layers for name in layer.settings.get("buffers", ())}


def collect(model: Any, tensors: Mapping[tuple[Any, ...], Tensor]) -> list[Layer]:
    """Gather tensors by the module that has them; types are read off `model`, if it is given.

    JAX sorts the keys of every dictionary that it maps over: where they are sorted, their order may mean nothing.
    """
    keys: dict[tuple[Any, ...], list[str]] = {}
    layers: dict[tuple[Any, ...], Layer] = {}
    for path, tensor in tensors.items():
        for depth, key in enumerate(path):
            if model is None or isinstance(known_at(model, path[:depth]), Mapping):
                beside = keys.setdefault(path[:depth], [])
                beside.extend([str(key)] if str(key) not in beside else [])
        # A dictionary by torch's names, such as "encoder.0.weight", has the layers of these names.
        dotted = path[-1].rpartition(".")[0] if isinstance(path[-1], str) else ""
        owner = (*path[:-1], dotted) if dotted else path[:-1]
        if owner not in layers:
            name = "/".join(map(str, owner))
            module = None if model is None or dotted else known_at(model, owner)
            plain = module is None or isinstance(module, Mapping | Sequence)
            settings = {**({"kind": ""} if plain else map_settings(module)), "buffers": [], "integers": []}
            layers[owner] = Layer(name, "" if plain else type(module).__name__, settings, {})
        full = "/".join(map(str, path))
        layers[owner].tensors[full] = tensor.shape
        layers[owner].settings["buffers"].extend([full] if tensor.buffer else [])
        layers[owner].settings["integers"].extend([full] if tensor.integer else [])
    lost = {prefix for prefix, beside in keys.items() if len(beside) > 1 and beside == sorted(beside)}
    return [
        layer._replace(
            settings={**layer.settings, "ordered": not any(owner[:n] in lost for n in range(len(owner) + 1))}
        )
        for owner, layer in layers.items()
    ]


def map_settings(module: Any) -> dict[str, Any]:
    """Return the properties of a module that the map needs: its kind and those of `SETTINGS` that it has."""
    # The kind is found by class names, so that neither framework is imported, and by base classes, to include
    # subclasses.
    kind = next((KINDS[base.__name__] for base in type(module).__mro__ if base.__name__ in KINDS), "")
    return {"kind": kind, **{name: getattr(module, name) for name in SETTINGS if hasattr(module, name)}}


def _child(parent: Any, key: Any) -> Any:
    if isinstance(key, str) and not isinstance(parent, Mapping):
        return getattr(parent, key)
    return parent[key]


def at_path(tree: Any, path: tuple[Any, ...]) -> Any:
    """Look up the object at a path of attributes, keys and indices."""
    for key in path:
        tree = _child(tree, key)
    return tree


def known_at(tree: Any, path: tuple[Any, ...]) -> Any:
    """Look up the object at a path, or give None for what a container of another kind, such as a state, has inside."""
    try:
        return at_path(tree, path)
    except (TypeError, KeyError, IndexError, AttributeError):
        return None
