"""Activations, each of which may stand in the place of another."""

from collections.abc import Callable
from typing import Any

ACTIVATIONS = {
    "gelu": "exact GELU",
    "relu": "relu",
    "relu6": "relu6",
    "leaky_relu": "leaky_relu",
    "silu": "silu",
    "elu": "elu",
    "selu": "selu",
    "softplus": "softplus",
    "tanh": "tanh",
    "sigmoid": "sigmoid",
    "hardsigmoid": "hard sigmoid",
    "hardswish": "hard swish",
    "mish": "mish",
    "softsign": "softsign",
    "log_sigmoid": "log_sigmoid",
    "hardtanh": "hardtanh",
}
"""Functions of torch, and their names among those above at their defaults."""


def activations() -> dict[str, tuple[Callable[[Any], Any], str]]:
    """Give functions of one tensor, under the names of JAX: as torch computes it, and as JAX spells it."""
    import torch
    from torch.nn import functional

    return {
        "exact GELU": (functional.gelu, "jax.nn.gelu(x, approximate=False)"),
        "the tanh approximation of GELU": (
            lambda x: functional.gelu(x, approximate="tanh"),
            "jax.nn.gelu(x, approximate=True)",
        ),
        "x * sigmoid(1.702 x)": (lambda x: x * torch.sigmoid(1.702 * x), "x * jax.nn.sigmoid(1.702 * x)"),
        "relu": (functional.relu, "jax.nn.relu(x)"),
        "relu6": (functional.relu6, "jax.nn.relu6(x)"),
        "leaky_relu": (functional.leaky_relu, "jax.nn.leaky_relu(x, negative_slope=0.01)"),
        "silu": (functional.silu, "jax.nn.silu(x)"),
        "elu": (functional.elu, "jax.nn.elu(x)"),
        "selu": (functional.selu, "jax.nn.selu(x)"),
        "softplus": (functional.softplus, "jax.nn.softplus(x)"),
        "tanh": (torch.tanh, "jnp.tanh(x)"),
        "sigmoid": (torch.sigmoid, "jax.nn.sigmoid(x)"),
        "hard sigmoid": (functional.hardsigmoid, "jax.nn.hard_sigmoid(x)"),
        "hard swish": (functional.hardswish, "jax.nn.hard_swish(x)"),
        "clip(0.2 x + 0.5, 0, 1)": (lambda x: torch.clamp(0.2 * x + 0.5, 0, 1), "jnp.clip(0.2 * x + 0.5, 0, 1)"),
        "mish": (functional.mish, "jax.nn.mish(x)"),
        "softsign": (functional.softsign, "jax.nn.soft_sign(x)"),
        "log_sigmoid": (functional.logsigmoid, "jax.nn.log_sigmoid(x)"),
        "the identity": (lambda x: x, "x"),
        "hardtanh": (functional.hardtanh, "jax.nn.hard_tanh(x)"),
        "softplus without a threshold": (lambda x: torch.logaddexp(x, torch.zeros_like(x)), "jax.nn.softplus(x)"),
    }
