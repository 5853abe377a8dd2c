"""A gradient that one side of a training step stops, and the other does not: the same loss, and other gradients."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
import torch
from flax import nnx
from in_ci import some
from programs.common import FlaxNet, TorchNet, drawn, trained, trained_in_torch

import compare


class Quantized(torch.nn.Module):
    """An encoder and a decoder with the nearest of a few codes between them, and a commitment loss."""

    def __init__(self) -> None:
        super().__init__()
        self.encoder, self.decoder = torch.nn.Linear(4, 3), torch.nn.Linear(3, 4)
        self.codes = torch.nn.Parameter(torch.randn(5, 3))

    def forward(self, x: torch.Tensor) -> Any:
        z = self.encoder(x)
        code = self.codes[torch.cdist(z, self.codes).argmin(1)]
        commitment = torch.nn.functional.mse_loss(z, code.detach()) + torch.nn.functional.mse_loss(z.detach(), code)
        return self.decoder(z + (code - z).detach()), commitment


def original() -> Any:
    torch.manual_seed(0)
    model = Quantized()
    optimizer = torch.optim.Adam(model.parameters(), 1e-2)

    def step(state: Any, batch: Any) -> Any:
        del state
        first, one = model(batch["x"])
        second, two = model(batch["y"])
        loss = ((first - batch["x"]) ** 2).mean() + ((first - second) ** 2).mean() + one + two
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        return {"loss": loss}

    return {"model": model, "optimizer": optimizer}, step


class Port(nnx.Module):
    def __init__(self, fault: str) -> None:
        self.encoder, self.decoder = nnx.Linear(4, 3, rngs=nnx.Rngs(0)), nnx.Linear(3, 4, rngs=nnx.Rngs(1))
        self.codes = nnx.Param(jnp.ones((5, 3)))
        self.fault = fault

    def __call__(self, x: jax.Array) -> Any:
        stop = jax.lax.stop_gradient
        z, codes = self.encoder(x), self.codes[...]
        code = codes[((z[:, None] - codes) ** 2).sum(-1).argmin(1)]
        committed = stop(z) if self.fault == "commitment" else z
        aim = code if self.fault == "codes" else stop(code)
        commitment = ((committed - aim) ** 2).mean() + ((stop(z) - code) ** 2).mean()
        return self.decoder(z + stop(code - z)), commitment


def port(fault: str) -> Any:
    def build() -> Any:
        model = Port(fault)

        def loss_of(model: Port, batch: Any) -> Any:
            first, one = model(batch["x"])
            second, two = model(batch["y"])
            second = jax.lax.stop_gradient(second) if fault == "second view" else second
            return ((first - batch["x"]) ** 2).mean() + ((first - second) ** 2).mean() + one + two

        return trained(model, optax.adam(1e-2), loss_of)

    return build


NAMED = {
    "": "",
    "second view": "stops the gradient of output 0 of model (2nd call)",
    "codes": "lets the gradient through the output of getitem",
    "commitment": "stops the gradient of the output of model.encoder as an operand of mse_loss",
}


@pytest.mark.parametrize("fault", some(NAMED, ["commitment"]))
def test_a_gradient_that_the_port_stops_in_its_step(fault: str) -> None:
    rng = np.random.default_rng(0)
    batches = [{"x": 2 * rng.standard_normal((6, 4)), "y": 2 * rng.standard_normal((6, 4))} for _ in range(3)]
    report = compare.check(compare.TorchProgram(original), compare.JaxProgram(port(fault)), batches, device="cpu")
    assert report.ok == (not fault), str(report)
    if fault:
        assert report.divergence is not None
        assert report.divergence.cause is not None, str(report)
        assert report.divergence.cause.name == "stopped gradient"
        assert NAMED[fault] in report.divergence.cause.explanation, str(report)
        assert not report.others


def barely_other() -> Any:
    """Give a port with the same outputs, whose gradients differ by a little more than rounding."""

    def loss_of(model: Any, batch: Any) -> Any:
        output = model(batch["x"])
        fixed = jax.lax.stop_gradient(output)
        return jnp.mean((fixed + (output - fixed) * (1 + 4e-13) - batch["y"]) ** 2)

    return trained(FlaxNet(nnx.Rngs(0)), optax.sgd(0.1), loss_of)


def like_ones() -> Any:
    """Give a program with an operation that takes an output and gives nothing of it."""

    def loss_of(model: Any, batch: Any) -> Any:
        output = model(batch["x"])
        return (torch.empty_like(output).fill_(1.0) * (output - batch["y"]) ** 2).mean()

    torch.manual_seed(0)
    model = TorchNet()
    return trained_in_torch(model, torch.optim.SGD(model.parameters(), 0.1), loss_of)


def test_a_stop_without_effect_is_no_cause() -> None:
    sides = compare.TorchProgram(like_ones), compare.JaxProgram(barely_other)
    report = compare.check(*sides, drawn(x=(5,), y=(3,)), device="cpu")
    assert report.divergence is not None
    assert report.divergence.stage == "gradient"
    assert report.divergence.cause is None, str(report)
