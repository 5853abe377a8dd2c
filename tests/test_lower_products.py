"""What is computed in fewer bits than float32 has, without another dtype: as TF32 on a GPU, and `reduce_precision`."""

from collections.abc import Callable

import jax
import numpy as np
import torch
from flax import nnx

import compare


class Original(torch.nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.fc1, self.fc2 = torch.nn.Linear(64, 96), torch.nn.Linear(96, 10)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        result: torch.Tensor = self.fc2(torch.relu(self.fc1(x)))
        return result


class Port(nnx.Module):
    def __init__(self, rounded: Callable[[jax.Array], jax.Array]) -> None:
        rngs = nnx.Rngs(0)
        self.fc1, self.fc2 = nnx.Linear(64, 96, rngs=rngs), nnx.Linear(96, 10, rngs=rngs)
        self.rounded = rounded

    def __call__(self, x: jax.Array) -> jax.Array:
        return self.fc2(nnx.relu(self.rounded(self.fc1(self.rounded(x)))))


def checked(rounded: Callable[[jax.Array], jax.Array]) -> compare.Report:
    batches = [(np.random.default_rng(n).normal(size=(16, 64)), None) for n in range(2)]
    return compare.check(compare.Torch(Original()), compare.Flax(Port(rounded)), batches, quick=True)


def test_fewer_bits_are_the_cause() -> None:
    report = checked(lambda x: jax.lax.reduce_precision(x, exponent_bits=8, mantissa_bits=10))
    assert report.verdict == "precision"
    [cause] = report.notes
    assert cause.name == "10 bits of mantissa on the flax side"


def test_fewer_bits_that_are_not_the_cause_are_not_named() -> None:
    """What adds 4096 and takes it away loses ten bits by itself, and not by the 20 bits of `reduce_precision`."""

    def rounded(x: jax.Array) -> jax.Array:
        shift = 4096 + 0 * x.sum()
        return jax.lax.reduce_precision((x + shift) - shift, exponent_bits=8, mantissa_bits=20)

    report = checked(rounded)
    assert report.verdict != "match"
    assert "20 bits" not in str(report)
