"""Noise that both sides draw for each weight: a port draws it in the layout of its own weights, and in their order."""

from collections import OrderedDict
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
from programs.common import drawn, trained_in_torch
from torch import nn
from torch.nn import functional

import compare

RATE = 0.1


def batches() -> list[dict[str, np.ndarray]]:
    return drawn(size=8, x=(5,), y=(3,))


class Noisy(torch.optim.SGD):
    """Adds noise to each gradient, as a differentially private optimizer does."""

    @torch.no_grad()
    def step(self, closure: Any = None) -> Any:
        for group in self.param_groups:
            for parameter in group["params"]:
                parameter.grad.add_(0.1 * torch.randn_like(parameter))
        return super().step(closure)


def original() -> Any:
    torch.manual_seed(0)
    # The middle layer is square: its shape does not tell the layout of its noise.
    model = nn.Sequential(nn.Linear(5, 4), nn.Tanh(), nn.Linear(4, 4), nn.Tanh(), nn.Linear(4, 3))
    return trained_in_torch(
        model, Noisy(model.parameters(), RATE), lambda net, b: functional.mse_loss(net(b["x"]), b["y"])
    )


def port(*, kernels: bool, scale: float) -> Any:
    """Give a port whose leaves come in alphabetical order: biases before weights."""
    sizes, name = ((5, 4), (4, 4), (4, 3)), "kernel" if kernels else "weight"

    def build() -> Any:
        @jax.jit
        def step(state: Any, batch: Any) -> Any:
            def loss_of(params: Any) -> Any:
                x = batch["x"]
                for number in (0, 2, 4):
                    own = params[str(number)]
                    x = x @ (own[name] if kernels else own[name].T) + own["bias"]
                    x = jnp.tanh(x) if number < 4 else x
                return jnp.mean((x - batch["y"]) ** 2)

            loss, slopes = jax.value_and_grad(loss_of)(state["model"])
            key, own = jax.random.split(state["key"])
            leaves, tree = jax.tree.flatten(slopes)
            keys = jax.random.split(own, len(leaves))
            noisy = [each + scale * jax.random.normal(k, each.shape) for each, k in zip(leaves, keys, strict=True)]
            slopes = jax.tree.unflatten(tree, noisy)
            return {"model": jax.tree.map(lambda p, g: p - RATE * g, state["model"], slopes), "key": key}, {
                "loss": loss
            }

        layers = [{name: jnp.zeros(size if kernels else size[::-1]), "bias": jnp.zeros(size[1])} for size in sizes]
        return {"model": dict(zip("024", layers, strict=True)), "key": jax.random.key(0)}, step

    return build


@pytest.mark.parametrize("kernels", [True, False], ids=["kernels", "torch's weights"])
def test_noise_is_replayed_in_the_layout_of_the_weights(kernels: bool) -> None:
    report = compare.check(
        compare.TorchProgram(original), compare.JaxProgram(port(kernels=kernels, scale=0.1)), batches(), device="cpu"
    )
    assert report.verdict == "match", str(report)


def test_noise_of_another_size_is_a_difference() -> None:
    report = compare.check(
        compare.TorchProgram(original), compare.JaxProgram(port(kernels=True, scale=0.2)), batches(), device="cpu"
    )
    assert report.divergence is not None
    assert report.divergence.stage == "update"
    assert not report.nondeterministic


def test_noise_of_weights_of_one_shape_in_another_order() -> None:
    """All weights are square, so that neither their shapes nor the layout alone tells what belongs together."""

    def build() -> Any:
        torch.manual_seed(0)
        model = nn.Sequential(OrderedDict(query=nn.Linear(5, 5, bias=False), answer=nn.Linear(5, 5, bias=False)))
        return trained_in_torch(
            model, Noisy(model.parameters(), RATE), lambda net, b: functional.mse_loss(net(b["x"]), b["y"])
        )

    def ported() -> Any:
        @jax.jit
        def step(state: Any, batch: Any) -> Any:
            def loss_of(params: Any) -> Any:
                output = batch["x"] @ params["query"]["kernel"] @ params["answer"]["kernel"]
                return jnp.mean((output - batch["y"]) ** 2)

            loss, slopes = jax.value_and_grad(loss_of)(state["model"])
            key, own = jax.random.split(state["key"])
            leaves, tree = jax.tree.flatten(slopes)
            keys = jax.random.split(own, len(leaves))
            noisy = [each + 0.1 * jax.random.normal(k, each.shape) for each, k in zip(leaves, keys, strict=True)]
            model = jax.tree.map(lambda p, g: p - RATE * g, state["model"], jax.tree.unflatten(tree, noisy))
            return {"model": model, "key": key}, {"loss": loss}

        model = {name: {"kernel": jnp.zeros((5, 5))} for name in ("query", "answer")}
        return {"model": model, "key": jax.random.key(0)}, step

    report = compare.check(
        compare.TorchProgram(build), compare.JaxProgram(ported), drawn(size=8, x=(5,), y=(5,)), device="cpu"
    )
    assert report.verdict == "match", str(report)
