"""The layers of a torch model, by name, type, settings and shapes."""

import math
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any

from compare.weights.layers import KINDS, Layer, map_settings

if TYPE_CHECKING:
    import torch


STATISTICS = ("running_mean", "running_var")
"""The names of the buffers in which torch's norms keep what they have seen."""


def is_statistic(name: str) -> bool:
    """Return whether a buffer is a norm's running statistic."""
    return name.rpartition(".")[2] in STATISTICS


def torch_layers(model: "torch.nn.Module", flattened: Mapping[str, tuple[int, ...]] | None = None) -> list[Layer]:
    """List the layers of a torch module, in the order of definition, under all names that `kept_tensors` has.

    Args:
        model: Any module.
        flattened: What `flattened_features` gives, if it was run.

    """
    kept = kept_tensors(model)
    first: dict[int, str] = {}
    several: set[int] = set()
    for name, tensor in kept.items():
        if first.setdefault(id(tensor), name) != name:
            several.add(id(tensor))
    layers = []
    for path, module in model.named_modules(remove_duplicate=False):
        parameters = [*module.named_parameters(path, recurse=False, remove_duplicate=False)]
        buffers = [*module.named_buffers(path, recurse=False, remove_duplicate=False)]
        tensors = {name: kept[name] for name, _ in [*parameters, *buffers] if name in kept}
        # One whose only tensors are made by a parametrization is listed for its type.
        if tensors or hasattr(module, "parametrizations"):
            settings = {
                **map_settings(module),
                **_flattening(module, path, flattened or {}),
                "tied": {name: first[id(tensor)] for name, tensor in tensors.items() if id(tensor) in several},
                "buffers": [name for name, _ in buffers],
                "frozen": [name for name, parameter in parameters if not parameter.requires_grad],
                "integers": [name for name, tensor in tensors.items() if not tensor.is_floating_point()],
            }
            shapes = {name: tuple(tensor.shape) for name, tensor in tensors.items()}
            layers.append(Layer(path, type(module).__name__, settings, shapes))
    named = {name for layer in layers for name in layer.tensors}
    # State that a module adds by other means has a name too, and is included.
    extra = {name: tuple(getattr(tensor, "shape", ())) for name, tensor in kept.items() if name not in named}
    return [*layers, *(Layer(name, "", {"kind": ""}, {name: shape}) for name, shape in extra.items())]


def _flattening(module: Any, path: str, flattened: Mapping[str, tuple[int, ...]]) -> dict[str, Any]:
    """Return the settings of a layer of which a run has shown in which order it takes the features of an image."""
    if path not in flattened:
        return {}
    # Only a linear layer takes such features, so its kind is known even if its class is the user's own.
    known = {"kind": map_settings(module)["kind"] or "linear"} if flattened[path] else {}
    return {"flattened": flattened[path], **known}


def layer_kinds(model: "torch.nn.Module") -> dict[str, str]:
    """Return the kind of each module, by path: by its class, else by the axes of its weight; "" of all others.

    A user's own linear layer or convolution has a weight like torch's, whatever it is called.
    """
    kinds = {}
    for path, module in model.named_modules():
        axes = getattr(dict(module.named_parameters(recurse=False)).get("weight"), "ndim", 0)
        kinds[path] = map_settings(module)["kind"] or ("linear" if axes == 2 else "conv" if axes > 2 else "")
    return kinds


def kept_tensors(model: "torch.nn.Module") -> dict[str, Any]:
    """Name everything that a torch module keeps: what `state_dict()` has, and the buffers that it leaves out."""
    kept = model.state_dict(keep_vars=True)
    return {**kept, **{name: buffer for name, buffer in model.named_buffers() if name not in kept}}


def recurrent_layers(model: "torch.nn.Module") -> frozenset[str]:
    """Name the LSTMs, GRUs and RNNs of a model, and the user's subclasses of them, each called once for all times."""
    import torch

    return frozenset(path for path, module in model.named_modules() if isinstance(module, torch.nn.RNNBase))


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
