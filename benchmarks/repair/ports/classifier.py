"""A small network of images, in Flax's nnx."""

import numpy as np
import optax
import torch
from flax import nnx
from torch import nn

import compare


class Original(nn.Module):
    def __init__(self):
        super().__init__()
        self.conv1 = nn.Conv2d(3, 8, 3, stride=2, padding=1)
        self.norm1 = nn.GroupNorm(4, 8)
        self.conv2 = nn.Conv2d(8, 12, 3, padding=1)
        self.norm2 = nn.GroupNorm(3, 12)
        self.pool = nn.MaxPool2d(3, 2, padding=1)
        self.head = nn.Linear(12, 5)

    def forward(self, x):
        x = nn.functional.leaky_relu(self.norm1(self.conv1(x)), 0.2)
        x = self.pool(nn.functional.silu(self.norm2(self.conv2(x))))
        return self.head(x.mean((2, 3)))


class Port(nnx.Module):
    def __init__(self, rngs):
        self.conv1 = nnx.Conv(3, 8, (3, 3), strides=2, padding=1, rngs=rngs)
        self.norm1 = nnx.GroupNorm(8, num_groups=4, epsilon=1e-5, rngs=rngs)
        self.conv2 = nnx.Conv(8, 12, (3, 3), padding=1, rngs=rngs)
        self.norm2 = nnx.GroupNorm(12, num_groups=3, epsilon=1e-5, rngs=rngs)
        self.head = nnx.Linear(12, 5, rngs=rngs)

    def __call__(self, x):
        x = nnx.leaky_relu(self.norm1(self.conv1(x)), 0.2)
        x = nnx.silu(self.norm2(self.conv2(x)))
        x = nnx.max_pool(x, (3, 3), (2, 2), padding=((1, 1), (1, 1)))
        return self.head(x.mean((1, 2)))


def cross_entropy(logits, labels):
    labels = optax.smooth_labels(nnx.one_hot(labels, 5), 0.1)
    return optax.softmax_cross_entropy(logits, labels).mean()


def channels_last(images, labels):
    return np.moveaxis(images, 1, -1), labels


def pair():
    rng = np.random.default_rng(0)
    batches = [(rng.normal(size=(6, 3, 12, 12)), rng.integers(0, 5, 6)) for _ in range(2)]
    optimizer = optax.adamw(1e-3, b2=0.99, weight_decay=0.05)
    return (
        compare.Torch(
            Original(),
            nn.CrossEntropyLoss(label_smoothing=0.1),
            lambda params: torch.optim.AdamW(params, 1e-3, betas=(0.9, 0.99), weight_decay=0.05),
        ),
        compare.Flax(Port(nnx.Rngs(0)), cross_entropy, optimizer, batch=channels_last),
        batches,
        {"steps": 3},
    )


FAULTS = {
    "conv padding": ("strides=2, padding=1, rngs", "strides=2, rngs"),
    "norm1 epsilon": ("num_groups=4, epsilon=1e-5, rngs", "num_groups=4, rngs"),
    "norm2 epsilon": ("num_groups=3, epsilon=1e-5, rngs", "num_groups=3, rngs"),
    "groups": ("nnx.GroupNorm(12, num_groups=3", "nnx.GroupNorm(12, num_groups=4"),
    "slope": ("nnx.leaky_relu(self.norm1(self.conv1(x)), 0.2)", "nnx.leaky_relu(self.norm1(self.conv1(x)))"),
    "activation": ("nnx.silu(", "nnx.relu("),
    "pool padding": ("(2, 2), padding=((1, 1), (1, 1)))", '(2, 2), padding="SAME")'),
    "smoothing": ("nnx.one_hot(labels, 5), 0.1)", "nnx.one_hot(labels, 5), 0.05)"),
    "reduction": ("(logits, labels).mean()", "(logits, labels).sum()"),
    "b2": ("b2=0.99, ", ""),
    "weight decay": ("b2=0.99, weight_decay=0.05)", "b2=0.99)"),
    "channels for pixels": ("x.mean((1, 2))", "x.max((1, 2))"),
}
