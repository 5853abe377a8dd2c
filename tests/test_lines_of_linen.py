"""A Linen module does not know its place in the state: its lines are found by the parameters that it is applied to."""

from typing import Any

import jax
import jax.numpy as jnp
import optax
import torch
from flax import linen
from flax.training.train_state import TrainState
from programs.common import drawn
from torch import nn
from torch.nn import functional

import compare


class Half(nn.Module):
    """A model of which there are two, with layers of the same names."""

    def __init__(self, act: Any) -> None:
        super().__init__()
        self.inner, self.outer, self.act = nn.Linear(4, 6), nn.Linear(6, 4), act

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        result: torch.Tensor = self.outer(self.act(self.inner(x)))
        return result


class Encoder(linen.Module):
    @linen.compact
    def __call__(self, x: jax.Array) -> Any:
        hidden = linen.relu(linen.Dense(6, name="inner")(x))
        return linen.Dense(4, name="outer")(hidden)


class Decoder(linen.Module):
    @linen.compact
    def __call__(self, x: jax.Array) -> Any:
        hidden = linen.sigmoid(linen.Dense(6, name="inner")(x))
        return linen.Dense(4, name="outer")(hidden)


def original() -> Any:
    torch.manual_seed(0)
    encoder, decoder = Half(torch.relu), Half(torch.tanh)
    optimizers = [torch.optim.SGD(each.parameters(), 0.1) for each in (encoder, decoder)]

    def step(state: Any, batch: Any) -> Any:
        loss = functional.mse_loss(state["decoder"](state["encoder"](batch["x"])), batch["x"])
        for each in optimizers:
            each.zero_grad()
        loss.backward()
        for each in optimizers:
            each.step()
        return {"loss": loss}

    return {"encoder": encoder, "decoder": decoder, "first": optimizers[0], "second": optimizers[1]}, step


def ported() -> Any:
    def state_of(module: linen.Module) -> TrainState:
        params = module.init(jax.random.key(0), jnp.zeros((1, 4)))["params"]
        return TrainState.create(apply_fn=module.apply, params=params, tx=optax.sgd(0.1))

    @jax.jit
    def step(state: Any, batch: Any) -> Any:
        def loss_of(encoder: Any, decoder: Any) -> Any:
            code = state["encoder"].apply_fn({"params": encoder}, batch["x"])
            return jnp.mean((state["decoder"].apply_fn({"params": decoder}, code) - batch["x"]) ** 2)

        gradient = jax.value_and_grad(loss_of, argnums=(0, 1))
        loss, (first, second) = gradient(state["encoder"].params, state["decoder"].params)
        after = {
            "encoder": state["encoder"].apply_gradients(grads=first),
            "decoder": state["decoder"].apply_gradients(grads=second),
        }
        return after, {"loss": loss}

    return {"encoder": state_of(Encoder()), "decoder": state_of(Decoder())}, step


def test_the_line_is_that_of_the_model_that_differs() -> None:
    report = compare.check(
        compare.TorchProgram(original), compare.JaxProgram(ported), drawn(size=6, x=(4,)), device="cpu"
    )
    (group,) = report.groups
    assert group.patch is not None, group.unpatched
    (change,) = group.patch.changes
    assert "linen.sigmoid" in change.removed[0]
    assert "jnp.tanh" in change.added[0]
