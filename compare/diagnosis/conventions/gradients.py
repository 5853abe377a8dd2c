"""Other gradients that the JAX side may have where its values are the same.

At a kink every number between the two one-sided derivatives is a subgradient, and the frameworks choose differently:
torch.relu has 0 at 0 and jnp.maximum(x, 0) has 1/2; torch.abs has 0 and jnp.where(x >= 0, x, -x) has 1.
"""

from typing import Any

from compare.diagnosis.conventions.base import JAX, Alternative, says, writes
from compare.diagnosis.place import Place
from compare.diagnosis.rewriting import Call, Rewrite
from compare.verdict.fix import Code, source


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


def _at_torchs_tie(call: Call, place: Place) -> Code | None:
    """Write the function so that its gradient at the tie is torch's."""
    del place
    match call.name:
        case "relu":
            return Code("jax.nn.relu", ("x",))
        case "leaky_relu":
            return Code("jnp.where", ("x > 0", "x", f"{source(call['negative_slope'])} * x"))
        case "abs":
            return Code("jnp.sign", ("x",), around="x * {}")
        case "relu6":
            return _flat_outside(0, 6)
        case "hardtanh":
            return _flat_outside(call["min_val"], call["max_val"])
        case "clamp" | "clip" | "clamp_min" | "clamp_max":
            low, high = (call.arguments.get(name) for name in _BOUNDS[call.name])
            inner = "x" if high is None else f"jnp.where(x > {source(high)}, {source(high)}, x)"
            return Code(around=inner if low is None else f"jnp.where(x < {source(low)}, {source(low)}, {inner})")
    return None


def _flat_outside(low: float, high: float) -> Code:
    """Write a clipping whose gradient at the bounds is 0."""
    bounds = source(low), source(high)
    clipped = f"jax.lax.stop_gradient(jnp.clip(x, {bounds[0]}, {bounds[1]}))"
    return Code("jnp.where", (f"(x > {bounds[0]}) & (x < {bounds[1]})", "x", clipped))


def _padding_trained(call: Call) -> Any:
    return call.run(padding_idx=None)


def _padding_stopped(call: Call, place: Place) -> Code:
    """Write the lookup so that the row of the padding index has no gradient."""
    del place
    padding = call["padding_idx"] % call["weight"].shape[0]  # torch counts a negative one from the end
    return Code("jnp.where", (f"(x == {padding})[..., None]", "jax.lax.stop_gradient(y)", "y"))


def _attached(call: Call) -> Any:
    return call.input


def _stopped(call: Call) -> Any:
    given = call.run()
    return given.detach() if hasattr(given, "detach") else given


GRADIENTS = (
    *(
        Alternative(
            name="gradient at a tie",
            functions=_KINKED,
            compute=_at_tie(slope),
            jax_does=f"has a gradient of {slope:g} there",
            fix=_at_torchs_tie,
            source="https://docs.jax.dev/en/latest/jax.nn.html",
            gradient=True,
            may_be_torchs=slope != 0.5,  # torch's functions have 0 or 1 there
        )
        for slope in (0.5, 1.0, 0.0)
    ),
    Alternative(
        name="stopped gradient",
        functions=(
            *(
                "sigmoid",
                "softmax",
                "tanh",
                "relu",
                "gelu",
                "silu",
                "exp",
                "log",
                "matmul",
                "bmm",
                "mean",
                "sum",
                "max",
            ),
        ),
        compute=_stopped,
        jax_does="stops the gradient there",
        fix=says("leave out jax.lax.stop_gradient there: torch has no detach()"),
        source=f"{JAX}jax.lax.stop_gradient.html",
        gradient=True,
    ),
    Alternative(
        name="trained padding row",
        functions=("embedding",),
        compute=_padding_trained,
        jax_does="trains the row of the padding index, which torch's padding_idx keeps as it is",
        fix=_padding_stopped,
        source="https://docs.pytorch.org/docs/stable/generated/torch.nn.Embedding.html",
        applies=lambda call: call["padding_idx"] is not None,
        gradient=True,
    ),
    Alternative(
        name="stopped gradient",
        functions=("detach",),
        compute=_attached,
        jax_does="lets the gradient through, where torch has detach()",
        fix=writes("jax.lax.stop_gradient", "x"),
        source=f"{JAX}jax.lax.stop_gradient.html",
        gradient=True,
    ),
)
