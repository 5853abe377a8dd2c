"""Numbers among the arguments of functions."""

import math
from collections.abc import Callable

from compare.diagnosis.conventions.base import DOCS, FLAX, JAX, NORMS, Setting


def _argument(name: str) -> Callable[[float], str]:
    return lambda value: f"{{}}(..., {name}={value:g})"


SETTINGS = (
    Setting("epsilon", NORMS, "eps", _argument("epsilon"), f"{FLAX}normalization.html"),
    Setting(
        "momentum", ("batch_norm",), "momentum", lambda v: f"{{}}(..., momentum={1 - v:g})", f"{FLAX}normalization.html"
    ),
    Setting("slope", ("leaky_relu",), "negative_slope", _argument("negative_slope"), f"{JAX}jax.nn.leaky_relu.html"),
    Setting("alpha", ("elu", "celu"), "alpha", _argument("alpha"), f"{JAX}jax.nn.elu.html"),
    Setting(
        "beta", ("softplus",), "beta", lambda v: f"jax.nn.softplus({v:g} * x) / {v:g}", f"{JAX}jax.nn.softplus.html"
    ),
    Setting(
        "attention scale",
        ("scaled_dot_product_attention",),
        "scale",
        lambda v: f"{{}}: scale the scores by {v:g} = 1/sqrt(head_dim), once",
        f"{DOCS}torch.nn.functional.scaled_dot_product_attention.html",
        lambda call: 1 / math.sqrt(call.input.shape[-1]),
    ),
    Setting("dropout rate", ("dropout",), "p", _argument("rate"), f"{DOCS}torch.nn.Dropout.html"),
    Setting(
        "label smoothing",
        ("cross_entropy",),
        "label_smoothing",
        lambda v: f"optax.smooth_labels(labels, alpha={v:g}) before the cross-entropy",
        f"{DOCS}torch.nn.CrossEntropyLoss.html",
    ),
    Setting(
        "beta",
        ("smooth_l1_loss",),
        "beta",
        lambda v: f"optax.huber_loss(output, target, delta={v:g}) / {v:g}",
        f"{DOCS}torch.nn.SmoothL1Loss.html",
    ),
    Setting("delta", ("huber_loss",), "delta", _argument("delta"), f"{DOCS}torch.nn.HuberLoss.html"),
    Setting(
        "epsilon",
        ("normalize",),
        "eps",
        lambda v: f"x / jnp.maximum(jnp.linalg.norm(x, axis=..., keepdims=True), {v:g})",
        f"{DOCS}torch.nn.functional.normalize.html",
    ),
    Setting("epsilon", ("cosine_similarity",), "eps", _argument("epsilon"), f"{DOCS}torch.nn.CosineSimilarity.html"),
    Setting(
        "constant",
        ("mul", "rmul", "truediv", "div", "add", "radd", "sub", "pow"),
        "other",
        lambda v: f"{v:g} is torch's constant there",
        f"{DOCS}torch.mul.html",
    ),
)
