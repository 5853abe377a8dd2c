"""Other gradients that the JAX side may have where its values are the same."""

from typing import Any

from compare.diagnosis.conventions.base import JAX, Alternative
from compare.diagnosis.rewriting import Call, Rewrite


def _at_tie(slope: float) -> Rewrite:
    """Give x a gradient of its own where the function has a kink: at 0, or at its bounds."""

    def compute(call: Call) -> Any:
        import torch

        x, y = call.input, call.run()
        if call.name in ("clamp", "clip", "hardtanh", "clamp_min", "clamp_max"):
            low, high = (call.arguments.get(name) for name in _BOUNDS[call.name])
            tie = torch.zeros_like(x, dtype=torch.bool)
            for bound in (low, high):
                if bound is not None:
                    tie |= x == bound
        elif call.name in ("max", "maximum", "min", "minimum"):
            return y
        else:
            tie = x == 0
        # Zero in value, and `slope` in place of the function's own derivative where there is a tie.
        return torch.where(tie, y.detach() + slope * (x - x.detach()), y)

    return compute


_BOUNDS = {
    "clamp": ("min", "max"),
    "clip": ("min", "max"),
    "hardtanh": ("min_val", "max_val"),
    "clamp_min": ("min", "?"),
    "clamp_max": ("?", "max"),
}

_KINKED = ("relu", "leaky_relu", "abs", "clamp", "clip", "clamp_min", "clamp_max", "hardtanh", "relu6", "elu")


def _attached(call: Call) -> Any:
    return call.input


def _stopped(call: Call) -> Any:
    given = call.run()
    return given.detach() if hasattr(given, "detach") else given


GRADIENTS = (
    *(
        Alternative(
            "gradient at a tie",
            _KINKED,
            _at_tie(slope),
            f"has a gradient of {slope:g} there",
            "write the JAX side so that its gradient at the tie is torch's: jax.nn.relu has 0 at 0, "
            "jnp.where(x < 0, 0, x) 1, jnp.maximum and jnp.clip a half, jnp.abs 1",
            "https://docs.jax.dev/en/latest/jax.nn.html",
            gradient=True,
        )
        for slope in (0.5, 1.0, 0.0)
    ),
    Alternative(
        "stopped gradient",
        ("sigmoid", "softmax", "tanh", "relu", "gelu", "silu", "exp", "log", "matmul", "bmm", "mean", "sum", "max"),
        _stopped,
        "stops the gradient there",
        "leave out jax.lax.stop_gradient around {function}, where torch has no detach()",
        f"{JAX}jax.lax.stop_gradient.html",
        gradient=True,
    ),
    Alternative(
        "stopped gradient",
        ("detach",),
        _attached,
        "lets the gradient through",
        "jax.lax.stop_gradient where torch has detach()",
        f"{JAX}jax.lax.stop_gradient.html",
        gradient=True,
    ),
)
