"""Rows of length 1: how a port keeps from dividing by zero shows in float64, and has its cause."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
from flax import nnx
from torch import nn

import compare
from compare.diagnosis.related import farthest

Function = Any  # from an array to an array


def lengths(x: jax.Array) -> jax.Array:
    return jnp.linalg.norm(x, axis=-1, keepdims=True)


def bounded(x: jax.Array) -> jax.Array:
    return x / jnp.maximum(lengths(x), 1e-12)


def added(x: jax.Array) -> jax.Array:
    return x / (lengths(x) + 1e-8)


def within(x: jax.Array) -> jax.Array:
    return x * jax.lax.rsqrt(jnp.sum(x**2, -1, keepdims=True) + 1e-6)


class Original(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.project, self.scale = nn.Linear(6, 4), nn.Parameter(torch.tensor(2.0))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return nn.functional.normalize(self.project(x), dim=-1) * self.scale.exp()


class Port(nnx.Module):
    def __init__(self, normalize: Function) -> None:
        self.project, self.scale = nnx.Linear(6, 4, rngs=nnx.Rngs(0)), nnx.Param(jnp.ones(()))
        self.normalize = normalize

    def __call__(self, x: jax.Array) -> jax.Array:
        y = self.normalize(self.project(x))
        return y * jnp.exp(self.scale[...])


def checked(normalize: Function) -> compare.Report:
    torch.manual_seed(0)
    batches: list[Any] = [(np.random.default_rng(0).normal(size=(5, 6)), None)]
    return compare.check(compare.Torch(Original()), compare.Flax(Port(normalize)), batches, device="cpu")


def test_the_bound_of_torch_matches() -> None:
    assert checked(bounded).verdict == "match"


@pytest.mark.parametrize(
    ("normalize", "says"),
    [
        (added, "divides by the norm + 1e-08 and not by the larger of norm and eps"),
        (within, "divides by the square root of the sum of squares + 1e-06 and not by the larger of norm and eps"),
    ],
)
def test_an_epsilon_that_is_added_is_a_cause(normalize: Function, says: str) -> None:
    report = checked(normalize)
    assert report.divergence is not None
    assert report.divergence.cause is not None
    assert says in report.divergence.cause.explanation
    assert not report.others
    # The value is computed by lines of two functions, and the fault is not in the last one.
    assert "return y * jnp.exp(self.scale[...])" in str(report)
    assert f"test_normalized.py:{normalize.__code__.co_firstlineno + 1}  " in str(report)


def test_numbers_that_differ_are_printed_so() -> None:
    near, far = np.array([1.0, 7.0901512]), np.array([1.0, 7.0901514])
    assert farthest(near, far) == "largest difference at [1]: torch has 7.0901512, the JAX side has 7.0901514"
    assert farthest(np.array(0.5), np.array(0.25)) == "torch has 0.5, the JAX side has 0.25"
