"""Linen's running statistics in a program's state: beside the parameters, in one tree with them, or in a TrainState."""

import copy
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
import torch
from flax import linen
from flax.training.train_state import TrainState
from programs.common import trained_in_torch
from torch import nn

import compare

RATE = 0.1


class Original(nn.Module):
    def __init__(self, *, affine: bool) -> None:
        super().__init__()
        self.first, self.norm, self.last = nn.Linear(4, 8), nn.BatchNorm1d(8, affine=affine), nn.Linear(8, 2)

    def forward(self, x: torch.Tensor) -> Any:
        return self.last(torch.relu(self.norm(self.first(x))))


class Port(linen.Module):
    affine: bool

    @linen.compact
    def __call__(self, x: jax.Array, *, train: bool) -> Any:
        x = linen.Dense(8, name="first")(x)
        norm = linen.BatchNorm(
            not train, momentum=0.9, epsilon=1e-5, use_scale=self.affine, use_bias=self.affine, name="norm"
        )
        return linen.Dense(2, name="last")(linen.relu(norm(x)))


def original(*, train: bool, affine: bool) -> Any:
    model = Original(affine=affine).train(train)
    optimizer = torch.optim.SGD(model.parameters(), RATE)
    return trained_in_torch(model, optimizer, lambda model, batch: torch.square(model(batch["x"]) - batch["y"]).mean())


class State(TrainState):
    batch_stats: Any


Stepped = tuple[Any, Any, Any]
"""The parameters, the statistics and the loss after a step."""


def trained(*, train: bool, affine: bool) -> tuple[Any, Callable[[Any, Any, Any], Stepped]]:
    """Make the variables, and what takes a step from them."""
    module = Port(affine)
    variables = module.init(jax.random.key(0), jnp.zeros((1, 4)), train=False)

    def loss_fn(params: Any, statistics: Any, batch: Any) -> Any:
        variables = {"params": params, "batch_stats": statistics}
        output, new = module.apply(variables, batch["x"], train=train, mutable=["batch_stats"])
        return jnp.square(output - batch["y"]).mean(), new.get("batch_stats", statistics)

    def step(params: Any, statistics: Any, batch: Any) -> Stepped:
        (loss, new), gradients = jax.value_and_grad(loss_fn, has_aux=True)(params, statistics, batch)
        return jax.tree.map(lambda p, g: p - RATE * g, params, gradients), new, loss

    return variables, step


def beside(**settings: bool) -> Any:
    variables, take = trained(**settings)

    @jax.jit
    def step(state: Any, batch: Any) -> Any:
        params, statistics, loss = take(state["params"], state["batch_stats"], batch)
        return {"params": params, "batch_stats": statistics}, {"loss": loss}

    return dict(variables), step


def together(**settings: bool) -> Any:
    variables, take = trained(**settings)

    @jax.jit
    def step(state: Any, batch: Any) -> Any:
        params, statistics, loss = take(state["model"]["params"], state["model"]["batch_stats"], batch)
        return {"model": {"params": params, "batch_stats": statistics}}, {"loss": loss}

    return {"model": variables}, step


def in_train_state(**settings: bool) -> Any:
    variables, take = trained(**settings)
    sgd = optax.sgd(RATE)

    @jax.jit
    def step(state: Any, batch: Any) -> Any:
        params, statistics, loss = take(state.params, state.batch_stats, batch)
        return state.replace(step=state.step + 1, params=params, batch_stats=statistics), {"loss": loss}

    return State.create(apply_fn=None, tx=sgd, **variables), step


def checked(port: Callable[..., Any], *, train: bool = True, affine: bool = True) -> compare.Report:
    rng = np.random.default_rng(0)
    batches = [{"x": rng.normal(size=(6, 4)), "y": rng.normal(size=(6, 2))} for _ in range(2)]
    settings = {"train": train, "affine": affine}
    sides = compare.TorchProgram(lambda: original(**settings)), compare.JaxProgram(lambda: port(**settings))
    return compare.check(*sides, batches, steps=2, device="cpu", quick=True)


PORTS = pytest.mark.parametrize("port", [beside, together, in_train_state])


@PORTS
def test_the_statistics_are_those_of_the_layers(port: Callable[..., Any]) -> None:
    report = checked(port, train=False)
    assert report.verdict == "match", str(report)
    assert "model.norm output" in {each.torch for each in report.quantities}


@PORTS
def test_they_are_compared(port: Callable[..., Any]) -> None:
    divergence = checked(port).divergence
    assert divergence is not None
    assert (divergence.stage, divergence.torch) == ("buffers", "model.norm.running_var")
    assert divergence.cause is not None
    assert divergence.cause.name == "biased running variance"


@PORTS
def test_a_norm_without_parameters_has_statistics_alone(port: Callable[..., Any]) -> None:
    assert checked(port, train=False, affine=False).verdict == "match"


def test_each_of_two_models_has_its_own() -> None:
    """A teacher in evaluation, whose variables lie beside those of the student."""

    def both() -> Any:
        (state, step), teacher = original(train=False, affine=True), Original(affine=True).eval()

        def step_both(_: Any, batch: Any) -> Any:
            return step(state, {**batch, "y": teacher(batch["x"]).detach()})

        return {**state, "teacher": teacher}, step_both

    def port() -> Any:
        variables, take = trained(train=False, affine=True)

        @jax.jit
        def step(state: Any, batch: Any) -> Any:
            target = Port(affine=True).apply(
                {"params": state["teacher_params"], "batch_stats": state["teacher_stats"]}, batch["x"], train=False
            )
            params, statistics, loss = take(state["params"], state["batch_stats"], {**batch, "y": target})
            return {**state, "params": params, "batch_stats": statistics}, {"loss": loss}

        other = copy.deepcopy(variables)
        state = {**variables, "teacher_params": other["params"], "teacher_stats": other["batch_stats"]}
        return state, step

    rng = np.random.default_rng(0)
    batches = [{"x": rng.normal(size=(6, 4)), "y": rng.normal(size=(6, 2))} for _ in range(2)]
    report = compare.check(compare.TorchProgram(both), compare.JaxProgram(port), batches, steps=2, quick=True)
    assert report.verdict == "match", str(report)
