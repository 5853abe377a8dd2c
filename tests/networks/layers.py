"""Both halves of each layer, and of the networks that they make up."""

import functools
import math
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import torch
from flax import nnx
from torch import nn
from torch.nn.utils import parametrize

from .specification import PERTURBATION, VOCABULARY, Layer, Specification
from .unknown import FUNCTIONS as UNKNOWN

# Where Flax's own differs from torch's in more than its defaults, the right port is ours.


class BatchNorm(nnx.BatchNorm):
    """With torch's running variance, which is unbiased where Flax's is not."""

    unbiased: bool
    updated: bool

    def __call__(self, x: jax.Array, **kwargs: Any) -> jax.Array:  # type: ignore[override]
        mean, var = self.mean[...], self.var[...]
        if self.use_running_average and not self.updated:
            self.mean[...], self.var[...] = jnp.zeros_like(mean), jnp.ones_like(var)
        y = super().__call__(x, **kwargs)
        if self.use_running_average or not self.updated:
            self.mean[...], self.var[...] = mean, var
        elif self.unbiased:
            count = x.size // x.shape[-1]
            self.var[...] = self.momentum * var + (self.var[...] - self.momentum * var) * count / (count - 1)
        return y


def _batch_norm(layer: Layer, rngs: nnx.Rngs) -> BatchNorm:
    norm = BatchNorm(layer.features, momentum=1 - layer.momentum, **_norm(layer, 3), rngs=rngs)
    norm.unbiased, norm.updated = layer.unbiased, layer.updated
    return norm


def _torch_batch_norm(layer: Layer) -> nn.Module:
    cls = nn.BatchNorm2d if len(layer.shape) == 3 else nn.BatchNorm1d
    # Biased statistics are not to be had in torch. Where stale ones make a difference they make one too.
    updated = layer.updated and layer.unbiased
    return cls(layer.features, eps=layer.epsilon, momentum=layer.momentum if updated else 0.0)


def _norm(layer: Layer, position: int = 1) -> dict[str, Any]:
    return {"epsilon": layer.epsilon, "use_fast_variance": layer.fast} | _hook(layer, position)


def _hook(layer: Layer, position: int = 1, name: str = "promote_dtype") -> dict[str, Any]:
    """Alter the weights of a Flax layer at the place that Flax offers for casting them."""
    if not layer.altered:
        return {}

    def promote(arrays: tuple[Any, ...], *, dtype: Any, **kwargs: Any) -> Any:
        arrays = nnx.nn.dtypes.promote_dtype(arrays, dtype=dtype, **kwargs)
        weight = _torch_layout(layer, arrays[position])
        if layer.altered == "transposed":
            weight = jnp.swapaxes(weight, -1, -2)
        else:
            weight = weight.at[_element(layer, weight.shape)].multiply(1 + PERTURBATION)
        return (*arrays[:position], _flax_layout(layer, weight, arrays[position].shape), *arrays[position + 1 :])

    return {name: promote}


def _torch_layout(layer: Layer, weight: Any) -> Any:
    if layer.kind == "conv":
        return jnp.moveaxis(weight, (-1, -2), (0, 1))
    if layer.kind == "attention":
        return weight.reshape(-1, weight.shape[-1]).T
    return weight.T if layer.kind == "linear" else weight


def _flax_layout(layer: Layer, weight: Any, shape: tuple[int, ...]) -> Any:
    if layer.kind == "conv":
        return jnp.moveaxis(weight, (0, 1), (-1, -2))
    return weight.T.reshape(shape) if layer.kind in ("linear", "attention") else weight


def _element(layer: Layer, shape: Sequence[int]) -> tuple[int, ...]:
    number = min(int(layer.element * math.prod(shape)), math.prod(shape) - 1)
    return tuple(int(i) for i in np.unravel_index(number, shape))


