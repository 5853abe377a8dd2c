"""Patches, a class token and a block with settings in a dataclass, in Flax's nnx."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import torch
from flax import nnx
from torch import nn

import compare


@dataclasses.dataclass
class Config:
    width: int = 8
    hidden: int = 16
    classes: int = 3
    epsilon: float = 1e-6


class Original(nn.Module):
    def __init__(self):
        super().__init__()
        self.patch = nn.Conv2d(3, 8, 4, 4)
        self.token = nn.Parameter(torch.randn(1, 1, 8))
        self.norm1, self.norm2 = nn.LayerNorm(8, eps=1e-6), nn.LayerNorm(8, eps=1e-6)
        self.attention = nn.MultiheadAttention(8, 2, batch_first=True)
        self.up, self.down = nn.Linear(8, 16), nn.Linear(16, 8)
        self.head = nn.Linear(8, 3)

    def forward(self, x):
        x = self.patch(x).flatten(2).transpose(1, 2)
        x = torch.cat([self.token.expand(len(x), -1, -1), x], 1)
        y = self.norm1(x)
        x = x + self.attention(y, y, y, need_weights=False)[0]
        x = x + self.down(nn.functional.gelu(self.up(self.norm2(x))))
        return self.head(x[:, 0])


class Port(nnx.Module):
    def __init__(self, config, rngs):
        norm = functools.partial(nnx.LayerNorm, config.width, epsilon=config.epsilon, rngs=rngs)
        self.patch = nnx.Conv(3, config.width, (4, 4), strides=(4, 4), padding="VALID", rngs=rngs)
        self.token = nnx.Param(jnp.zeros((1, 1, config.width)))
        self.norm1 = norm()
        self.norm2 = norm()
        self.attention = nnx.MultiHeadAttention(2, config.width, decode=False, rngs=rngs)
        self.up = nnx.Linear(config.width, config.hidden, rngs=rngs)
        self.down = nnx.Linear(config.hidden, config.width, rngs=rngs)
        self.head = nnx.Linear(config.width, config.classes, rngs=rngs)
        self.act = functools.partial(jax.nn.gelu, approximate=False)

    def __call__(self, x):
        x = self.patch(x)
        x = x.reshape(x.shape[0], -1, x.shape[-1])
        token = jnp.broadcast_to(self.token[...], (x.shape[0], 1, x.shape[-1]))
        x = jnp.concatenate([token, x], axis=1)
        x = x + self.attention(self.norm1(x))
        x = x + self.down(self.act(self.up(self.norm2(x))))
        return self.head(x[:, 0])


def pair():
    rng = np.random.default_rng(0)
    batches = [(rng.normal(size=(4, 3, 8, 8)), rng.integers(0, 3, 4)) for _ in range(2)]

    def loss(logits, labels):
        return optax.softmax_cross_entropy_with_integer_labels(logits, labels).mean()

    tx = optax.adamw(learning_rate=1e-3, weight_decay=0.1)
    return (
        compare.Torch(
            Original(), nn.CrossEntropyLoss(), lambda params: torch.optim.AdamW(params, 1e-3, weight_decay=0.1)
        ),
        compare.Flax(Port(Config(), nnx.Rngs(0)), loss, tx, batch=lambda x, labels: (np.moveaxis(x, 1, -1), labels)),
        batches,
    )


FAULTS = {
    "epsilon": ("epsilon: float = 1e-6", "epsilon: float = 1e-5"),
    "gelu": ("functools.partial(jax.nn.gelu, approximate=False)", "jax.nn.gelu"),
    "another activation": ("functools.partial(jax.nn.gelu, approximate=False)", "nnx.silu"),
    "token": (
        "self.norm2(x))))\n        return self.head(x[:, 0])\n\n\ndef pair",
        "self.norm2(x))))\n        return self.head(x.mean(1))\n\n\ndef pair",
    ),
    "order of tokens": ("jnp.concatenate([token, x], axis=1)", "jnp.concatenate([x, token], axis=1)"),
    "learning rate": ("learning_rate=1e-3", "learning_rate=3e-3"),
    "weight decay": (", weight_decay=0.1)\n    return", ")\n    return"),
    "reduction": ("(logits, labels).mean()", "(logits, labels).sum()"),
}
