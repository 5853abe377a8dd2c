"""A network of dense layers, in Linen."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import torch
from flax import linen as nn

import compare


class Original(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.dense1, self.norm1 = torch.nn.Linear(6, 16), torch.nn.LayerNorm(16)
        self.dense2, self.norm2 = torch.nn.Linear(16, 16), torch.nn.LayerNorm(16, eps=1e-3)
        self.dense3 = torch.nn.Linear(16, 3)

    def forward(self, x):
        x = torch.nn.functional.elu(self.norm1(self.dense1(x)))
        x = torch.nn.functional.softplus(self.norm2(self.dense2(x)))
        return self.dense3(x) * 0.5


class Port(nn.Module):
    @nn.compact
    def __call__(self, x):
        x = nn.Dense(16, name="dense1")(x)
        x = nn.elu(nn.LayerNorm(epsilon=1e-5, name="norm1")(x))
        x = nn.Dense(16, name="dense2")(x)
        x = nn.softplus(nn.LayerNorm(epsilon=1e-3, name="norm2")(x))
        return nn.Dense(3, name="dense3")(x) * 0.5


def huber(output, target):
    return optax.huber_loss(output, target, delta=0.7).mean()


def pair():
    rng = np.random.default_rng(0)
    batches = [(rng.normal(size=(16, 6)), 2 * rng.normal(size=(16, 3))) for _ in range(3)]
    module = Port()
    variables = module.init(jax.random.key(0), jnp.ones((1, 6)))
    original = compare.Torch(
        Original(), torch.nn.HuberLoss(delta=0.7), lambda params: torch.optim.Adam(params, 3e-3, eps=1e-6)
    )
    port = compare.Flax((module, variables), huber, optax.adam(3e-3, eps=1e-6))
    return original, port, batches


FAULTS = {
    "norm1 epsilon": ("epsilon=1e-5, ", ""),
    "norm2 epsilon": ("epsilon=1e-3, ", "epsilon=1e-5, "),
    "elu": ("nn.elu(", "nn.selu("),
    "softplus": ("nn.softplus(", "nn.relu("),
    "factor": ('name="dense3")(x) * 0.5', 'name="dense3")(x) * 0.25'),
    "delta": ("target, delta=0.7)", "target, delta=1.0)"),
    "reduction": (").mean()", ").sum()"),
    "eps": ("optax.adam(3e-3, eps=1e-6)", "optax.adam(3e-3)"),
    "learning rate": ("optax.adam(3e-3", "optax.adam(1e-3"),
}
