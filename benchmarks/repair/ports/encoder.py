"""Two blocks of a transformer with layers made in a loop, in Flax's nnx."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import torch
from flax import nnx
from torch import nn

import compare

WIDTH, HEADS = 12, 3


class Block(nn.Module):
    def __init__(self):
        super().__init__()
        self.norm1, self.norm2 = nn.LayerNorm(WIDTH), nn.LayerNorm(WIDTH)
        self.qkv, self.out = nn.Linear(WIDTH, 3 * WIDTH), nn.Linear(WIDTH, WIDTH)
        self.up, self.down = nn.Linear(WIDTH, 2 * WIDTH), nn.Linear(2 * WIDTH, WIDTH)

    def forward(self, x):
        q, k, v = self.qkv(self.norm1(x)).unflatten(-1, (3, HEADS, -1)).permute(2, 0, 3, 1, 4)
        weights = (q @ k.transpose(-1, -2) * (WIDTH // HEADS) ** -0.5).softmax(-1)
        x = x + self.out((weights @ v).transpose(1, 2).flatten(2))
        return x + self.down(nn.functional.gelu(self.up(self.norm2(x))))


class Original(nn.Module):
    def __init__(self):
        super().__init__()
        self.embed = nn.Linear(4, WIDTH)
        self.blocks = nn.ModuleList(Block() for _ in range(2))
        self.norm, self.head = nn.LayerNorm(WIDTH), nn.Linear(WIDTH, 2)

    def forward(self, x):
        x = self.embed(x)
        for block in self.blocks:
            x = block(x)
        return self.head(self.norm(x).mean(1))


class PortBlock(nnx.Module):
    def __init__(self, rngs):
        self.norm1 = nnx.LayerNorm(WIDTH, epsilon=1e-5, rngs=rngs)
        self.norm2 = nnx.LayerNorm(WIDTH, epsilon=1e-5, rngs=rngs)
        self.qkv = nnx.Linear(WIDTH, 3 * WIDTH, rngs=rngs)
        self.out = nnx.Linear(WIDTH, WIDTH, rngs=rngs)
        self.up = nnx.Linear(WIDTH, 2 * WIDTH, rngs=rngs)
        self.down = nnx.Linear(2 * WIDTH, WIDTH, rngs=rngs)

    def __call__(self, x):
        batch, length, _ = x.shape
        qkv = self.qkv(self.norm1(x)).reshape(batch, length, 3, HEADS, -1)
        q, k, v = jnp.moveaxis(qkv, 2, 0).swapaxes(2, 3)
        scores = q @ k.swapaxes(-1, -2) * (WIDTH // HEADS) ** -0.5
        weights = jax.nn.softmax(scores, axis=-1)
        x = x + self.out((weights @ v).swapaxes(1, 2).reshape(batch, length, -1))
        return x + self.down(jax.nn.gelu(self.up(self.norm2(x)), approximate=False))


class Port(nnx.Module):
    def __init__(self, rngs):
        self.embed = nnx.Linear(4, WIDTH, rngs=rngs)
        self.blocks = nnx.List([PortBlock(rngs) for _ in range(2)])
        self.norm = nnx.LayerNorm(WIDTH, epsilon=1e-5, rngs=rngs)
        self.head = nnx.Linear(WIDTH, 2, rngs=rngs)

    def __call__(self, x):
        x = self.embed(x)
        for block in self.blocks:
            x = block(x)
        return self.head(self.norm(x).mean(1))


def mse(output, target):
    return jnp.mean((output - target) ** 2)


def pair():
    rng = np.random.default_rng(0)
    batches = [(rng.normal(size=(5, 6, 4)), rng.normal(size=(5, 2))) for _ in range(2)]
    tx = optax.adam(optax.cosine_decay_schedule(1e-2, 8), b1=0.8)
    return {
        "torch": compare.Torch(Original(), nn.MSELoss(), scheduled),
        "jax": compare.Flax(Port(nnx.Rngs(0)), mse, tx),
        "batches": batches,
        "steps": 4,
    }


def scheduled(params):
    optimizer = torch.optim.Adam(params, 1e-2, betas=(0.8, 0.999))
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, 8)
    optimizer.register_step_post_hook(lambda *_: schedule.step())
    return optimizer


FAULTS = {
    "norm1 epsilon": ("self.norm1 = nnx.LayerNorm(WIDTH, epsilon=1e-5, ", "self.norm1 = nnx.LayerNorm(WIDTH, "),
    "norm2 epsilon": ("self.norm2 = nnx.LayerNorm(WIDTH, epsilon=1e-5, ", "self.norm2 = nnx.LayerNorm(WIDTH, "),
    "last epsilon": ("self.norm = nnx.LayerNorm(WIDTH, epsilon=1e-5, ", "self.norm = nnx.LayerNorm(WIDTH, "),
    "gelu": ("(self.norm2(x)), approximate=False)", "(self.norm2(x)))"),
    "softmax axis": ("softmax(scores, axis=-1)", "softmax(scores, axis=-2)"),
    "attention scale": ("swapaxes(-1, -2) * (WIDTH // HEADS) ** -0.5", "swapaxes(-1, -2) * WIDTH**-0.5"),
    "residual": ("x = x + self.out((weights @ v).swap", "x = self.out((weights @ v).swap"),
    "schedule": ("optax.cosine_decay_schedule(1e-2, 8)", "1e-2"),
    "b1": (", b1=0.8)", ")"),
    "reduction": ("jnp.mean((output", "jnp.sum((output"),
}
