"""An operation that is said to be added is one that the JAX side's program has."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
from flax import nnx

import compare

POSITIONS, WIDTH = 6, 8
FREQUENCIES = 100.0 ** (-np.arange(0, WIDTH, 2) / WIDTH)


class Turned(torch.nn.Module):
    frequencies: torch.Tensor

    def __init__(self) -> None:
        super().__init__()
        self.first, self.last = torch.nn.Linear(5, WIDTH), torch.nn.Linear(WIDTH, 3)
        self.register_buffer("frequencies", torch.from_numpy(FREQUENCIES), persistent=False)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        angles = torch.arange(POSITIONS, device=x.device).to(x)[:, None] * self.frequencies
        a, b = self.first(x).chunk(2, -1)
        turned = [a * angles.cos() - b * angles.sin(), b * angles.cos() + a * angles.sin()]
        return self.last(torch.cat(turned, -1))


class TurnedPort(nnx.Module):
    def __init__(self, frequencies: Any) -> None:
        rngs = nnx.Rngs(0)
        self.frequencies = frequencies
        self.first, self.last = nnx.Linear(5, WIDTH, rngs=rngs), nnx.Linear(WIDTH, 3, rngs=rngs)

    def __call__(self, x: jax.Array) -> jax.Array:
        angles = jnp.arange(POSITIONS)[:, None] * self.frequencies(jnp.arange(0, WIDTH, 2))
        a, b = jnp.split(self.first(x), 2, -1)
        turned = [a * jnp.cos(angles) - b * jnp.sin(angles), b * jnp.cos(angles) + a * jnp.sin(angles)]
        return self.last(jnp.concatenate(turned, -1))


@pytest.mark.parametrize(
    ("frequencies", "added"),
    [
        (lambda i: 100.0 ** (-i / (2 * WIDTH)), False),
        (lambda i: jnp.sqrt(100.0 ** (-i / WIDTH)), True),
        (lambda i: (100.0 ** (-i / WIDTH)) ** 0.5, True),
    ],
    ids=["another divisor", "sqrt", "power"],
)
def test_a_root_is_added_only_where_there_is_one(frequencies: Any, added: bool) -> None:
    torch.manual_seed(0)
    rng = np.random.default_rng(0)
    batches = [rng.standard_normal((2, POSITIONS, 5)) for _ in range(2)]
    report = compare.check(
        compare.Torch(Turned()), compare.Flax(TurnedPort(frequencies)), batches, device="cpu", quick=True
    )
    assert report.divergence is not None
    assert report.divergence.cause is not None
    assert ("a square root" in report.divergence.cause.explanation) == added
