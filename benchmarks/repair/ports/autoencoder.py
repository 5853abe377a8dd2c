"""Convolutions down and transposed convolutions up, in Flax's nnx."""

import jax
import numpy as np
import optax
import torch
from flax import nnx
from torch import nn

import compare


class Original(nn.Module):
    def __init__(self):
        super().__init__()
        self.down1, self.norm1 = nn.Conv2d(2, 6, 3, 2, padding=1), nn.LayerNorm(6)
        self.down2 = nn.Conv2d(6, 8, 3, padding=1, padding_mode="circular")
        self.up = nn.ConvTranspose2d(8, 4, 3, 2, padding=1, output_padding=1)
        self.out = nn.Conv2d(4, 2, 1)

    def forward(self, x):
        x = torch.relu(self.norm1(self.down1(x).movedim(1, -1)).movedim(-1, 1))
        x = nn.functional.hardswish(self.down2(nn.functional.avg_pool2d(x, 3, 1, 1)))
        return self.out(nn.functional.mish(self.up(x)))


class Port(nnx.Module):
    def __init__(self, rngs):
        self.down1 = nnx.Conv(2, 6, (3, 3), strides=(2, 2), padding=1, rngs=rngs)
        self.norm1 = nnx.LayerNorm(6, epsilon=1e-5, rngs=rngs)
        self.down2 = nnx.Conv(6, 8, (3, 3), padding="CIRCULAR", rngs=rngs)
        self.up = nnx.ConvTranspose(8, 4, (3, 3), (2, 2), padding=((1, 2), (1, 2)), transpose_kernel=True, rngs=rngs)
        self.out = nnx.Conv(4, 2, (1, 1), rngs=rngs)

    def __call__(self, x):
        x = nnx.relu(self.norm1(self.down1(x)))
        x = nnx.avg_pool(x, (3, 3), padding=((1, 1), (1, 1)))
        x = jax.nn.hard_swish(self.down2(x))
        return self.out(jax.nn.mish(self.up(x)))


def l1(output, target):
    return abs(output - target).mean()


def pair():
    rng = np.random.default_rng(0)
    images = [rng.normal(size=(3, 2, 8, 8)) for _ in range(2)]
    return {
        "torch": compare.Torch(Original(), nn.L1Loss(), lambda params: torch.optim.RMSprop(params, 1e-3)),
        "jax": compare.Flax(
            Port(nnx.Rngs(0)), l1, optax.rmsprop(1e-3, decay=0.99, eps_in_sqrt=False), batch=channels_last
        ),
        "batches": [(image, image) for image in images],
    }


def channels_last(x, y):
    return np.moveaxis(x, 1, -1), np.moveaxis(y, 1, -1)


FAULTS = {
    "conv padding": ("strides=(2, 2), padding=1, rngs", "strides=(2, 2), rngs"),
    "epsilon": ("nnx.LayerNorm(6, epsilon=1e-5, ", "nnx.LayerNorm(6, "),
    "transposed padding": ("padding=((1, 2), (1, 2)), transpose", 'padding="SAME", transpose'),
    "pool padding": ("(3, 3), padding=((1, 1), (1, 1)))", '(3, 3), padding="SAME", count_include_pad=False)'),
    "hard swish": ("jax.nn.hard_swish(", "jax.nn.silu("),
    "mish": ("jax.nn.mish(", "jax.nn.gelu("),
    "decay": ("decay=0.99, ", ""),
    "epsilon in the root": (", eps_in_sqrt=False", ""),
    "loss": ("abs(output - target).mean()", "optax.l2_loss(output, target).mean()"),
    "reduction": ("abs(output - target).mean()", "abs(output - target).sum()"),
}
