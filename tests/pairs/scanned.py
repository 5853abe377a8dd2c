"""A deep network of equal layers: a list of them in torch, one stack of their weights under a scan in JAX."""

from typing import Any

import equinox as eqx
import haiku as hk
import jax
import jax.numpy as jnp
import optax
import torch
from flax import linen, nnx
from torch.nn import functional

import compare

from .data import Batches, Pair, diabetes, wine

WIDTH, LAYERS = 16, 4


class TorchNetwork(torch.nn.Module):
    def __init__(self, inputs: int, outputs: int) -> None:
        super().__init__()
        self.first = torch.nn.Linear(inputs, WIDTH)
        self.layers = torch.nn.ModuleList([torch.nn.Linear(WIDTH, WIDTH) for _ in range(LAYERS)])
        self.last = torch.nn.Linear(WIDTH, outputs)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.first(x)
        for layer in self.layers:
            x = x + torch.tanh(layer(x))
        return self.last(x)


class Network(nnx.Module):
    def __init__(self, inputs: int, outputs: int, rngs: nnx.Rngs) -> None:
        @nnx.split_rngs(splits=LAYERS)
        @nnx.vmap(in_axes=0, out_axes=0)
        def stack(rngs: nnx.Rngs) -> nnx.Linear:
            return nnx.Linear(WIDTH, WIDTH, rngs=rngs)

        self.first = nnx.Linear(inputs, WIDTH, rngs=rngs)
        self.layers = stack(rngs)
        self.last = nnx.Linear(WIDTH, outputs, rngs=rngs)

    def __call__(self, x: jax.Array) -> jax.Array:
        @nnx.scan(in_axes=(nnx.Carry, 0), out_axes=nnx.Carry)
        def through(x: jax.Array, layer: nnx.Linear) -> jax.Array:
            return x + nnx.tanh(layer(x))

        return self.last(through(self.first(x), self.layers))


class LinenLayer(linen.Module):
    @linen.compact
    def __call__(self, x: jax.Array, _: None) -> tuple[jax.Array, None]:
        return x + linen.tanh(linen.Dense(WIDTH, name="linear")(x)), None


class LinenNetwork(linen.Module):
    outputs: int

    @linen.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        stack = linen.scan(LinenLayer, variable_axes={"params": 0}, split_rngs={"params": True}, length=LAYERS)
        x, _ = stack(name="layers")(linen.Dense(WIDTH, name="first")(x), None)
        return linen.Dense(self.outputs, name="last")(x)


class EquinoxNetwork(eqx.Module):
    first: eqx.nn.Linear
    layers: eqx.nn.Linear
    last: eqx.nn.Linear

    def __init__(self, inputs: int, outputs: int, key: jax.Array) -> None:
        first, last, *rest = jax.random.split(key, 2 + LAYERS)
        self.first = eqx.nn.Linear(inputs, WIDTH, key=first)
        self.layers = eqx.filter_vmap(lambda key: eqx.nn.Linear(WIDTH, WIDTH, key=key))(jnp.stack(rest))
        self.last = eqx.nn.Linear(WIDTH, outputs, key=last)

    def __call__(self, x: jax.Array) -> jax.Array:
        def through(x: jax.Array, layer: eqx.nn.Linear) -> tuple[jax.Array, None]:
            return x + jnp.tanh(jax.vmap(layer)(x)), None

        x, _ = jax.lax.scan(through, jax.vmap(self.first)(x), self.layers)
        return jax.vmap(self.last)(x)


def haiku_network(x: jax.Array, outputs: int) -> jax.Array:
    x = hk.Linear(WIDTH, name="first")(x)
    stack = hk.experimental.layer_stack(LAYERS, name="layers")
    x = stack(lambda x: x + jnp.tanh(hk.Linear(WIDTH, name="linear")(x)))(x)
    return hk.Linear(outputs, name="last")(x)


def _torch(batches: Batches, outputs: int, loss: Any, optimizer: Any) -> compare.Torch:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return compare.Torch(TorchNetwork(batches[0][0].shape[1], outputs), loss=loss, optimizer=optimizer)


def _cross_entropy(logits: jax.Array, target: jax.Array) -> jax.Array:
    return optax.softmax_cross_entropy_with_integer_labels(logits, target).mean()


def _squared_error(output: jax.Array, target: jax.Array) -> jax.Array:
    return jnp.mean((output - target) ** 2)


def in_nnx() -> Pair:
    """Build the pair with RMSprop and its momentum."""
    batches = wine()
    return (
        _torch(batches, 3, functional.cross_entropy, lambda params: torch.optim.RMSprop(params, 1e-3, momentum=0.9)),
        compare.Flax(
            Network(13, 3, nnx.Rngs(1)),
            loss=_cross_entropy,
            optimizer=optax.rmsprop(1e-3, decay=0.99, eps_in_sqrt=False, momentum=0.9),
        ),
        batches,
    )


def in_linen() -> Pair:
    """Build the pair with SGD."""
    batches = diabetes()
    model = LinenNetwork(1)
    return (
        _torch(batches, 1, functional.mse_loss, lambda params: torch.optim.SGD(params, 0.02)),
        compare.Flax(
            (model, model.init(jax.random.key(1), batches[0][0])), loss=_squared_error, optimizer=optax.sgd(0.02)
        ),
        batches,
    )


def in_equinox() -> Pair:
    """Build the pair with Adagrad."""
    batches = wine()
    params, rest = eqx.partition(EquinoxNetwork(13, 3, jax.random.key(1)), eqx.is_array)
    return (
        _torch(batches, 3, functional.cross_entropy, lambda params: torch.optim.Adagrad(params, 0.02, eps=0.0)),
        compare.Jax(
            lambda params, x: eqx.combine(params, rest)(x),
            params,
            loss=_cross_entropy,
            # Without eps, which torch adds to the root, and optax to what is under it.
            optimizer=optax.adagrad(0.02, initial_accumulator_value=0.0, eps=0.0),
        ),
        batches,
    )


def in_haiku() -> Pair:
    """Build the pair with Adam and L2 regularisation, which torch adds to the gradient."""
    batches = diabetes()
    network: Any = hk.without_apply_rng(hk.transform(lambda x: haiku_network(x, 1)))
    return (
        _torch(batches, 1, functional.mse_loss, lambda params: torch.optim.Adam(params, 1e-3, weight_decay=0.1)),
        compare.Jax(
            network.apply,
            network.init(jax.random.key(1), batches[0][0]),
            loss=_squared_error,
            optimizer=optax.chain(optax.add_decayed_weights(0.1), optax.adam(1e-3)),
        ),
        batches,
    )