class Altered(nn.Module):
    """The same alteration for torch, to see what it does."""

    def __init__(self, layer: Layer) -> None:
        super().__init__()
        self.layer = layer

    def forward(self, weight: torch.Tensor) -> torch.Tensor:
        if self.layer.altered == "transposed":
            return weight.transpose(-1, -2)
        factor = torch.ones_like(weight)
        factor[_element(self.layer, weight.shape)] += PERTURBATION
        return weight * factor


def _conv(layer: Layer, rngs: nnx.Rngs) -> nnx.Conv:
    size, stride, padding = ((value,) * (len(layer.shape) - 1) for value in layer.kernel)
    return nnx.Conv(
        layer.shape[0],
        layer.features,
        size,
        strides=stride,
        padding=[(p, p) for p in padding],
        feature_group_count=layer.groups,
        **_hook(layer),
        rngs=rngs,
    )


def _torch_conv(layer: Layer) -> nn.Module:
    cls = nn.Conv2d if len(layer.shape) == 3 else nn.Conv1d
    size, stride, padding = layer.kernel
    return cls(layer.shape[0], layer.features, size, stride=stride, padding=padding, groups=layer.groups)


class Attention(nn.Module):
    """Self-attention; a module of its own, since torch's takes query, key and value."""

    def __init__(self, layer: Layer) -> None:
        super().__init__()
        self.attention = nn.MultiheadAttention(layer.features, layer.groups, batch_first=True)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.attention(x, x, x, need_weights=False)[0]


class FlaxAttention(nnx.Module):
    """Its port."""

    def __init__(self, layer: Layer, rngs: nnx.Rngs) -> None:
        self.attention = nnx.MultiHeadAttention(
            num_heads=layer.groups,
            in_features=layer.features,
            decode=False,
            **_hook(layer, name="out_promote_dtype"),
            rngs=rngs,
        )

    def __call__(self, x: jax.Array) -> jax.Array:
        return self.attention(x)


class Network(nn.Module):
    """Layers one after the other; as a residual block, added to the input."""

    def __init__(self, specification: Specification, layers: Sequence[Layer], *, residual: bool = False) -> None:
        super().__init__()
        self.residual, self.count, self.layers = residual, len(layers), layers
        for number, layer in enumerate(layers):
            if layer.inner:
                item: Any = Network(specification, layer.inner, residual=True)
            else:
                item = LAYERS[layer.kind].torch(layer)
            # A method of a module that is registered nowhere is a function, to whoever looks for modules.
            plain = specification.functional and layer.kind in FUNCTIONS
            setattr(self, f"layer{number}", item.forward if plain else item)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y = x
        for number in range(self.count):
            y = getattr(self, f"layer{number}")(y)
            if unknown := self.layers[number].unknown:
                y = UNKNOWN[unknown][0](y)
        return x + y if self.residual else y


def alter(network: nn.Module, layers: Sequence[Layer]) -> None:
    """Alter the weights of a torch network as its specification says: those that compute, not those that learn."""
    for number, layer in enumerate(layers):
        item = getattr(network, f"layer{number}")
        alter(item, layer.inner)
        if layer.altered:
            weighted = item.attention.out_proj if layer.kind == "attention" else item
            parametrize.register_parametrization(weighted, "weight", Altered(layer), unsafe=True)


class FlaxNetwork(nnx.Module):
    """Its port."""

    def __init__(self, layers: Sequence[Layer], rngs: nnx.Rngs, *, residual: bool = False) -> None:
        self.residual, self.count = residual, len(layers)
        self.unknown = tuple(layer.unknown for layer in layers)
        for number, layer in enumerate(layers):
            inner = layer.inner and FlaxNetwork(layer.inner, rngs, residual=True)
            setattr(self, f"layer{number}", inner or LAYERS[layer.kind].flax(layer, rngs))

    def __call__(self, x: jax.Array) -> jax.Array:
        y = x
        for number in range(self.count):
            y = getattr(self, f"layer{number}")(y)
            if self.unknown[number]:
                y = UNKNOWN[self.unknown[number]][1](y)
        return x + y if self.residual else y


