"""The gradient where h == 0 exactly is part of the algorithm, and differs from cell to cell."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch

import compare
import jaxnet
from compare.notebook.comparison import VARIANTS

CLAMP = "jnp.where" if tuple(map(int, torch.__version__.split(".")[:2])) < (2, 14) else "jax.nn.relu"
"""What has the gradient of clamp(min=0) at 0. The notebook's port follows PyTorch up to 2.13."""


def with_ties(variant: str) -> compare.Problem:
    problem = compare.draw(5, biases=variant in ("module", "adam"))
    arrays = {name: np.array(value) for name, value in vars(problem).items() if value is not None}
    arrays["w1"][:, ::7] = 0
    if "b1" in arrays:
        arrays["b1"][::7] = 0
    return compare.Problem(**arrays)


@pytest.mark.parametrize("variant", VARIANTS)
def test_ties_match_gradients_included(variant: str) -> None:
    report = compare.notebook.run(variant, problem=with_ties(variant), steps=20, device="cpu")
    if variant == "autograd" and CLAMP == "jax.nn.relu":
        assert report.divergence is not None
        assert report.divergence.stage == "gradient"
        return
    report.raise_on_mismatch()
    gradient = next(quantity for quantity in report.quantities if quantity.stage == "gradient")
    assert gradient.error64[0] < 1e-13
    assert max(report.loss.error64) <= 1e-12


ACTIVATIONS: dict[str, Callable[[Any], Any]] = {
    "jnp.maximum": lambda h: jnp.maximum(h, 0),
    "jax.nn.relu": jax.nn.relu,
    "jnp.where": lambda h: jnp.where(h < 0, 0, h),
}


@pytest.mark.parametrize(
    ("variant", "right"), [("autograd", CLAMP), ("module", "jax.nn.relu"), ("adam", "jax.nn.relu")]
)
@pytest.mark.parametrize("activation", ACTIVATIONS)
def test_another_activation_is_caught_at_a_tie(
    variant: str, right: str, activation: str, replaced_loss: Callable[..., Any]
) -> None:
    relu = ACTIVATIONS[activation]

    def loss_fn(weights: Any, x: jax.Array, y: jax.Array) -> jax.Array:
        if variant == "autograd":
            return jnp.square(relu(x @ weights["w1"].T) @ weights["w2"].T - y).sum()
        first, _, second = weights.layers
        return jnp.square(second(relu(first(x))) - y).sum()

    program = replaced_loss(getattr(jaxnet, variant), loss_fn)
    tied = compare.notebook.run(variant, problem=with_ties(variant), jax=program, steps=3, device="cpu")
    assert tied.ok == (activation == right)
    if not tied.ok:
        assert tied.divergence is not None
        assert (tied.divergence.step, tied.divergence.stage) == (0, "gradient")
    # Away from ties, they are the same function.
    compare.notebook.run(variant, jax=program, steps=3, device="cpu").raise_on_mismatch()
