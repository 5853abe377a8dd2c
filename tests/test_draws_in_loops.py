"""Programs that draw within `jax.lax.scan`, whose step contains its own gradient: JAX splits such a draw in two.

And draws whose range depends on the parameters, which give what their derivative needs as further results.
"""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
from programs.common import drawn, trained_in_torch
from torch.nn import functional

import compare

RATE, TURNS = 0.1, 4


def batches() -> list[dict[str, np.ndarray]]:
    return drawn(size=8, x=(3,), y=(3,))


def noise_in_torch(kind: str, x: torch.Tensor) -> torch.Tensor:
    if kind == "dropout":
        return functional.dropout(x, 0.3) - x
    if kind == "range":
        return torch.rand_like(x) * 1.0 - 0.3
    if kind == "learned range":
        return torch.rand_like(x) * (x.mean() + 0.4) - 0.4
    if kind == "integers":
        return 0.1 * torch.randint(2, 7, x.shape).to(x)
    if kind == "gamma":
        return 0.1 * torch.distributions.Gamma(torch.full_like(x, 2.5), torch.ones_like(x)).sample()
    if kind == "learned gamma":
        return 0.1 * torch.distributions.Gamma(torch.exp(x), torch.ones_like(x)).rsample()
    return 0.1 * torch.randn_like(x)


def noise_in_jax(kind: str, key: Any, x: Any, keep: float) -> Any:
    if kind == "dropout":
        return jnp.where(jax.random.bernoulli(key, keep, x.shape), x / 0.7, 0.0) - x
    if kind == "range":
        return jax.random.uniform(key, x.shape, minval=-0.3, maxval=0.7)
    if kind == "learned range":
        return jax.random.uniform(key, x.shape, minval=-0.4, maxval=x.mean())
    if kind == "integers":
        return 0.1 * jax.random.randint(key, x.shape, 2, 7)
    if kind == "gamma":
        return 0.1 * jax.random.gamma(key, 2.5, x.shape)
    if kind == "learned gamma":
        return 0.1 * jax.random.gamma(key, jnp.exp(x))
    return 0.1 * jax.random.normal(key, x.shape)


def original(kind: str) -> Any:
    def loss_of(model: Any, batch: Any) -> Any:
        x = batch["x"]
        for _ in range(TURNS):
            x = torch.tanh(model(x))
            x = x + noise_in_torch(kind, x)
        return functional.mse_loss(x, batch["y"])

    def build() -> Any:
        torch.manual_seed(0)
        model = torch.nn.Linear(3, 3)
        return trained_in_torch(model, torch.optim.SGD(model.parameters(), RATE), loss_of)

    return build


def port(kind: str, *, keep: float = 0.7, loop: str = "scan") -> Any:
    def build() -> Any:
        @jax.jit
        def step(state: Any, batch: Any) -> Any:
            key, own = jax.random.split(state["key"])
            keys = jax.random.split(own, TURNS)

            def loss_of(params: Any) -> Any:
                def turn(x: Any, key: Any) -> Any:
                    x = jnp.tanh(x @ params["kernel"] + params["bias"])
                    return x + noise_in_jax(kind, key, x, keep), None

                x = batch["x"]
                if loop == "scan":
                    x, _ = jax.lax.scan(turn, x, keys)
                elif loop == "nested":
                    x, _ = jax.lax.scan(lambda x, keys: jax.lax.scan(turn, x, keys), x, keys.reshape(-1, 2))
                else:
                    for each in keys:
                        x, _ = turn(x, each)
                return jnp.mean((x - batch["y"]) ** 2)

            loss, slopes = jax.value_and_grad(loss_of)(state["model"])
            params = jax.tree.map(lambda value, slope: value - RATE * slope, state["model"], slopes)
            return {"model": params, "key": key}, {"loss": loss}

        params = {"kernel": jnp.zeros((3, 3)), "bias": jnp.zeros(3)}
        return {"model": params, "key": jax.random.key(0)}, step

    return build


@pytest.mark.parametrize("loop", ["scan", "nested", "unrolled"])
@pytest.mark.parametrize("kind", ["normal", "dropout", "range", "learned range", "integers", "gamma", "learned gamma"])
def test_draws_of_a_differentiated_loop_are_replayed(kind: str, loop: str) -> None:
    found = compare.check(
        compare.TorchProgram(original(kind)), compare.JaxProgram(port(kind, loop=loop)), batches(), device="cpu"
    )
    assert found.verdict == "match", str(found)
    assert "incomplete" not in str(found)


@pytest.mark.parametrize("loop", ["scan", "nested"])
def test_another_probability_in_a_differentiated_loop_is_named(loop: str) -> None:
    found = compare.check(
        compare.TorchProgram(original("dropout")),
        compare.JaxProgram(port("dropout", keep=0.6, loop=loop)),
        batches(),
        device="cpu",
    )
    text = " ".join(str(found).split())
    assert "torch draws True with probability 0.7, and jax.random.bernoulli with probability 0.6" in text
