"""What the JAX side may compute in place of a function that is neither a layer nor a loss."""

from typing import Any

from compare.diagnosis.conventions.base import DOCS, JAX, Alternative
from compare.diagnosis.rewriting import Call, Rewrite


def _unbiased(unbiased: bool) -> Rewrite:
    def compute(call: Call) -> Any:
        keep = {k: v for k, v in _given(call).items() if k in ("dim", "keepdim")}
        return getattr(call.input, call.name)(**keep, correction=int(unbiased))

    return compute


def _given(call: Call) -> dict[str, Any]:
    """Give the arguments of a call by name, as far as they were named."""
    named = {k: v for k, v in call.arguments.items() if k not in ("tensor", "input", "args", "kwargs")}
    more = call.arguments.get("args", ())
    if more and isinstance(more[0], int | tuple | list) and not isinstance(more[0], bool):
        named["dim"] = more[0]
    return named | call.arguments.get("kwargs", {})


def _interleaved_mean_median(call: Call) -> Any:
    import torch

    given = _given(call)
    if given.get("dim") is None:
        return torch.quantile(call.input, 0.5)
    values = torch.quantile(call.input, 0.5, dim=given["dim"], keepdim=given.get("keepdim", False))
    return torch.return_types.median((values, call.run().indices))


def _remainder_of(call: Call) -> Any:
    import torch

    other = call.arguments["other"]
    return torch.fmod(call.input, other) if call.name in ("remainder", "mod") else torch.remainder(call.input, other)


def _half_away(call: Call) -> Any:
    import torch

    return torch.sign(call.input) * torch.floor(call.input.abs() + 0.5)


def _other_reduction(call: Call) -> Any:
    return getattr(call.input, {"mean": "sum", "sum": "mean"}[call.name])(**_given(call))


FUNCTIONS = (
    Alternative(
        "mean or sum",
        ("mean", "sum"),
        _other_reduction,
        "takes the sum in place of the mean, or the mean in place of the sum",
        "jnp.{function}(...), as torch",
        f"{DOCS}torch.mean.html",
    ),
    Alternative(
        "variance by n or n - 1",
        ("var", "std"),
        _unbiased(False),
        "divides by n, as jnp.var does",
        "jnp.var(..., ddof=1), jnp.std(..., ddof=1)",
        f"{JAX}jax.numpy.var.html",
    ),
    Alternative(
        "variance by n or n - 1",
        ("var", "std"),
        _unbiased(True),
        "divides by n - 1",
        "jnp.var(..., ddof=0), jnp.std(..., ddof=0)",
        f"{JAX}jax.numpy.var.html",
    ),
    Alternative(
        "median of an even count",
        ("median",),
        _interleaved_mean_median,
        "takes the mean of the two middle values",
        "take the lower one: jnp.sort(x, axis)[(n - 1) // 2]",
        f"{DOCS}torch.median.html",
    ),
    Alternative(
        "sign of a remainder",
        ("remainder", "mod", "fmod"),
        _remainder_of,
        "takes the remainder's sign from the other operand",
        "jnp.fmod has the dividend's sign, jnp.remainder and % the divisor's",
        f"{JAX}jax.numpy.fmod.html",
    ),
    Alternative(
        "rounding of halves",
        ("round",),
        _half_away,
        "rounds halves away from zero",
        "jnp.round(x), which rounds halves to even as torch does",
        f"{DOCS}torch.round.html",
    ),
)
