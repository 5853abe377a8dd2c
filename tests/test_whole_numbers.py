"""Whole numbers that a model makes of constants, as T5 makes buckets of distances: rounding does not excuse others."""

import math
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
from flax import nnx

import compare

LENGTH, BUCKETS, EXACT, FARTHEST = 40, 8, 4, 32


def buckets_in_torch() -> torch.Tensor:
    """Bucket distances as T5 does: 8 and 16 are whole numbers of buckets, but for rounding."""
    distance = torch.arange(LENGTH)[:, None].sub(torch.arange(LENGTH)).abs()
    far = EXACT + (torch.log(distance.float() / EXACT) / math.log(FARTHEST / EXACT) * (BUCKETS - EXACT)).long()
    return torch.where(distance < EXACT, distance, far.clamp(max=BUCKETS - 1))


def buckets(farthest: int = FARTHEST) -> Any:
    distance = jnp.abs(jnp.arange(LENGTH)[:, None] - jnp.arange(LENGTH))
    # NumPy's number is of float64, which JAX makes float32, but not while the program is read in float64.
    share = jnp.log(distance.astype(jnp.float32) / EXACT) / np.log(farthest / EXACT)
    far = EXACT + (share * (BUCKETS - EXACT)).astype(jnp.int32)
    return jnp.where(distance < EXACT, distance, jnp.minimum(far, BUCKETS - 1))


class Original(torch.nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.first, self.bias, self.norm = torch.nn.Linear(6, 6), torch.nn.Embedding(BUCKETS, 1), torch.nn.LayerNorm(6)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        scores = x @ self.first(x).mT + self.bias(buckets_in_torch()).squeeze(-1)
        return self.norm(scores.softmax(-1) @ x)


class Port(nnx.Module):
    def __init__(self, *, epsilon: float = 1e-5, scale: float = 1.0, farthest: int = FARTHEST) -> None:
        rngs = nnx.Rngs(0)
        self.first, self.bias = nnx.Linear(6, 6, rngs=rngs), nnx.Embed(BUCKETS, 1, rngs=rngs)
        self.norm = nnx.LayerNorm(6, epsilon=epsilon, rngs=rngs)
        self.scale, self.farthest = scale, farthest

    def __call__(self, x: jax.Array) -> jax.Array:
        scores = self.scale * (x @ self.first(x).mT) + self.bias(buckets(self.farthest)).squeeze(-1)
        return self.norm(jax.nn.softmax(scores) @ x)


def checked(**settings: Any) -> compare.Report:
    rng = np.random.default_rng(0)
    batches = [(rng.normal(size=(2, LENGTH, 6)).astype(np.float32), None) for _ in range(2)]
    torch.manual_seed(0)
    return compare.check(compare.Torch(Original()), compare.Flax(Port(**settings)), batches)


def test_the_port() -> None:
    assert checked().verdict == compare.Verdict.MATCH


@pytest.mark.parametrize(
    ("settings", "cause"), [({"epsilon": 1e-6}, "epsilon"), ({"scale": 0.5}, ""), ({"farthest": 64}, "other numbers")]
)
def test_a_fault_behind_the_buckets_and_in_them(settings: dict[str, Any], cause: str) -> None:
    report = checked(**settings)
    assert report.verdict == compare.Verdict.MISMATCH
    assert report.divergence
    assert report.divergence.expected64 < 1e-12
    if cause:
        assert report.divergence.cause
        assert cause in report.divergence.cause.name


class Written(torch.nn.Module):
    """Compares a tensor that is a constant for all that its operations show."""

    def __init__(self, how: str) -> None:
        super().__init__()
        self.layer, self.how = torch.nn.Linear(6, 6), how

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        h = self.layer(x)
        kept = torch.zeros(h.shape)
        if self.how == "data":
            kept.data = h.detach()
        else:
            kept.numpy()[...] = h.detach().numpy()
        return h * (kept > 0)


class PortOfWritten(nnx.Module):
    def __init__(self) -> None:
        self.layer = nnx.Linear(6, 6, rngs=nnx.Rngs(0))

    def __call__(self, x: jax.Array) -> jax.Array:
        h = self.layer(x)
        return h * (h > 0)


@pytest.mark.parametrize("how", ["data", "numpy"])
def test_a_tensor_that_is_written_to_unseen_is_no_constant(how: str) -> None:
    batches = [(np.random.default_rng(0).normal(size=(4, 6)).astype(np.float32), None)]
    report = compare.check(compare.Torch(Written(how)), compare.Flax(PortOfWritten()), batches)
    assert report.verdict == compare.Verdict.MATCH
