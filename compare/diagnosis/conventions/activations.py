"""Activations, as torch computes them and as JAX spells them: GELU and its tanh approximation, relu, silu and so on.

Each may be in the place of another: `diagnosis.counterfactuals` tries them all.
"""

from collections.abc import Callable
from typing import Any

from compare.verdict.fix import Code

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
    "log_sigmoid": "log_sigmoid(x) = -softplus(-x)",
    "hardtanh": "hardtanh",
}
"""Functions of torch, and their names among those below at their defaults."""


def _jax(name: str, **keywords: Any) -> Code:
    return Code(name, ("x",), keywords)


def activations() -> dict[str, tuple[Callable[[Any], Any], Code]]:
    """Return functions of one tensor, under the names of JAX: as torch computes it, and as JAX spells it."""
    import torch
    from torch.nn import functional

    # Quick GELU of CLIP (Hendrycks and Gimpel, "Gaussian Error Linear Units", 2016), and Keras's old hard sigmoid.
    sigmoid, clip = Code("jax.nn.sigmoid", ("1.702 * x",), around="x * {}"), ("0.2 * x + 0.5", "0", "1")
    return {
        "exact GELU": (functional.gelu, _jax("jax.nn.gelu", approximate=False)),
        "the tanh approximation of GELU": (
            lambda x: functional.gelu(x, approximate="tanh"),
            _jax("jax.nn.gelu", approximate=True),
        ),
        "x * sigmoid(1.702 x)": (lambda x: x * torch.sigmoid(1.702 * x), sigmoid),
        "relu": (functional.relu, _jax("jax.nn.relu")),
        "relu6": (functional.relu6, _jax("jax.nn.relu6")),
        "leaky_relu": (functional.leaky_relu, _jax("jax.nn.leaky_relu", negative_slope=0.01)),
        "silu": (functional.silu, _jax("jax.nn.silu")),
        "elu": (functional.elu, _jax("jax.nn.elu")),
        "selu": (functional.selu, _jax("jax.nn.selu")),
        "softplus": (functional.softplus, _jax("jax.nn.softplus")),
        "tanh": (torch.tanh, _jax("jnp.tanh")),
        "sigmoid": (torch.sigmoid, _jax("jax.nn.sigmoid")),
        "hard sigmoid": (functional.hardsigmoid, _jax("jax.nn.hard_sigmoid")),
        "hard swish": (functional.hardswish, _jax("jax.nn.hard_swish")),
        "clip(0.2 x + 0.5, 0, 1)": (lambda x: torch.clamp(0.2 * x + 0.5, 0, 1), Code("jnp.clip", clip)),
        "mish": (functional.mish, _jax("jax.nn.mish")),
        "softsign": (functional.softsign, _jax("jax.nn.soft_sign")),
        # A common mistake in the loss of a generator: -softplus(d(fake)) in place of softplus(-d(fake)).
        "log_sigmoid(x) = -softplus(-x)": (functional.logsigmoid, _jax("jax.nn.log_sigmoid")),
        "the identity": (lambda x: x, Code(around="x")),
        "hardtanh": (functional.hardtanh, _jax("jax.nn.hard_tanh")),
        # torch.nn.functional.softplus returns x itself above 20, where log(1 + exp(-x)) is 2e-9: visible in
        # float64 alone.
        "softplus without a threshold": (lambda x: torch.logaddexp(x, torch.zeros_like(x)), _jax("jax.nn.softplus")),
    }
