"""A weight that torch has under two names and uses twice, and that a port may keep twice."""

from collections.abc import Callable
from typing import Any

import jax
import numpy as np
import optax
import pytest
import torch
from flax import nnx

import compare
from compare.torch_side.run import TorchRun

WORDS, WIDTH = 9, 6


class Original(torch.nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.words, self.inner = torch.nn.Embedding(WORDS, WIDTH), torch.nn.Linear(WIDTH, WIDTH)
        self.out = torch.nn.Linear(WIDTH, WORDS, bias=False)
        self.out.weight = self.words.weight

    def forward(self, numbers: torch.Tensor) -> torch.Tensor:
        return self.out(torch.tanh(self.inner(self.words(numbers)))).mT


class Port(nnx.Module):
    def __init__(self, *, tied: bool) -> None:
        rngs = nnx.Rngs(0)
        self.words, self.inner = nnx.Embed(WORDS, WIDTH, rngs=rngs), nnx.Linear(WIDTH, WIDTH, rngs=rngs)
        self.out = None if tied else nnx.Linear(WIDTH, WORDS, use_bias=False, rngs=rngs)

    def __call__(self, numbers: jax.Array) -> jax.Array:
        inner = jax.nn.tanh(self.inner(self.words(numbers)))
        return self.words.attend(inner) if self.out is None else self.out(inner)


def loss(output: Any, target: Any) -> Any:
    return optax.softmax_cross_entropy_with_integer_labels(output, target).mean()


def batches() -> list[Any]:
    rng = np.random.default_rng(0)
    return [(rng.integers(0, WORDS, (3, 5)), rng.integers(0, WORDS, (3, 5))) for _ in range(3)]


def checked(*, tied: bool) -> compare.Report:
    adam = compare.Torch(
        Original(), lambda o, t: torch.nn.functional.cross_entropy(o, t), lambda p: torch.optim.Adam(p, 1e-3)
    )
    return compare.check(adam, compare.Flax(Port(tied=tied), loss, optax.adam(1e-3)), batches())


def checked_programs(*, tied: bool) -> compare.Report:
    def of_torch() -> Any:
        model = Original()
        optimizer = torch.optim.Adam(model.parameters(), 1e-3)

        def step(state: Any, batch: Any) -> Any:
            optimizer.zero_grad()
            value = torch.nn.functional.cross_entropy(model(batch[0]), batch[1])
            value.backward()
            optimizer.step()
            return {"loss": value}

        return {"model": model, "optimizer": optimizer}, step

    def of_jax() -> Any:
        model = Port(tied=tied)

        @nnx.jit
        def step(state: Any, batch: Any) -> Any:
            value, gradients = nnx.value_and_grad(lambda model: loss(model(batch[0]), batch[1]))(state["model"])
            state["optimizer"].update(state["model"], gradients)
            return state, {"loss": value}

        return {"model": model, "optimizer": nnx.Optimizer(model, optax.adam(1e-3), wrt=nnx.Param)}, step

    return compare.check(compare.TorchProgram(of_torch), compare.JaxProgram(of_jax), batches())


@pytest.mark.parametrize("check", [checked, checked_programs])
def test_a_weight_that_a_port_keeps_twice(check: Callable[..., compare.Report]) -> None:
    assert check(tied=True).ok
    report = check(tied=False)
    assert report.divergence
    assert report.divergence.cause
    assert report.divergence.cause.name == "tied weights"
    assert "words.weight and " in report.divergence.cause.explanation
    assert "are one parameter in torch" in report.divergence.cause.explanation


def test_its_second_name_is_no_constant() -> None:
    model = Original()
    model.register_buffer("table", torch.ones(2))
    run = TorchRun(compare.Torch(model, lambda o, t: (o - t).sum(), lambda p: torch.optim.Adam(p)), "float64", "cpu")
    with run.controlled(None) as controlled:
        pass
    assert [tuple(tensor.shape) for tensor, _ in controlled.written] == [(2,)]
