"""Modules that run at some steps only, and sequences of another length at each step."""

from typing import Any

import jax.numpy as jnp
import numpy as np
import optax
import pytest
import torch
from flax import nnx

import compare


def mse(output: Any, target: Any) -> Any:
    return ((output - target) ** 2).mean()


class Experts(torch.nn.Module):
    """One of three experts sees the batch, as its gate says."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.gate = torch.nn.Linear(4, 3)
        self.experts = torch.nn.ModuleList(torch.nn.Linear(4, 2) for _ in range(3))

    def forward(self, x: Any) -> Any:
        return self.experts[int(self.gate(x).mean(0).argmax())](x)


class ExpertsPort(nnx.Module):
    """All experts run, and one of them is taken."""

    def __init__(self, factor: float) -> None:
        rngs = nnx.Rngs(0)
        self.gate, self.factor = nnx.Linear(4, 3, rngs=rngs), factor
        self.experts = nnx.List([nnx.Linear(4, 2, rngs=rngs) for _ in range(3)])

    def __call__(self, x: Any) -> Any:
        outputs = [expert(x) for expert in self.experts]
        outputs[1] = outputs[1] * self.factor
        return jnp.stack(outputs)[self.gate(x).mean(0).argmax()]


def test_an_expert_that_some_batches_go_to() -> None:
    rng = np.random.default_rng(1)
    batches = [(size * rng.normal(size=(5, 4)), rng.normal(size=(5, 2))) for size in (1, -4, 3, -2)]
    original = Experts()
    chosen = [int(original.gate(torch.tensor(x).float()).mean(0).argmax()) for x, _ in batches]
    assert len(set(chosen)) > 1
    for factor in (1.0, 1.01):
        report = compare.check(
            compare.Torch(original, mse, lambda params: torch.optim.SGD(params, 0.01)),
            compare.Flax(ExpertsPort(factor), mse, optax.sgd(0.01)),
            batches,
            device="cpu",
        )
        assert (report.verdict == "match") == (factor == 1.0 or 1 not in chosen)
        if report.divergence:
            assert (report.divergence.step, report.divergence.stage) == (chosen.index(1), "forward")


class Loop(torch.nn.Module):
    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.cell = torch.nn.Linear(7, 4)

    def forward(self, x: Any) -> Any:
        state = x.new_zeros(x.shape[0], 4)
        for t in range(x.shape[1]):
            state = torch.tanh(self.cell(torch.cat([x[:, t], state], -1)))
        return state


class LoopPort(nnx.Module):
    def __init__(self, factor: float) -> None:
        self.cell, self.factor = nnx.Linear(7, 4, rngs=nnx.Rngs(0)), factor

    def __call__(self, x: Any) -> Any:
        state = jnp.zeros((x.shape[0], 4), x.dtype)
        for t in range(x.shape[1]):
            state = jnp.tanh(self.cell(jnp.concatenate([x[:, t], state], -1)))
        return state * (self.factor if x.shape[1] == 5 else 1)


@pytest.mark.parametrize("factor", [1.0, 1.01])
@pytest.mark.parametrize("lengths", [(3, 5), (5, 2)])
def test_sequences_of_another_length_at_each_step(lengths: tuple[int, ...], factor: float) -> None:
    rng = np.random.default_rng(0)
    batches = [(rng.normal(size=(2, length, 3)), rng.normal(size=(2, 4))) for length in lengths]
    report = compare.check(compare.Torch(Loop(), mse), compare.Flax(LoopPort(factor), mse), batches, device="cpu")
    assert (report.verdict == "match") == (factor == 1.0)
    if report.divergence:
        assert (report.divergence.step, report.divergence.stage) == (lengths.index(5), "forward")
