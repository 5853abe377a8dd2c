"""What rounds more on one side is told: fewer bits than float32 has, in a program too, and a fast variance."""

from typing import Any

import jax.numpy as jnp
import numpy as np
import optax
import pytest
import torch
from flax import nnx
from programs.common import TorchNet, drawn, trained, trained_in_torch

import compare


class Port(nnx.Module):
    def __init__(self, dtype: Any, rngs: nnx.Rngs) -> None:
        self.fc1, self.fc2 = nnx.Linear(5, 8, rngs=rngs, dtype=dtype), nnx.Linear(8, 3, rngs=rngs)

    def __call__(self, x: Any) -> Any:
        return self.fc2(jnp.tanh(self.fc1(x).astype(x.dtype)))


def loss_of(model: Any, batch: Any) -> Any:
    return ((model(batch["x"]) - batch["y"]) ** 2).mean()


@pytest.mark.parametrize("dtype", [jnp.bfloat16, jnp.float16])
def test_fewer_bits_are_the_cause(dtype: Any) -> None:
    def original() -> Any:
        model = TorchNet()
        return trained_in_torch(model, torch.optim.SGD(model.parameters(), 0.1), loss_of)

    sides = (
        compare.TorchProgram(original),
        compare.JaxProgram(lambda: trained(Port(dtype, nnx.Rngs(0)), optax.sgd(0.1), loss_of)),
    )
    report = compare.check(*sides, drawn(x=(5,), y=(3,)), steps=3, quick=True)
    assert report.verdict == "precision"
    [note] = report.notes
    assert note.name == f"{jnp.dtype(dtype).name} on the jax side"
    assert "model/fc1" in note.explanation


class Shifted(nnx.Module):
    """A norm of numbers about a thousand, whose variance is the difference of two numbers about a million."""

    def __init__(self, rngs: nnx.Rngs, *, fast: bool) -> None:
        self.front = nnx.Linear(8, 8, rngs=rngs)
        self.norm = nnx.LayerNorm(8, epsilon=1e-5, use_fast_variance=fast, rngs=rngs)

    def __call__(self, x: Any) -> Any:
        return self.norm(self.front(x) + 1000)


class Original(torch.nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.front, self.norm = torch.nn.Linear(8, 8), torch.nn.LayerNorm(8)

    def forward(self, x: torch.Tensor) -> Any:
        return self.norm(self.front(x) + 1000)


@pytest.mark.parametrize("fast", [False, True])
def test_a_fast_variance_is_rounding_where_it_is_proved_to_be_what_rounds(fast: bool) -> None:
    torch.manual_seed(0)
    rng = np.random.default_rng(0)
    batches = [(rng.standard_normal((6, 8), np.float32), rng.standard_normal((6, 8), np.float32)) for _ in range(2)]
    report = compare.check(
        compare.Torch(Original(), square, lambda parameters: torch.optim.SGD(parameters, 0.1)),
        compare.Flax(Shifted(nnx.Rngs(0), fast=fast), square, optax.sgd(0.1)),
        batches,
        steps=2,
        quick=True,
    )
    assert report.verdict == ("precision" if fast else "match"), str(report)
    assert [note.name for note in report.notes] == ["fast variance"] * fast


def square(output: Any, target: Any) -> Any:
    return ((output - target) ** 2).mean()


def test_what_an_optimizer_remembers_in_fewer_bits_is_told() -> None:
    torch.manual_seed(0)
    rng = np.random.default_rng(0)
    batches = [(rng.standard_normal((6, 8), np.float32), rng.standard_normal((6, 8), np.float32)) for _ in range(2)]
    report = compare.check(
        compare.Torch(torch.nn.Linear(8, 8), square, lambda parameters: torch.optim.Adam(parameters, 1e-2)),
        compare.Flax(nnx.Linear(8, 8, rngs=nnx.Rngs(0)), square, optax.adam(1e-2, mu_dtype=jnp.bfloat16)),
        batches,
        steps=3,
        quick=True,
    )
    assert report.verdict == "precision", str(report)
    [note] = report.notes
    assert note.name == "bfloat16 on the flax side"
    assert "mu_dtype" in note.fix
