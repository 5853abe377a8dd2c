"""Each of these small changes to one side only is a mismatch, on every seed: 2 here, 20 in `make test-all`."""

import functools
import os
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import optax
import pytest
import torch

import compare
import jaxnet
import torchnet

SEEDS = range(int(os.environ.get("SEEDS", "2")))
SHAPE = (32, 40, 40, 8)
"""Smaller than the notebook's, with a square first weight."""

SETTINGS: dict[str, tuple[str, dict[str, Any]]] = {
    "manual learning rate": ("manual", {"learning_rate": 1.0001e-6}),
    "autograd learning rate": ("autograd", {"learning_rate": 1.0001e-6}),
    "module learning rate": ("module", {"learning_rate": 1.0001e-4}),
    "adam learning rate": ("adam", {"optimizer": optax.adam(1.0001e-4)}),
    "eps 1e-7": ("adam", {"optimizer": optax.adam(1e-4, eps=1e-7)}),
    "eps_root": ("adam", {"optimizer": optax.adam(1e-4, eps=0, eps_root=1e-8)}),
    "b2 0.9991": ("adam", {"optimizer": optax.adam(1e-4, b2=0.9991)}),
}


@functools.cache
def assert_that_it_matches(variant: str, seed: int) -> compare.Problem:
    """Without the change, the check passes: it is the change that is caught."""
    problem = compare.draw(seed, biases=variant in ("module", "adam"), shape=SHAPE)
    compare.notebook.run(variant, problem=problem, steps=3, device="cpu").raise_on_mismatch()
    return problem


def assert_caught(variant: str, seed: int, **sides: Any) -> compare.Divergence:
    problem = assert_that_it_matches(variant, seed)
    report = compare.notebook.run(variant, problem=problem, steps=3, device="cpu", **sides)
    assert report.verdict == "mismatch"
    assert report.divergence is not None
    with pytest.raises(AssertionError, match=rf"{variant}: mismatch at step {report.divergence.step}"):
        report.raise_on_mismatch()
    return report.divergence


@pytest.mark.parametrize("change", SETTINGS)
@pytest.mark.parametrize("side", ["jax", "torch"])
def test_settings(change: str, side: str) -> None:
    variant, settings = SETTINGS[change]
    program = getattr(jaxnet, variant)
    if side == "torch":
        if change == "eps_root":
            pytest.skip("torch.optim.Adam has no eps inside the root")
        program = getattr(torchnet, variant)
        settings = TORCH_SETTINGS.get(change, settings)
    altered = compare.altered(program, **settings)
    for seed in SEEDS:
        divergence = assert_caught(variant, seed, **{side: altered})
        assert divergence.step == 0
        assert divergence.stage == "update"
        assert f"look for the bug on the {side} side" in divergence.opinion


TORCH_SETTINGS: dict[str, dict[str, Any]] = {
    "adam learning rate": {"optimizer": lambda params: torch.optim.Adam(params, 1.0001e-4)},
    "eps 1e-7": {"optimizer": lambda params: torch.optim.Adam(params, 1e-4, eps=1e-7)},
    "b2 0.9991": {"optimizer": lambda params: torch.optim.Adam(params, 1e-4, betas=(0.9, 0.9991))},
}


def loss_after_update(state: Any, x: jax.Array, y: jax.Array) -> jaxnet.Step:
    _, gradients, after = jaxnet.autograd.step(state, x, y)
    return jaxnet.Step(jaxnet.autograd.loss_fn(after.weights, x, y), gradients, after)


def mean_loss(weights: Any, x: jax.Array, y: jax.Array) -> jax.Array:
    return jaxnet.module.loss_fn(weights, x, y) / y.size


def without_second_bias(weights: Any, x: jax.Array, y: jax.Array) -> jax.Array:
    first, relu, second = weights.layers
    return jnp.square(relu(first(x)) @ second.kernel[...] - y).sum()


def transposed(problem: Any, **settings: Any) -> Any:
    state, x, y = jaxnet.manual.start(problem, **settings)
    return jaxnet.State(state.weights | {"w1": state.weights["w1"].T}), x, y


def test_loss_taken_after_the_update(stepped: Callable[..., Any]) -> None:
    port = stepped(jaxnet.autograd.start, jax.jit(loss_after_update))
    for seed in SEEDS:
        divergence = assert_caught("autograd", seed, jax=port)
        assert (divergence.step, divergence.stage) == (0, "loss")


def test_gradients_not_zeroed_between_steps() -> None:
    """On the torch side, where it happens: zero_grad forgotten."""

    def step(x: Any, y: Any, model: Any, optimizer: torch.optim.Optimizer) -> torchnet.Step:
        loss = torch.nn.functional.mse_loss(model(x), y, reduction="sum")
        loss.backward()
        optimizer.step()
        params = dict(model.named_parameters())
        gradients = {name: param.grad.clone() for name, param in params.items()}
        return torchnet.Step(loss.detach(), gradients, params, {name: optimizer.state[p] for name, p in params.items()})

    forgetful = compare.Altered(torchnet.adam.start, step, torchnet.adam.train)
    for seed in SEEDS:
        divergence = assert_caught("adam", seed, torch=forgetful)
        assert (divergence.step, divergence.stage) == (1, "gradient")
        assert "look for the bug on the torch side" in divergence.opinion


def test_mean_in_place_of_sum(replaced_loss: Callable[..., Any]) -> None:
    for variant in ("module", "adam"):
        port = replaced_loss(getattr(jaxnet, variant), mean_loss)
        for seed in SEEDS:
            divergence = assert_caught(variant, seed, jax=port)
            assert (divergence.step, divergence.stage) == (0, "loss")


def test_a_bias_left_out(replaced_loss: Callable[..., Any]) -> None:
    port = replaced_loss(jaxnet.module, without_second_bias)
    for seed in SEEDS:
        divergence = assert_caught("module", seed, jax=port)
        assert (divergence.step, divergence.stage) == (0, "loss")


def test_a_square_weight_transposed(stepped: Callable[..., Any]) -> None:
    port = stepped(transposed, jaxnet.manual.step)
    for variant in ("numpy", "manual"):
        for seed in SEEDS:
            divergence = assert_caught(variant, seed, jax=port)
            assert (divergence.step, divergence.stage) == (0, "loss")


@pytest.mark.parametrize("more", [-1, 1])
@pytest.mark.parametrize("side", ["jax", "torch"])
@pytest.mark.parametrize("variant", ["manual", "autograd", "module", "adam"])
def test_one_step_more_or_fewer(variant: str, side: str, more: int) -> None:
    program = getattr({"jax": jaxnet, "torch": torchnet}[side], variant)

    def train(problem: Any, steps: int, **settings: Any) -> Any:
        return program.train(problem, steps + more, **settings)

    for seed in SEEDS:
        divergence = assert_caught(variant, seed, **{side: compare.Altered(program.start, program.step, train)})
        assert divergence.step == min(3, 3 + more)
        assert f"the {side} side's training run has {3 + more} losses" in divergence.opinion


def test_a_side_that_disagrees_with_itself() -> None:
    def train(problem: Any, steps: int, **settings: Any) -> jaxnet.Trajectory:
        losses, weights = jaxnet.manual.train(problem, steps, **settings)
        return jaxnet.Trajectory(losses.at[1].multiply(1.001), weights)

    port = compare.Altered(jaxnet.manual.start, jaxnet.manual.step, train)
    divergence = assert_caught("manual", 0, jax=port)
    assert divergence.step == 1
    assert "not deterministic" in divergence.opinion
