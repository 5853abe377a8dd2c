"""Dense layers in Equinox."""

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import optax
import torch

import compare


class Original(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.first, self.norm = torch.nn.Linear(5, 12), torch.nn.LayerNorm(12, eps=1e-6)
        self.second, self.third = torch.nn.Linear(12, 12), torch.nn.Linear(12, 2)

    def forward(self, x):
        x = torch.nn.functional.gelu(self.norm(self.first(x)))
        return self.third(torch.nn.functional.softsign(self.second(x)))


class Port(eqx.Module):
    first: eqx.nn.Linear
    norm: eqx.nn.LayerNorm
    second: eqx.nn.Linear
    third: eqx.nn.Linear

    def __init__(self, key):
        keys = jax.random.split(key, 3)
        self.first = eqx.nn.Linear(5, 12, key=keys[0])
        self.norm = eqx.nn.LayerNorm(12, eps=1e-6)
        self.second = eqx.nn.Linear(12, 12, key=keys[1])
        self.third = eqx.nn.Linear(12, 2, key=keys[2])

    def __call__(self, x):
        x = jax.nn.gelu(self.norm(self.first(x)), approximate=False)
        return self.third(jax.nn.soft_sign(self.second(x)))


def apply(model, x):
    return jax.vmap(model)(x)


def bce(logits, labels):
    return jnp.mean(optax.sigmoid_binary_cross_entropy(logits, labels))


def pair():
    rng = np.random.default_rng(0)
    batches = [(rng.normal(size=(9, 5)), rng.integers(0, 2, (9, 2)).astype(float)) for _ in range(2)]
    return (
        compare.Torch(
            Original(),
            torch.nn.BCEWithLogitsLoss(),
            lambda params: torch.optim.Adam(params, 2e-3, weight_decay=0.1),
        ),
        compare.Jax(apply, Port(jax.random.key(0)), bce, optax.chain(optax.add_decayed_weights(0.1), optax.adam(2e-3))),
        batches,
    )


FAULTS = {
    "epsilon": ("eqx.nn.LayerNorm(12, eps=1e-6)", "eqx.nn.LayerNorm(12)"),
    "gelu": (", approximate=False)", ")"),
    "soft sign": ("jax.nn.soft_sign(", "jnp.tanh("),
    "reduction": ("jnp.mean(optax", "jnp.sum(optax"),
    "decoupled decay": (
        "optax.chain(optax.add_decayed_weights(0.1), optax.adam(2e-3))",
        "optax.adamw(2e-3, weight_decay=0.1)",
    ),
    "weight decay": ("add_decayed_weights(0.1)", "add_decayed_weights(0.01)"),
    "learning rate": ("optax.adam(2e-3)", "optax.adam(2e-4)"),
}
