"""Programs that draw only in a branch: of Python's in torch's step, of `jax.lax.cond` in the port's."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import optax
import pytest
import torch
from flax import nnx
from programs.common import FlaxNet, TorchNet, drawn, trained_in_torch
from torch.nn import functional

import compare

CHANCE, SCALE, KEPT = 0.5, 0.3, 0.7


def original(otherwise: Callable[[torch.Tensor], torch.Tensor] = lambda x: x) -> Any:
    def build() -> Any:
        torch.manual_seed(0)
        model = TorchNet()

        def loss_of(model: Any, batch: Any) -> Any:
            x = batch["x"]
            x = x + SCALE * torch.randn_like(x) if torch.rand(()) < CHANCE else otherwise(x)
            return functional.mse_loss(model(x), batch["y"])

        return trained_in_torch(model, torch.optim.SGD(model.parameters(), 0.1), loss_of)

    return compare.TorchProgram(build)


def noisy(x: torch.Tensor) -> torch.Tensor:
    return x - torch.randn_like(x)


def dropped(x: torch.Tensor) -> torch.Tensor:
    return x * torch.bernoulli(torch.full_like(x, KEPT))


Branch = Callable[[Any, Any], Any]


def noise(scale: float) -> Branch:
    return lambda key, x: x + scale * jax.random.normal(key, x.shape)


def kept(chance: float) -> Branch:
    return lambda key, x: x * jax.random.bernoulli(key, chance, x.shape)


def port(
    otherwise: Branch = lambda key, x: x, scale: float = SCALE, *, both: bool = False, nested: bool = False
) -> Any:
    """Give a port; with `both`, it computes what both branches give at every step."""

    def build() -> Any:
        model = FlaxNet(nnx.Rngs(0))
        optimizer = nnx.Optimizer(model, optax.sgd(0.1), wrt=nnx.Param)

        def augmented(key: Any, x: Any) -> Any:
            first, own = jax.random.split(key)
            coin = jax.random.uniform(first, ()) < CHANCE
            if both:
                return jnp.where(coin, noise(scale)(own, x), otherwise(own, x))
            return jax.lax.cond(coin, noise(scale), otherwise, own, x)

        @nnx.jit
        def step(state: Any, batch: Any) -> Any:
            key, own = jax.random.split(state["key"])
            x = batch["x"]
            x = jax.lax.cond(x.sum() < jnp.inf, augmented, lambda _, x: x, own, x) if nested else augmented(own, x)
            loss, gradients = nnx.value_and_grad(lambda model: jnp.mean((model(x) - batch["y"]) ** 2))(state["model"])
            state["optimizer"].update(state["model"], gradients)
            return {**state, "key": key}, {"loss": loss}

        return {"model": model, "optimizer": optimizer, "key": jax.random.key(0)}, step

    return compare.JaxProgram(build)


def compared(torch: Any, jax: Any) -> compare.Report:
    return compare.check(torch, jax, drawn(count=5, x=(5,), y=(3,)), steps=5, device="cpu")


@pytest.mark.parametrize(
    ("torch", "jax"),
    [
        pytest.param(original(), port(), id="one branch draws"),
        pytest.param(original(noisy), port(noise(-1.0)), id="both draw the same kind"),
        pytest.param(original(dropped), port(kept(KEPT)), id="both draw, other kinds"),
        pytest.param(original(dropped), port(kept(KEPT), nested=True), id="a branch within a branch"),
        pytest.param(original(), port(both=True), id="the port draws in any case"),
    ],
)
def test_a_right_port_matches(torch: Any, jax: Any) -> None:
    report = compared(torch, jax)
    assert report.verdict == "match", str(report)


@pytest.mark.parametrize(
    ("torch", "jax"),
    [
        pytest.param(original(), port(scale=0.4), id="scale"),
        pytest.param(original(noisy), port(noise(1.0)), id="sign in the other branch"),
        pytest.param(original(noisy), port(), id="no draw in the other branch"),
        pytest.param(original(), port(noise(1.0)), id="a draw too many"),
    ],
)
def test_a_wrong_one_does_not(torch: Any, jax: Any) -> None:
    report = compared(torch, jax)
    assert report.verdict == "mismatch", str(report)


def test_the_probability_of_a_mask_in_a_branch_is_compared() -> None:
    """The replay of torch's mask hides it."""
    report = compared(original(dropped), port(kept(0.6)))
    assert report.divergence is not None
    assert report.divergence.cause is not None, str(report)
    assert report.divergence.cause.name == "probability of a random mask"
