"""Finds dictionaries of tensors in a state that hold a copy of a module's, as an average of its parameters by name."""

from collections.abc import Iterable, Mapping, Sequence

from compare.weights.layers import Layer

_OF_NAMES = ("buffers", "integers")
"""Settings of a layer that list names of its tensors."""


def shadows(
    layers: Sequence[Layer], models: Iterable[str], bare: Mapping[str, tuple[int, ...]]
) -> dict[str, list[Layer]]:
    """Give the layers of each such dictionary by its path: they are those of the module that it is a copy of.

    `{name: parameter.clone() for name, parameter in model.named_parameters()}` has the names that the model has.

    Args:
        layers: Of all modules of the state.
        models: The paths of the modules in the state.
        bare: The shapes of the state's other tensors, by path.

    """
    found: dict[str, list[Layer]] = {}
    for model in models:
        own = [layer for layer in layers if layer.path == model or layer.path.startswith(f"{model}.")]
        shapes = {name.removeprefix(f"{model}."): shape for layer in own for name, shape in layer.tensors.items()}
        beside = {name.removeprefix(f"{model}.") for layer in own for name in layer.settings.get("buffers", ())}
        parameters = shapes.keys() - beside
        first = min(parameters, default="")
        for root in (name.removesuffix(f".{first}") for name in bare if name.endswith(f".{first}")):
            copied = {name: shape for name, shape in shapes.items() if bare.get(f"{root}.{name}") == shape}
            if parameters and parameters <= copied.keys() and root not in found:
                found[root] = [_under(root, model, layer, copied) for layer in own]
    return {root: [layer for layer in each if layer.tensors] for root, each in found.items()}


def _under(root: str, model: str, layer: Layer, copied: Mapping[str, tuple[int, ...]]) -> Layer:
    """Give a layer of a module as one of its copy, with the tensors that the copy has."""

    def moved(names: Iterable[str]) -> list[str]:
        inner = [name.removeprefix(f"{model}.") for name in names]
        return [f"{root}.{name}" for name in inner if name in copied]

    settings = {name: value for name, value in layer.settings.items() if name != "tied"}
    settings |= {name: moved(settings[name]) for name in _OF_NAMES if name in settings}
    tensors = {
        f"{root}.{name}": copied[name]
        for name in (each.removeprefix(f"{model}.") for each in layer.tensors)
        if name in copied
    }
    return layer._replace(path=f"{root}{layer.path.removeprefix(model)}", settings=settings, tensors=tensors)
