"""A program that computes in fewer bits than float32 has is told why it rounds more."""

from typing import Any

import jax.numpy as jnp
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
