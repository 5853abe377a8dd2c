"""A Transformer encoder in train mode, with dropout where `torch.nn.TransformerEncoderLayer` has it.

That is in four places: on the attention's weights, after the attention, after the activation, and after the second
linear layer. An image of a digit is a sentence of eight rows.
"""

from typing import Any

import jax
import jax.numpy as jnp
import optax
import torch
from flax import linen, nnx
from torch.nn import functional

import compare

from .data import Pair, digits

WIDTH, HEADS, HIDDEN, LAYERS, DROPOUT, EPSILON = 16, 2, 32, 2, 0.1, 1e-5


class TorchEncoder(torch.nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.embed = torch.nn.Linear(8, WIDTH)
        self.position = torch.nn.Parameter(0.1 * torch.randn(8, WIDTH))
        layer = torch.nn.TransformerEncoderLayer(
            WIDTH, HEADS, HIDDEN, DROPOUT, activation="gelu", layer_norm_eps=EPSILON, batch_first=True
        )
        self.encoder = torch.nn.TransformerEncoder(layer, LAYERS, enable_nested_tensor=False)
        self.head = torch.nn.Linear(WIDTH, 10)

    def forward(self, image: torch.Tensor) -> torch.Tensor:
        return self.head(self.encoder(self.embed(image[:, 0]) + self.position).mean(1))


class EncoderLayer(nnx.Module):
    def __init__(self, rngs: nnx.Rngs) -> None:
        self.attention = nnx.MultiHeadAttention(
            HEADS,
            WIDTH,
            dropout_rate=DROPOUT,
            broadcast_dropout=False,  # Flax's default draws one mask for all examples and heads
            decode=False,
            rngs=rngs,
        )
        self.linear1 = nnx.Linear(WIDTH, HIDDEN, rngs=rngs)
        self.linear2 = nnx.Linear(HIDDEN, WIDTH, rngs=rngs)
        self.norm1 = nnx.LayerNorm(WIDTH, epsilon=EPSILON, rngs=rngs)
        self.norm2 = nnx.LayerNorm(WIDTH, epsilon=EPSILON, rngs=rngs)
        self.dropout = nnx.Dropout(DROPOUT, rngs=rngs)
        self.dropout1 = nnx.Dropout(DROPOUT, rngs=rngs)
        self.dropout2 = nnx.Dropout(DROPOUT, rngs=rngs)

    def __call__(self, x: jax.Array) -> jax.Array:
        x = self.norm1(x + self.dropout1(self.attention(x)))
        hidden = self.dropout(nnx.gelu(self.linear1(x), approximate=False))
        return self.norm2(x + self.dropout2(self.linear2(hidden)))


class Encoder(nnx.Module):
    def __init__(self, rngs: nnx.Rngs) -> None:
        self.embed = nnx.Linear(8, WIDTH, rngs=rngs)
        self.position = nnx.Param(jnp.zeros((8, WIDTH)))
        self.layers = nnx.List([EncoderLayer(rngs) for _ in range(LAYERS)])
        self.head = nnx.Linear(WIDTH, 10, rngs=rngs)

    def __call__(self, image: jax.Array) -> jax.Array:
        x = self.embed(image[:, 0]) + self.position
        for layer in self.layers:
            x = layer(x)
        return self.head(x.mean(1))


class LinenEncoderLayer(linen.Module):
    @linen.compact
    def __call__(self, x: jax.Array, deterministic: bool) -> jax.Array:
        attended = linen.MultiHeadDotProductAttention(
            HEADS, dropout_rate=DROPOUT, broadcast_dropout=False, deterministic=deterministic, name="attention"
        )(x)
        attended = linen.Dropout(DROPOUT, name="dropout1")(attended, deterministic)
        x = linen.LayerNorm(EPSILON, name="norm1")(x + attended)
        hidden = linen.gelu(linen.Dense(HIDDEN, name="linear1")(x), approximate=False)
        hidden = linen.Dense(WIDTH, name="linear2")(linen.Dropout(DROPOUT, name="dropout")(hidden, deterministic))
        hidden = linen.Dropout(DROPOUT, name="dropout2")(hidden, deterministic)
        return linen.LayerNorm(EPSILON, name="norm2")(x + hidden)


class LinenEncoder(linen.Module):
    @linen.compact
    def __call__(self, image: jax.Array, deterministic: bool) -> jax.Array:
        x = linen.Dense(WIDTH, name="embed")(image[:, 0])
        x = x + self.param("position", linen.initializers.zeros, (8, WIDTH))
        for number in range(LAYERS):
            x = LinenEncoderLayer(name=f"layers_{number}")(x, deterministic)
        return linen.Dense(10, name="head")(x.mean(1))


def _cross_entropy(logits: jax.Array, target: jax.Array) -> jax.Array:
    return optax.softmax_cross_entropy_with_integer_labels(logits, target).mean()


def _pair(model: Any, training: bool) -> Pair:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        torch_model = TorchEncoder().train(training)
    return (
        compare.Torch(
            torch_model,
            loss=functional.cross_entropy,
            optimizer=lambda params: torch.optim.AdamW(params, 1e-3, weight_decay=0.01),
        ),
        compare.Flax(model, loss=_cross_entropy, optimizer=optax.adamw(1e-3, weight_decay=0.01)),
        digits(),
    )


def in_nnx(training: bool = True) -> Pair:
    """Build the pair with AdamW."""
    return _pair(Encoder(nnx.Rngs(1)), training)


def in_linen(training: bool = True) -> Pair:
    """Build the pair with AdamW."""
    model = LinenEncoder()
    variables = model.init(jax.random.key(1), jnp.zeros((1, 1, 8, 8)), deterministic=True)
    return _pair((model, variables), training)
