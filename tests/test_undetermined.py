"""A factor that the result does not tell, as before a norm whose bound is not reached any more, is no cause."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import torch
from flax import nnx
from torch import nn
from torch.nn import functional

import compare

BOUND = 5.0


class Original(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.front = nn.Linear(4, 6)

    def forward(self, x: torch.Tensor) -> Any:
        return functional.normalize(self.front(x), eps=BOUND)


class Port(nnx.Module):
    def __init__(self, rngs: nnx.Rngs) -> None:
        self.front = nnx.Linear(4, 6, rngs=rngs)

    def __call__(self, x: jax.Array) -> Any:
        y = self.front(x)
        return 48.0 * (y / jnp.maximum(jnp.linalg.norm(y, axis=-1, keepdims=True), 1e-12)) / 48.0


def square(output: Any, target: Any) -> Any:
    return ((output - target) ** 2).mean()


def test_a_bound_that_is_not_reached_is_the_cause_and_no_factor_before_it() -> None:
    torch.manual_seed(0)
    rng = np.random.default_rng(0)
    batches = [(rng.standard_normal((6, 4), np.float32), rng.standard_normal((6, 6), np.float32)) for _ in range(2)]
    divergence = compare.check(
        compare.Torch(Original(), square, lambda parameters: torch.optim.SGD(parameters, 0.1)),
        compare.Flax(Port(nnx.Rngs(0)), square, optax.sgd(0.1)),
        batches,
        steps=2,
    ).divergence
    assert divergence is not None
    assert divergence.cause is not None
    assert divergence.cause.name == "epsilon"
