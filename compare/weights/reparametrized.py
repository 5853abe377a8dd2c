"""Puts the tensors of weight normalization and spectral normalization into the layer whose weight they make.

Weight normalization computes a weight from a direction v and a norm g, w = g v / ‖v‖; spectral normalization divides a
weight by its largest singular value, which it estimates with vectors u and v that it keeps. Every framework files these
tensors elsewhere:

    torch, parametrizations   fc.parametrizations.weight.original0, .original1; .original, .0._u, .0._v
    torch, older              fc.weight_g, fc.weight_v; fc.weight_orig, fc.weight_u, fc.weight_v
    Linen                     a key "fc/kernel/scale" in the parent's WeightNorm_0; "fc/kernel/u", "fc/kernel/sigma"
    nnx                       a key ("kernel",) in wrapper.scales; ("kernel", "u") in wrapper.batch_stats

Here they become tensors of the layer itself, called "weight", "weight norm" and "weight u".
"""

import ast
import re
from collections.abc import Iterable, Mapping
from typing import Any, NamedTuple

from compare.weights.layers import Layer, buffer_names
from compare.weights.recurrent import GATES
from compare.weights.units import ROLES

DERIVED = "it is computed from the weight and u at each step"

_TORCH = re.compile(r"(?P<layer>.*?)\.?parametrizations\.(?P<of>\w+)\.(?P<what>original[01]?|\d+\._[uv])")

_PARAMETRIZED = {"original": "", "original1": "", "original0": "norm", "_u": "u", "_v": "derived"}


class _Moved(NamedTuple):
    layer: str
    """The path of the layer that the tensor is filed under from now on."""
    of: str
    """The tensor of the layer that it makes: "weight" or "bias"."""
    what: str
    """"" for the tensor itself, "norm", "u", or "derived" for what follows from the others."""


def gathered(layers: list[Layer], *, of_torch: bool) -> list[Layer]:
    """Move such tensors to their layers; `settings` then has their names in `leaves` and what is `derived`."""
    paths = {layer.path for layer in layers}
    moved = {
        name: found
        for layer in layers
        for name, found in (_torch(layer) if of_torch else _jax(layer))
        if found.layer in paths
    }
    if not moved:
        return layers
    shapes = {name: shape for layer in layers for name, shape in layer.tensors.items()}
    state = buffer_names(layers)
    made = []
    for layer in layers:
        coming = {name: each for name, each in moved.items() if each.layer == layer.path}
        rest = {name: shape for name, shape in layer.tensors.items() if name not in moved}
        tensors = {**{name: shapes[name] for name in coming}, **rest}
        if tensors:
            settings = {**layer.settings, "buffers": [name for name in tensors if name in state], **_settings(coming)}
            made.append(layer._replace(settings=settings, tensors=tensors))
    return made


def _settings(coming: Mapping[str, _Moved]) -> dict[str, Any]:
    return {
        "leaves": {name: f"{each.of} {each.what}".strip() for name, each in coming.items()},
        "derived": {name: DERIVED for name, each in coming.items() if each.what == "derived"},
    }


def _torch(layer: Layer) -> Iterable[tuple[str, _Moved]]:
    if layer.settings.get("kind") in GATES:
        return
    leaves = {name.rpartition(".")[2]: name for name in layer.tensors}
    for leaf, name in leaves.items():
        of, _, what = leaf.rpartition("_")
        # The older functions add tensors next to the weight, parametrizations below the layer. Both keep w itself only
        # as a result, so that g and v, or the weight before its division and u, are what has a partner.
        if match := _TORCH.fullmatch(name):
            yield name, _Moved(match["layer"], match["of"], _PARAMETRIZED[match["what"].rpartition(".")[2]])
        elif {f"{of}_g", f"{of}_v"} <= leaves.keys() and what in "gv":
            yield name, _Moved(layer.path, of, "norm" if what == "g" else "")
        elif {f"{of}_orig", f"{of}_u"} <= leaves.keys() and what in ("orig", "u", "v"):
            yield name, _Moved(layer.path, of, {"orig": "", "u": "u", "v": "derived"}[what])


def _jax(layer: Layer) -> Iterable[tuple[str, _Moved]]:
    parent = layer.path.rpartition("/")[0]
    place: tuple[str, ...]
    for name in layer.tensors:
        key = name.removeprefix(f"{layer.path}/")
        # nnx.WeightNorm and SpectralNorm keep their state in dicts whose keys are paths as tuples; their repr
        # is in the name.
        if key.startswith("("):  # nnx: a tuple is the key
            place, parts = (parent, "layer_instance"), list(map(str, ast.literal_eval(key)))
            parts += ["scale"] if layer.path.endswith("scales") else []
        elif "/" in key:
            place, parts = (parent,), key.split("/")
        else:
            continue
        *inner, of, what = parts
        if what in ("scale", "u", "sigma") and ROLES.get(of):
            path = "/".join(filter(None, (*place, *inner)))
            yield name, _Moved(path, ROLES[of], {"scale": "norm", "u": "u", "sigma": "derived"}[what])
