"""In a program whose modules are Linen's, a fix of a layer names the layer that the user has."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
import torch
from flax import linen
from programs.common import drawn

import compare


class Net(torch.nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.inner, self.norm, self.outer = torch.nn.Linear(4, 8), torch.nn.LayerNorm(8), torch.nn.Linear(8, 2)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        result: torch.Tensor = self.outer(torch.relu(self.norm(self.inner(x))))
        return result


def normalized(module: linen.Module, x: jax.Array, eps: float) -> jax.Array:
    scale = module.param("scale", linen.initializers.ones, (x.shape[-1],))
    bias = module.param("bias", linen.initializers.zeros, (x.shape[-1],))
    var = jnp.var(x, -1, keepdims=True)
    return (x - jnp.mean(x, -1, keepdims=True)) * jax.lax.rsqrt(var + eps) * scale + bias


class LayerNorm(linen.Module):
    """The user's own, with another name for the setting than Flax's class of this name."""

    eps: float = 1e-5

    @linen.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        return normalized(self, x, self.eps)


class Written(linen.Module):
    """One whose number is in its code."""

    @linen.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        return normalized(self, x, 1e-6)


class Port(linen.Module):
    norm: Callable[[], linen.Module]

    @linen.compact
    def __call__(self, x: jax.Array) -> Any:
        hidden: Any = self.norm()(linen.Dense(8, name="inner")(x))
        return linen.Dense(2, name="outer")(linen.relu(hidden))


def original() -> Any:
    model = Net()
    optimizer = torch.optim.SGD(model.parameters(), 0.1)

    def step(state: Any, batch: Any) -> dict[str, Any]:
        del state
        loss = torch.nn.functional.mse_loss(model(batch["x"]), batch["y"])
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        return {"loss": loss}

    return {"model": model, "optimizer": optimizer}, step


def checked(norm: Callable[[], linen.Module]) -> compare.Report:
    def build() -> Any:
        model, sgd = Port(norm), optax.sgd(0.1)
        params = model.init(jax.random.key(0), jnp.zeros((1, 4)))["params"]

        @jax.jit
        def step(state: Any, batch: Any) -> Any:
            def loss_of(params: Any) -> jax.Array:
                return jnp.mean((model.apply({"params": params}, batch["x"]) - batch["y"]) ** 2)

            loss, gradients = jax.value_and_grad(loss_of)(state["params"])
            updates, optimizer = sgd.update(gradients, state["optimizer"])
            return {"params": optax.apply_updates(state["params"], updates), "optimizer": optimizer}, {"loss": loss}

        return {"params": params, "optimizer": sgd.init(params)}, step

    rng = np.random.default_rng(0)
    batches = [{"x": rng.normal(size=(8, 4)), "y": rng.normal(size=(8, 2))} for _ in range(2)]
    return compare.check(compare.TorchProgram(original), compare.JaxProgram(build), batches)


@pytest.mark.parametrize(
    ("norm", "fix"),
    [
        (lambda: linen.LayerNorm(name="norm"), "nn.LayerNorm(..., epsilon=1e-05)"),
        (lambda: LayerNorm(1e-6, name="norm"), "LayerNorm(..., eps=1e-05)"),
        (lambda: Written(name="norm"), "jax.lax.rsqrt(var + 1e-05)"),
    ],
)
def test_an_epsilon_is_given_to_the_layer_that_takes_it(norm: Callable[[], linen.Module], fix: str) -> None:
    divergence = checked(norm).divergence
    assert divergence is not None
    assert divergence.cause is not None
    assert divergence.cause.name == "epsilon"
    assert divergence.cause.fix == fix


def test_the_right_port_matches() -> None:
    assert checked(lambda: LayerNorm(name="norm")).verdict == "match"


def counting(rate: float, kept: float) -> optax.GradientTransformation:
    """Momentum by hand, with a count for each parameter, as torch's optimizers have it."""

    def update(gradients: Any, state: Any, params: Any = None) -> Any:
        del params
        traces = jax.tree.map(lambda old, new: kept * old + new, state["trace"], gradients)
        counts = jax.tree.map(lambda count: count + 1, state["n"])
        return jax.tree.map(lambda trace: -rate * trace, traces), {"trace": traces, "n": counts}

    def init(params: Any) -> Any:
        return {
            "trace": jax.tree.map(jnp.zeros_like, params),
            "n": jax.tree.map(lambda _: jnp.zeros(()), params),
        }

    return optax.GradientTransformation(init, update)


@pytest.mark.parametrize("together", [False, True])
def test_a_model_is_applied_to_its_new_parameters(together: bool) -> None:
    """As many calls as torch's: those after the update are known by what `optax.apply_updates` gives."""

    def original() -> Any:
        model = torch.nn.Linear(4, 3)
        optimizer = torch.optim.SGD(model.parameters(), 0.1, momentum=0.9)

        def step(_: Any, batch: Any) -> Any:
            loss = ((model(batch["x"]) - batch["y"]) ** 2).mean()
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            return {"loss": loss, "after": model(batch["x"]).mean()}

        return {"model": model, "optimizer": optimizer}, step

    def port() -> Any:
        model, optimizer = linen.Dense(3), counting(0.1, 0.9)
        params = model.init(jax.random.key(0), jnp.zeros((1, 4)))["params"]

        @jax.jit
        def step(state: Any, batch: Any) -> Any:
            def loss_of(params: Any) -> Any:
                return jnp.mean((model.apply({"params": params}, batch["x"]) - batch["y"]) ** 2)

            loss, gradients = jax.value_and_grad(loss_of)(state["params"])
            updates, moments = optimizer.update(gradients, state["moments"])
            if together:  # those of several models may be updated at once
                (params,) = optax.apply_updates((state["params"],), (updates,))
            else:
                params = optax.apply_updates(state["params"], updates)
            after: Any = model.apply({"params": params}, batch["x"])
            return {"params": params, "moments": moments}, {"loss": loss, "after": jnp.mean(after)}

        return {"params": params, "moments": optimizer.init(params)}, step

    batches = drawn(x=(4,), y=(3,))
    report = compare.check(compare.TorchProgram(original), compare.JaxProgram(port), batches, device="cpu", quick=True)
    assert report.verdict == "match", str(report)
    assert not [line for line in report.unexercised if "call" in line]
    assert [each for each in report.quantities if each.stage == "forward" and "2nd call" in each.torch], str(report)
