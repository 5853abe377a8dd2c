"""A classifier of sentences that are padded, in Linen with `setup`."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import torch
from flax import linen as nn
from torch.nn import functional

import compare


class Original(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.embed = torch.nn.Embedding(20, 8)
        self.conv = torch.nn.Conv1d(8, 12, 3, padding=1)
        self.norm = torch.nn.LayerNorm(12)
        self.hidden, self.out = torch.nn.Linear(12, 10), torch.nn.Linear(10, 4)

    def forward(self, tokens):
        x = self.conv(self.embed(tokens).transpose(1, 2)).transpose(1, 2)
        x = functional.relu6(self.norm(x)).mean(1)
        return self.out(torch.tanh(self.hidden(x)))


class Port(nn.Module):
    def setup(self):
        self.embed = nn.Embed(20, 8)
        self.conv = nn.Conv(12, (3,), padding=1)
        self.norm = nn.LayerNorm(epsilon=1e-5)
        self.hidden, self.out = nn.Dense(10), nn.Dense(4)

    def __call__(self, tokens):
        x = self.conv(self.embed(tokens))
        x = nn.relu6(self.norm(x)).mean(axis=1)
        return self.out(jnp.tanh(self.hidden(x)))


def loss(logits, labels):
    weight = jnp.where(labels == -100, 0.0, 1.0)
    each = optax.softmax_cross_entropy_with_integer_labels(logits, jnp.maximum(labels, 0))
    return jnp.sum(weight * each) / jnp.sum(weight)


def pair():
    rng = np.random.default_rng(0)
    labels = rng.integers(0, 4, (2, 8))
    labels[:, ::3] = -100
    batches = list(zip(rng.integers(0, 20, (2, 8, 7)), labels, strict=True))
    variables = Port().init(jax.random.key(0), jnp.zeros((1, 7), int))
    original = compare.Torch(Original(), torch.nn.CrossEntropyLoss(), lambda params: torch.optim.Adamax(params, 4e-3))
    port = compare.Flax((Port(), variables), loss, optax.adamax(4e-3, b1=0.9, b2=0.999, eps=1e-8))
    return original, port, batches


FAULTS = {
    "epsilon": ("nn.LayerNorm(epsilon=1e-5)", "nn.LayerNorm()"),
    "relu6": ("nn.relu6(", "nn.gelu("),
    "tanh": ("jnp.tanh(", "nn.sigmoid("),
    "pooling": (").mean(axis=1)", ").max(axis=1)"),
    "ignored labels": ("jnp.where(labels == -100, 0.0, 1.0)", "jnp.ones(labels.shape)"),
    "learning rate": ("optax.adamax(4e-3", "optax.adamax(2e-3"),
    "b1": ("b1=0.9,", "b1=0.8,"),
    "b2": ("b2=0.999,", "b2=0.99,"),
    "conv padding": ("(3,), padding=1)", '(3,), padding="CIRCULAR")'),
}
