"""A network of residual blocks with batch normalization, made by a helper, in Flax's nnx."""

import jax.numpy as jnp
import numpy as np
import optax
import torch
from flax import nnx
from torch import nn

import compare


def conv(channels, out, stride=1):
    return nn.Conv2d(channels, out, 3, stride, padding=1, bias=False)


class Block(nn.Module):
    def __init__(self, channels, out, stride):
        super().__init__()
        self.conv1, self.norm1 = conv(channels, out, stride), nn.BatchNorm2d(out)
        self.conv2, self.norm2 = conv(out, out), nn.BatchNorm2d(out)
        self.short = nn.Conv2d(channels, out, 1, stride)

    def forward(self, x):
        y = torch.relu(self.norm1(self.conv1(x)))
        return torch.relu(self.norm2(self.conv2(y)) + self.short(x))


class Original(nn.Module):
    def __init__(self):
        super().__init__()
        self.block1, self.block2 = Block(3, 6, 1), Block(6, 8, 2)
        self.head = nn.Linear(8, 4)

    def forward(self, x):
        return self.head(self.block2(self.block1(x)).mean((2, 3)))


class BatchNorm(nnx.BatchNorm):
    """As torch's: the running variance is the unbiased one."""

    def __call__(self, x, **settings):
        before = self.var[...]
        y = super().__call__(x, **settings)
        if not self.use_running_average:
            count = x.size // x.shape[-1]
            kept = self.momentum * before
            self.var[...] = kept + (self.var[...] - kept) * count / (count - 1)
        return y


def port_conv(channels, out, rngs, stride=1):
    return nnx.Conv(channels, out, (3, 3), strides=stride, padding=1, use_bias=False, rngs=rngs)


def port_norm(channels, rngs):
    return BatchNorm(channels, momentum=0.9, epsilon=1e-5, rngs=rngs)


class PortBlock(nnx.Module):
    def __init__(self, channels, out, stride, rngs):
        self.conv1, self.norm1 = port_conv(channels, out, rngs, stride), port_norm(out, rngs)
        self.conv2, self.norm2 = port_conv(out, out, rngs), port_norm(out, rngs)
        self.short = nnx.Conv(channels, out, (1, 1), strides=stride, rngs=rngs)

    def __call__(self, x):
        y = nnx.relu(self.norm1(self.conv1(x)))
        return nnx.relu(self.norm2(self.conv2(y)) + self.short(x))


class Port(nnx.Module):
    def __init__(self, rngs):
        self.block1, self.block2 = PortBlock(3, 6, 1, rngs), PortBlock(6, 8, 2, rngs)
        self.head = nnx.Linear(8, 4, rngs=rngs)

    def __call__(self, x):
        return self.head(self.block2(self.block1(x)).mean((1, 2)))


def loss(logits, labels):
    return optax.softmax_cross_entropy_with_integer_labels(logits, labels).mean()


def pair():
    rng = np.random.default_rng(0)
    batches = [(rng.normal(size=(6, 3, 8, 8)), rng.integers(0, 4, 6)) for _ in range(2)]
    sgd = optax.sgd(0.1, momentum=0.9, nesterov=True)
    tx = optax.chain(optax.add_decayed_weights(1e-2), sgd)
    return (
        compare.Torch(
            Original(),
            nn.CrossEntropyLoss(),
            lambda params: torch.optim.SGD(params, 0.1, momentum=0.9, nesterov=True, weight_decay=1e-2),
        ),
        compare.Flax(Port(nnx.Rngs(0)), loss, tx, batch=lambda x, y: (jnp.moveaxis(jnp.asarray(x), 1, -1), y)),
        batches,
        {"steps": 3},
    )


FAULTS = {
    "momentum of statistics": ("channels, momentum=0.9, eps", "channels, momentum=0.99, eps"),
    "epsilon": ("momentum=0.9, epsilon=1e-5,", "momentum=0.9, epsilon=1e-3,"),
    "padding": ("strides=stride, padding=1, use_bias", "strides=stride, use_bias"),
    "no nesterov": (", nesterov=True)\n    tx", ")\n    tx"),
    "momentum": ("optax.sgd(0.1, momentum=0.9,", "optax.sgd(0.1, momentum=0.95,"),
    "no weight decay": ("tx = optax.chain(optax.add_decayed_weights(1e-2), sgd)", "tx = sgd"),
    "weight decay": ("add_decayed_weights(1e-2)", "add_decayed_weights(1e-4)"),
    "learning rate": ("optax.sgd(0.1,", "optax.sgd(0.01,"),
    "reduction": ("(logits, labels).mean()", "(logits, labels).sum()"),
    "activation": ("y = nnx.relu(", "y = nnx.gelu("),
    "relu before the sum": (
        "nnx.relu(self.norm2(self.conv2(y)) + self.short(x))",
        "nnx.relu(self.norm2(self.conv2(y))) + self.short(x)",
    ),
}
