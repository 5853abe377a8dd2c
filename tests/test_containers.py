"""Blocks that keep their layers in a container on one side alone, and terms and calls that are easily confused."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
import torch
from flax import nnx
from programs.common import trained, trained_in_torch

import compare

RNG = np.random.default_rng(5)
BATCHES = [(RNG.normal(size=(8, 6)), RNG.normal(size=(8, 6))) for _ in range(2)]


class Coupling(torch.nn.Module):
    """Scales and shifts one half of the features by what two layers make of the other, and gives the scales' sum."""

    def __init__(self, *, contained: bool) -> None:
        super().__init__()
        layers = torch.nn.Linear(3, 8), torch.nn.Tanh(), torch.nn.Linear(8, 6)
        self.net = torch.nn.Sequential(*layers) if contained else None
        if not contained:
            self.fc1, self.fc2 = layers[0], layers[2]

    def forward(self, x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        one, other = x.chunk(2, -1)
        made = self.net(one) if self.net is not None else self.fc2(torch.tanh(self.fc1(one)))
        scale, shift = made.chunk(2, -1)
        scale = torch.tanh(scale)
        return torch.cat([other * scale.exp() + shift, one], -1), scale.sum(-1)


class Flow(torch.nn.Module):
    def __init__(self, *, contained: bool) -> None:
        super().__init__()
        self.blocks = torch.nn.ModuleList([Coupling(contained=contained) for _ in range(2)])
        self.logs = torch.nn.Parameter(0.1 * torch.randn(6))

    def forward(self, x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        x, total = x * self.logs.exp(), self.logs.sum().expand(len(x))
        for block in self.blocks:
            x, added = block(x)
            total = total + added
        return x, total


class FlaxCoupling(nnx.Module):
    def __init__(self, fault: str, *, contained: bool) -> None:
        layers = nnx.Linear(3, 8, rngs=nnx.Rngs(0)), jnp.tanh, nnx.Linear(8, 6, rngs=nnx.Rngs(0))
        self.fault, self.contained = fault, contained
        if contained:
            self.net = nnx.Sequential(*layers)
        else:
            self.fc1, self.fc2 = layers[0], layers[2]

    def __call__(self, x: jax.Array) -> tuple[jax.Array, jax.Array]:
        one, other = x[:, :3], x[:, 3:]
        made = self.net(one) if self.contained else self.fc2(jnp.tanh(self.fc1(one)))
        scale, shift = made[:, :3], made[:, 3:]
        scale = scale if self.fault == "no tanh" else jnp.tanh(scale)
        return jnp.concatenate([other * jnp.exp(scale) + shift, one], -1), scale.sum(-1)


class FlaxFlow(nnx.Module):
    def __init__(self, fault: str = "", *, contained: bool) -> None:
        self.blocks = nnx.List([FlaxCoupling(fault, contained=contained) for _ in range(2)])
        self.logs, self.fault = nnx.Param(jnp.zeros(6)), fault

    def __call__(self, x: jax.Array) -> tuple[jax.Array, jax.Array]:
        total: Any = 0.0 if self.fault == "no scale of the input" else self.logs.sum()
        x = x * jnp.exp(self.logs[...])
        for block in self.blocks:
            x, added = block(x)
            total = total + added
        return x, total


def ours(given: Any, target: Any) -> Any:
    return (given[0] - target).square().mean() - given[1].mean()


def theirs(given: Any, target: Any) -> Any:
    return jnp.mean((given[0] - target) ** 2) - jnp.mean(given[1])


def checked(fault: str, *, in_torch: bool) -> compare.Report:
    torch.manual_seed(0)
    return compare.check(
        compare.Torch(Flow(contained=in_torch), ours, lambda params: torch.optim.SGD(params, 0.1)),
        compare.Flax(FlaxFlow(fault, contained=not in_torch), theirs, optax.sgd(0.1)),
        BATCHES,
        device="cpu",
    )


@pytest.mark.parametrize("in_torch", [True, pytest.param(False, marks=pytest.mark.slow)])
def test_a_block_is_compared_with_the_block_and_not_with_the_container_of_its_layers(*, in_torch: bool) -> None:
    assert checked("", in_torch=in_torch).verdict == "match"
    report = checked("no tanh", in_torch=in_torch)
    first = report.divergence
    assert first is not None
    assert first.torch.endswith("and the end of blocks.0")
    assert first.cause is not None
    assert "tanh" in f"{first.cause.explanation} {first.cause.fix}"
    assert {each.cause and each.cause.name for each in report.others} == {first.cause.name}


def test_a_term_that_is_left_out_is_no_function_that_makes_it_zero() -> None:
    """The sum of what `layer_norm` gives is zero too, and so is a mean of x - x.mean()."""
    first = checked("no scale of the input", in_torch=True).divergence
    assert first is not None
    assert first.cause is not None
    assert first.cause.name == "operation left out"
    assert "or has zero there" in first.cause.explanation
    assert "layer_norm" not in first.cause.explanation


def test_what_a_module_does_otherwise_at_both_of_its_calls_is_one_finding() -> None:
    class Scaled(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.inner = torch.nn.Linear(6, 6)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.inner(x).tanh() * x.cos()

    class Port(nnx.Module):
        def __init__(self) -> None:
            self.inner = nnx.Linear(6, 6, rngs=nnx.Rngs(0))

        def __call__(self, x: jax.Array) -> jax.Array:
            return jnp.tanh(self.inner(x))  # without the cosine

    def original() -> Any:
        model = Scaled()
        optimizer = torch.optim.SGD(model.parameters(), 0.1)

        def loss_of(model: Any, batch: Any) -> torch.Tensor:
            return (model(batch["x"]) - model(batch["y"]).detach()).square().mean()

        return trained_in_torch(model, optimizer, loss_of)

    def port() -> Any:
        def loss_of(model: Any, batch: Any) -> Any:
            return jnp.mean((model(batch["x"]) - jax.lax.stop_gradient(model(batch["y"]))) ** 2)

        return trained(Port(), optax.sgd(0.1), loss_of)

    batches = [{"x": x, "y": y} for x, y in BATCHES]
    report = compare.check(compare.TorchProgram(original), compare.JaxProgram(port), batches, steps=3, device="cpu")
    assert report.divergence is not None
    assert report.divergence.cause is not None
    assert report.divergence.cause.name == "operation left out"
    assert not report.others
