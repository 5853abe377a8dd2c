"""Flax's recurrent cells in a loop, which take (carry, inputs) where torch's take (input, hx)."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import torch
from flax import linen
from programs.common import trained_in_torch
from torch import nn

import compare

WIDTH, LENGTH = 5, 3


class Original(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.front, self.cell, self.last = nn.Linear(4, WIDTH), nn.GRUCell(WIDTH, WIDTH), nn.Linear(WIDTH, 2)

    def forward(self, x: torch.Tensor) -> Any:
        state = x.new_zeros(len(x), WIDTH)
        for at in range(LENGTH):
            state = self.cell(self.front(x[:, at]), state)
        return self.last(state)


class Port(linen.Module):
    activation: Callable[..., jax.Array] = linen.tanh

    @linen.compact
    def __call__(self, x: jax.Array) -> Any:
        front, cell = linen.Dense(WIDTH, name="front"), linen.GRUCell(WIDTH, activation_fn=self.activation, name="cell")
        state: Any = jnp.zeros((len(x), WIDTH), x.dtype)
        for at in range(LENGTH):
            state, _ = cell(state, front(x[:, at]))
        return linen.Dense(2, name="last")(state)


def batches() -> list[dict[str, np.ndarray]]:
    rng = np.random.default_rng(0)
    return [{"x": rng.normal(size=(6, LENGTH, 4)), "y": rng.normal(size=(6, 2))} for _ in range(3)]


def square(output: Any, target: Any) -> Any:
    return ((output - target) ** 2).mean()


def loss_of(model: Any, batch: Any) -> Any:
    return square(model(batch["x"]), batch["y"])


def test_a_fault_of_the_cell_is_one_finding_at_the_cell() -> None:
    def checked(activation: Callable[..., jax.Array]) -> compare.Report:
        torch.manual_seed(0)
        module = Port(activation)
        variables = module.init(jax.random.key(0), jnp.zeros((1, LENGTH, 4)))
        sides = compare.Torch(Original(), square), compare.Flax((module, variables), square)
        return compare.check(*sides, [(each["x"], each["y"]) for each in batches()], steps=2, quick=True)

    assert checked(linen.tanh).verdict == "match"
    report = checked(linen.relu)
    assert report.divergence is not None
    assert report.divergence.torch == "cell"
    assert report.divergence.cause is None
    assert {each.torch.partition(" ")[0] for each in report.others} == {"cell"}
    assert "findings" not in str(report)


def test_one_bias_for_two_is_a_cause_in_a_program() -> None:
    def original() -> Any:
        model = Original()
        return trained_in_torch(model, torch.optim.Adam(model.parameters(), 1e-2), loss_of)

    def port() -> Any:
        module, adam = Port(), optax.adam(1e-2)
        params = module.init(jax.random.key(0), jnp.zeros((1, LENGTH, 4)))["params"]

        @jax.jit
        def step(state: Any, batch: Any) -> Any:
            def loss_fn(params: Any) -> Any:
                return square(module.apply({"params": params}, batch["x"]), batch["y"])

            loss, gradients = jax.value_and_grad(loss_fn)(state["model"])
            updates, kept = adam.update(gradients, state["optimizer"])
            model = optax.apply_updates(state["model"], updates)
            return {"model": model, "optimizer": kept}, {"loss": loss, "gradients": {"model": gradients}}

        return {"model": params, "optimizer": adam.init(params)}, step

    report = compare.check(compare.TorchProgram(original), compare.JaxProgram(port), batches(), steps=3)
    # A cell gives one array as its new state and as its output, which is one call.
    assert not any("calls" in each.reason for each in report.not_compared)
    divergence = report.divergence
    assert divergence is not None
    assert divergence.stage == "update"
    assert divergence.cause is not None
    assert divergence.cause.name == "two biases"
