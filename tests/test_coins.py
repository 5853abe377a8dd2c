"""Programs that decide by a random number for the whole batch, as augmentation and teacher forcing do."""

from typing import Any

import jax
import jax.numpy as jnp
import optax
import torch
from flax import nnx
from programs.common import FlaxNet, TorchNet, drawn, trained_in_torch
from torch.nn import functional

import compare

CHANCE = 0.4


def original() -> Any:
    torch.manual_seed(0)
    model = TorchNet()

    def loss_of(model: Any, batch: Any) -> Any:
        x = torch.where(torch.rand(()) < CHANCE, 0.5 * batch["x"], batch["x"])
        return functional.mse_loss(model(x), batch["y"])

    return trained_in_torch(model, torch.optim.SGD(model.parameters(), 0.1), loss_of)


def port(*, chance: float = CHANCE, boolean: bool = False, from_above: bool = False) -> Any:
    """Give a port; with `boolean`, it draws a uniform number as well, which it does not use."""

    def build() -> Any:
        model = FlaxNet(nnx.Rngs(0))
        optimizer = nnx.Optimizer(model, optax.sgd(0.1), wrt=nnx.Param)

        @nnx.jit
        def step(state: Any, batch: Any) -> Any:
            key, own, other = jax.random.split(state["key"], 3)
            uniform = jax.random.uniform(own, ())
            coin = uniform > 1 - chance if from_above else uniform < chance
            if boolean:
                coin = jax.random.bernoulli(other, chance, ())
            x = jnp.where(coin, 0.5 * batch["x"], batch["x"])
            loss, gradients = nnx.value_and_grad(lambda model: jnp.mean((model(x) - batch["y"]) ** 2))(state["model"])
            state["optimizer"].update(state["model"], gradients)
            return {**state, "key": key}, {"loss": loss}

        return {"model": model, "optimizer": optimizer, "key": jax.random.key(0)}, step

    return build


def compared(**settings: Any) -> compare.Report:
    sides = compare.TorchProgram(original), compare.JaxProgram(port(**settings))
    return compare.check(*sides, drawn(count=8, x=(5,), y=(3,)), steps=8, device="cpu")


def test_a_draw_that_is_not_used_takes_none_of_torchs() -> None:
    report = compared(boolean=True)
    assert report.verdict == "match", str(report)


def test_a_coin_may_be_compared_from_above() -> None:
    """That is as likely. It falls as torch's does at the first steps, and otherwise later."""
    report = compared(from_above=True)
    assert report.verdict == "match", str(report)


def test_what_a_coin_decides_has_no_cause() -> None:
    """With another probability, one step differs as if the augmentation were left out, and one as if it were alone."""
    for chance in (0.1, 0.7, 0.9):
        report = compared(chance=chance)
        assert report.divergence is not None
        assert report.divergence.cause is None, str(report)
