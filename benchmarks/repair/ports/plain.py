"""Plain functions of arrays."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import torch
from torch import nn

import compare


class Original(nn.Module):
    def __init__(self):
        super().__init__()
        self.a, self.b, self.c = nn.Linear(4, 10), nn.Linear(10, 10), nn.Linear(10, 3)

    def forward(self, x):
        x = nn.functional.selu(self.a(x))
        x = nn.functional.leaky_relu(self.b(x), 0.3)
        return self.c(x).softmax(1)


def init():
    rng = np.random.default_rng(1)
    sizes = {"a": (4, 10), "b": (10, 10), "c": (10, 3)}
    return {name: {"w": rng.normal(size=size), "b": rng.normal(size=size[1])} for name, size in sizes.items()}


def dense(params, x):
    return x @ params["w"] + params["b"]


def apply(params, x):
    x = jax.nn.selu(dense(params["a"], x))
    x = jax.nn.leaky_relu(dense(params["b"], x), 0.3)
    return jax.nn.softmax(dense(params["c"], x), axis=1)


def smooth_l1(output, target):
    return (optax.huber_loss(output, target, delta=0.3) / 0.3).mean()


def pair():
    rng = np.random.default_rng(0)
    batches = [(rng.normal(size=(12, 4)), rng.random(size=(12, 3))) for _ in range(2)]
    params = jax.tree.map(jnp.float32, init())
    original = compare.Torch(
        Original(), nn.SmoothL1Loss(beta=0.3), lambda params: torch.optim.Adadelta(params, 0.5, rho=0.95)
    )
    optimizer = optax.adadelta(0.5, rho=0.95, eps=1e-6)
    return original, compare.Jax(apply, params, smooth_l1, optimizer), batches


FAULTS = {
    "selu": ("jax.nn.selu(", "jax.nn.elu("),
    "slope": ('nn.leaky_relu(dense(params["b"], x), 0.3)', 'nn.leaky_relu(dense(params["b"], x))'),
    "axis": (", axis=1)", ", axis=0)"),
    "loss beta": ("(optax.huber_loss(output, target, delta=0.3) / 0.3)", "optax.huber_loss(output, target)"),
    "reduction": (" / 0.3).mean()", " / 0.3).sum()"),
    "learning rate": ("optax.adadelta(0.5,", "optax.adadelta(0.05,"),
    "rho": ("rho=0.95, ", ""),
}