class Both(NamedTuple):
    """How a layer is built on both sides."""

    torch: Callable[[Layer], nn.Module]
    flax: Callable[[Layer, nnx.Rngs], Callable[[jax.Array], jax.Array]]


def _function(torch: nn.Module, flax: Callable[[jax.Array], jax.Array]) -> Both:
    return Both(lambda layer: torch, lambda layer, rngs: flax)


ACTIVATIONS = {
    "relu": _function(nn.ReLU(), jax.nn.relu),
    "gelu": _function(nn.GELU(), functools.partial(jax.nn.gelu, approximate=False)),
    "gelu tanh": _function(nn.GELU(approximate="tanh"), functools.partial(jax.nn.gelu, approximate=True)),
    "silu": _function(nn.SiLU(), jax.nn.silu),
    "tanh": _function(nn.Tanh(), jnp.tanh),
    "sigmoid": _function(nn.Sigmoid(), jax.nn.sigmoid),
    "elu": _function(nn.ELU(), jax.nn.elu),
    # torch's softplus is the identity past 20; that is 2e-9 less than JAX's.
    "softplus": _function(nn.Softplus(), lambda x: jnp.where(x > 20, x, jax.nn.softplus(x))),
    # At 0 the gradient of torch's is the slope, that of jax.nn.leaky_relu 1.
    "leaky relu": _function(nn.LeakyReLU(), lambda x: jnp.where(x > 0, x, 0.01 * x)),
}


def _pooled(pool: Callable[..., jax.Array], x: jax.Array) -> jax.Array:
    window = (2,) * (x.ndim - 2)
    return pool(x, window, strides=window)


FUNCTIONS = ACTIVATIONS | {
    "max pool": Both(
        lambda layer: nn.MaxPool2d(2) if len(layer.shape) == 3 else nn.MaxPool1d(2),
        lambda layer, rngs: functools.partial(_pooled, nnx.max_pool),
    ),
    "average pool": Both(
        lambda layer: nn.AvgPool2d(2) if len(layer.shape) == 3 else nn.AvgPool1d(2),
        lambda layer, rngs: functools.partial(_pooled, nnx.avg_pool),
    ),
    "flatten": _function(nn.Flatten(), lambda x: x.reshape(x.shape[0], -1)),
}
RATE = 0.2
"""Of dropout."""

LAYERS = FUNCTIONS | {
    "linear": Both(
        lambda layer: nn.Linear(layer.shape[-1], layer.features),
        lambda layer, rngs: nnx.Linear(layer.shape[-1], layer.features, **_hook(layer), rngs=rngs),
    ),
    "conv": Both(_torch_conv, _conv),
    "layer norm": Both(
        lambda layer: nn.LayerNorm(layer.features, eps=layer.epsilon),
        lambda layer, rngs: nnx.LayerNorm(layer.features, **_norm(layer), rngs=rngs),
    ),
    "rms norm": Both(
        lambda layer: nn.RMSNorm(layer.features, eps=layer.epsilon),
        lambda layer, rngs: nnx.RMSNorm(layer.features, **_norm(layer), rngs=rngs),
    ),
    "batch norm": Both(_torch_batch_norm, _batch_norm),
    "group norm": Both(
        lambda layer: nn.GroupNorm(layer.groups, layer.features, eps=layer.epsilon),
        lambda layer, rngs: nnx.GroupNorm(layer.features, layer.groups, **_norm(layer), rngs=rngs),
    ),
    "embedding": Both(
        lambda layer: nn.Embedding(VOCABULARY, layer.features),
        lambda layer, rngs: nnx.Embed(VOCABULARY, layer.features, **_hook(layer, 0), rngs=rngs),
    ),
    "attention": Both(Attention, FlaxAttention),
    "dropout": Both(lambda layer: nn.Dropout(RATE), lambda layer, rngs: nnx.Dropout(RATE, rngs=rngs)),
}
