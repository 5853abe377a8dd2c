"""A causal model of tokens, with a mask, in Flax's nnx."""

import jax.numpy as jnp
import numpy as np
import optax
import torch
from flax import nnx
from jax import nn as jnn
from torch import nn
from torch.nn import functional

import compare

VOCABULARY, WIDTH, LENGTH = 11, 8, 5


class Original(nn.Module):
    def __init__(self):
        super().__init__()
        self.tokens, self.positions = nn.Embedding(VOCABULARY, WIDTH), nn.Embedding(LENGTH, WIDTH)
        self.norm1, self.query, self.key, self.value = nn.LayerNorm(WIDTH), *(nn.Linear(WIDTH, WIDTH) for _ in "qkv")
        self.norm2, self.up, self.down = nn.LayerNorm(WIDTH), nn.Linear(WIDTH, 32), nn.Linear(32, WIDTH)
        self.norm3, self.head = nn.LayerNorm(WIDTH), nn.Linear(WIDTH, VOCABULARY)

    def forward(self, tokens):
        x = self.tokens(tokens) + self.positions(torch.arange(LENGTH))
        y = self.norm1(x)
        x = x + functional.scaled_dot_product_attention(self.query(y), self.key(y), self.value(y), is_causal=True)
        x = x + self.down(functional.gelu(self.up(self.norm2(x)), approximate="tanh"))
        return self.head(self.norm3(x))


class Port(nnx.Module):
    def __init__(self, rngs):
        self.tokens = nnx.Embed(VOCABULARY, WIDTH, rngs=rngs)
        self.positions = nnx.Embed(LENGTH, WIDTH, rngs=rngs)
        self.norm1, self.norm2, self.norm3 = (nnx.LayerNorm(WIDTH, epsilon=1e-5, rngs=rngs) for _ in range(3))
        self.query, self.key, self.value = (nnx.Linear(WIDTH, WIDTH, rngs=rngs) for _ in range(3))
        self.up, self.down = nnx.Linear(WIDTH, 32, rngs=rngs), nnx.Linear(32, WIDTH, rngs=rngs)
        self.head = nnx.Linear(WIDTH, VOCABULARY, rngs=rngs)

    def __call__(self, tokens):
        x = self.tokens(tokens) + self.positions(jnp.arange(LENGTH))
        y = self.norm1(x)
        scores = self.query(y) @ self.key(y).swapaxes(1, 2) / WIDTH**0.5
        allowed = jnp.tril(jnp.ones((LENGTH, LENGTH), bool))
        weights = jnn.softmax(jnp.where(allowed, scores, -jnp.inf))
        x = x + weights @ self.value(y)
        x = x + self.down(jnn.gelu(self.up(self.norm2(x)), approximate=True))
        return self.head(self.norm3(x))


def torch_loss(logits, tokens):
    return functional.cross_entropy(logits.flatten(0, 1), tokens.flatten())


def loss(logits, tokens):
    return optax.softmax_cross_entropy_with_integer_labels(logits, tokens).mean()


def clipped(params):
    optimizer = torch.optim.AdamW(params, 1e-2)
    optimizer.register_step_pre_hook(lambda *_: nn.utils.clip_grad_norm_(params, 0.5) and None)
    return optimizer


def clip_by_norm(limit):
    def update(updates, params=None):
        norm = optax.global_norm(updates)
        return optax.tree.scale(jnp.minimum(1.0, limit / (norm + 1e-6)), updates)

    return optax.stateless(update)


def pair():
    rng = np.random.default_rng(0)
    batches = [(rng.integers(0, VOCABULARY, (4, LENGTH)), rng.integers(0, VOCABULARY, (4, LENGTH))) for _ in range(2)]
    optimizer = optax.chain(clip_by_norm(0.5), optax.adamw(1e-2, weight_decay=0.01))
    return compare.Torch(Original(), torch_loss, clipped), compare.Flax(Port(nnx.Rngs(0)), loss, optimizer), batches


FAULTS = {
    "epsilon": ("epsilon=1e-5, ", ""),
    "gelu": (", approximate=True)", ", approximate=False)"),
    "no mask": ("jnp.where(allowed, scores, -jnp.inf)", "scores"),
    "clipping": ("clip_by_norm(0.5)", "clip_by_norm(1.0)"),
    "clipping without epsilon": ("clip_by_norm(0.5)", "optax.clip_by_global_norm(0.5)"),
    "no clipping": ("optax.chain(clip_by_norm(0.5), optax.adamw(1e-2, weight_decay=0.01))", "optax.adamw(1e-2)"),
    "weight decay": (", weight_decay=0.01)", ")"),
    "reduction": ("tokens).mean()", "tokens).sum()"),
    "attention scale": (" / WIDTH**0.5", " / WIDTH"),
    "residual": ("x = x + self.down(jnn", "x = self.down(jnn"),
}
