"""Copies the weights of a torch model into a Flax model: `compare.copy_weights`."""

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from compare.errors import InputError
from compare.jax_side.layers import linen_layers, linen_names, linen_value, nnx_layers, nnx_variables
from compare.torch_side.layers import flattened_features, kept_tensors, torch_layers
from compare.weights.find import find_links
from compare.weights.links import WeightMap, to_jax

if TYPE_CHECKING:
    import torch


class Copied(NamedTuple):
    """The result of `copy_weights`."""

    model: Any
    """The nnx module that was given, changed in place, or the pair `(linen_module, variables)` with new variables."""
    weights: WeightMap
    """The map that was used."""


def copy_weights(
    torch_model: "torch.nn.Module",
    flax_model: Any,
    weights: Mapping[str, str | None] | None = None,
    inputs: Any = None,
) -> Copied:
    """Copy the weights and buffers of a torch model into a Flax model.

    Args:
        torch_model: Any module. It is not changed, and shares no memory with the result.
        flax_model: An `nnx.Module`, which is changed in place, or a pair `(linen_module, variables)`, which is not.
        weights: `{"torch name or regex": "flax/path"}` for what is not matched automatically, as for `compare.check`.
        inputs: Inputs of the torch model: an array, a tuple (positional) or a dictionary (keyword). With these, the
            model is run once, to find the shapes of the inputs that are flattened before its linear layers.

    Returns:
        The model with the weights, in its own shapes and dtypes, and the map.

    Raises:
        InputError: If a tensor has no partner or several possible ones, with a list; if an entry of `weights` matches
            nothing; if `flax_model` is neither of the two.

    """
    # Most of its lines describe its arguments: users read them here.
    import jax
    import jax.numpy as jnp
    import torch
    from flax import nnx

    def array(tensor: "torch.Tensor") -> np.ndarray:
        return tensor.detach().cpu().to(torch.float32 if tensor.dtype == torch.bfloat16 else tensor.dtype).numpy()

    layers = torch_layers(torch_model, None if inputs is None else flattened_features(torch_model, inputs))
    arrays = {name: array(tensor) for name, tensor in kept_tensors(torch_model).items()}
    if isinstance(flax_model, nnx.Module):
        links = find_links(layers, nnx_layers(flax_model), weights)
        variables = nnx_variables(flax_model)
        new = to_jax(links, arrays, {name: np.asarray(variable[...]) for name, variable in variables.items()})
        # Without x64, jnp.array would cast a float64 parameter to float32.
        with jax.enable_x64(True):
            for name, variable in variables.items():
                variable[...] = jnp.array(new[name])
        return Copied(flax_model, links)
    if not (isinstance(flax_model, tuple) and len(flax_model) == 2 and isinstance(flax_model[1], Mapping)):
        raise InputError(
            f"copy_weights takes an nnx module or a pair (linen_module, variables), not {type(flax_model).__name__}"
        )
    module, before = flax_model
    links = find_links(layers, linen_layers(before, module), weights)
    names = {path: name for name, path in linen_names(before).items()}
    old = {name: np.asarray(linen_value(before, path)) for path, name in names.items()}
    new = to_jax(links, arrays, old)

    def filled(tree: Any, path: tuple[str, ...]) -> Any:
        if isinstance(tree, Mapping):
            return {key: filled(value, (*path, key)) for key, value in tree.items()}
        if path not in names:
            return tree
        value = jnp.array(new[names[path]])
        return tree.replace_boxed(value) if hasattr(tree, "replace_boxed") else value

    with jax.enable_x64(True):
        return Copied((module, filled(before, ())), links)
