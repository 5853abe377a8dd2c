"""Differences of an optimizer that show in what the same step computes after its update, and not at the end alone."""

import functools
from collections.abc import Callable
from typing import Any

import jax.numpy as jnp
import numpy as np
import optax
import pytest
import torch
from flax import nnx
from programs.common import FlaxNet, TorchNet, drawn
from torch.nn import functional

import compare

RATE = 1e-2


def of_two_models() -> Any:
    """Update a critic, and then an actor through the critic, as a GAN and as DDPG do."""
    actor, critic = TorchNet(), torch.nn.Linear(3, 1)
    first, second = torch.optim.Adam(critic.parameters(), RATE), torch.optim.Adam(actor.parameters(), RATE)

    def step(_: Any, batch: Any) -> Any:
        loss = functional.mse_loss(critic(batch["y"]), batch["x"][:, :1])
        first.zero_grad()
        loss.backward()
        first.step()
        value = critic(actor(batch["x"])).mean()
        second.zero_grad()
        (-value).backward()
        second.step()
        return {"critic_loss": loss.item(), "value": value.item()}

    return {"actor": actor, "critic": critic, "first": first, "second": second}, step


def port_of_two_models(first: optax.GradientTransformation) -> Callable[[], Any]:
    def build() -> Any:
        rngs = nnx.Rngs(0)
        actor, critic = FlaxNet(rngs), nnx.Linear(3, 1, rngs=rngs)
        optimizers = nnx.Optimizer(critic, first, wrt=nnx.Param), nnx.Optimizer(actor, optax.adam(RATE), wrt=nnx.Param)

        @nnx.jit
        def step(state: Any, batch: Any) -> Any:
            actor, critic, first, second = (state[name] for name in ("actor", "critic", "first", "second"))

            def critic_loss(critic: Any) -> Any:
                return jnp.mean((critic(batch["y"]) - batch["x"][:, :1]) ** 2)

            loss, gradients = nnx.value_and_grad(critic_loss)(critic)
            first.update(critic, gradients)
            value, gradients = nnx.value_and_grad(lambda actor: -jnp.mean(critic(actor(batch["x"]))))(actor)
            second.update(actor, gradients)
            return state, {"critic_loss": loss, "value": -value}

        return {"actor": actor, "critic": critic, "first": optimizers[0], "second": optimizers[1]}, step

    return build


def of_epochs(norm: float | None = None, made: Callable[..., torch.optim.Optimizer] = torch.optim.Adam) -> Any:
    """Update twice within a step, as the epochs of PPO do."""
    model = TorchNet()
    optimizer = made(model.parameters(), RATE)

    def step(_: Any, batch: Any) -> Any:
        for _ in range(2):
            loss = functional.mse_loss(model(batch["x"]), batch["y"])
            optimizer.zero_grad()
            loss.backward()
            if norm is not None:
                torch.nn.utils.clip_grad_norm_(model.parameters(), norm)
            optimizer.step()
        return {"loss": loss}

    return {"model": model, "optimizer": optimizer}, step


def port_of_epochs(made: optax.GradientTransformation) -> Callable[[], Any]:
    def build() -> Any:
        model = FlaxNet(nnx.Rngs(0))
        optimizer = nnx.Optimizer(model, made, wrt=nnx.Param)

        @nnx.jit
        def step(state: Any, batch: Any) -> Any:
            model, optimizer = state["model"], state["optimizer"]
            for _ in range(2):
                loss, gradients = nnx.value_and_grad(lambda model: jnp.mean((model(batch["x"]) - batch["y"]) ** 2))(
                    model
                )
                optimizer.update(model, gradients)
            return state, {"loss": loss}

        return {"model": model, "optimizer": optimizer}, step

    return build


def checked(original: Callable[[], Any], port: Callable[[], Any]) -> compare.Report:
    batches = drawn(x=(5,), y=(3,))
    return compare.check(compare.TorchProgram(original), compare.JaxProgram(port), batches, device="cpu", quick=True)


FAULTS = [
    (optax.adam(3e-2), "learning rate"),
    (optax.adam(RATE, b1=0.8), "first moment's decay"),
    (optax.adam(RATE, eps=1e-3), "epsilon"),
]


@pytest.mark.parametrize(("made", "cause"), FAULTS)
def test_an_update_is_placed_before_what_follows_from_it(made: Any, cause: str) -> None:
    report = checked(of_two_models, port_of_two_models(made))
    assert report.divergence is not None
    assert report.divergence.stage == "update", str(report)
    assert report.divergence.torch.startswith("critic.")
    assert report.divergence.cause is not None, str(report)
    assert report.divergence.cause.name == cause


def test_a_decay_that_the_port_leaves_out_is_a_setting_of_zero() -> None:
    decaying = functools.partial(torch.optim.AdamW, weight_decay=0.1)
    report = checked(lambda: of_epochs(made=decaying), port_of_epochs(optax.adam(RATE)))
    assert report.divergence is not None
    assert report.divergence.cause is not None, str(report)
    assert report.divergence.cause.name == "weight decay"
    assert report.divergence.cause.fix == "optax.adamw(..., weight_decay=0.1)"


@pytest.mark.parametrize(("made", "cause"), FAULTS)
def test_a_setting_of_an_optimizer_that_steps_several_times_is_read_in_the_port(made: Any, cause: str) -> None:
    report = checked(of_epochs, port_of_epochs(made))
    assert report.divergence is not None
    assert report.divergence.cause is not None, str(report)
    assert report.divergence.cause.name == cause
    assert report.divergence.cause.fix.startswith("optax.adam(..., ")


@pytest.mark.parametrize(
    ("rate", "norm", "cause"),
    [
        (RATE, 0.1, "clipping without 1e-6"),
        (RATE, 0.2, "clipping"),
        (3e-2, 0.1, "learning rate and clipping without 1e-6"),
    ],
)
def test_a_port_that_clips_as_optax_does_is_searched_with_that(rate: float, norm: float, cause: str) -> None:
    made = optax.chain(optax.clip_by_global_norm(norm), optax.adam(rate))
    report = checked(lambda: of_epochs(0.1), port_of_epochs(made))
    assert report.divergence is not None
    assert report.divergence.cause is not None, str(report)
    assert report.divergence.cause.name == cause


@pytest.mark.parametrize("made", [optax.sgd(0.1), optax.adam(optax.linear_schedule(RATE, 0.0, 20))])
def test_what_is_no_number_has_no_number_as_its_cause(made: Any) -> None:
    report = checked(of_epochs, port_of_epochs(made))
    assert report.verdict == "mismatch"
    assert report.divergence is not None
    assert report.divergence.cause is None, str(report)


@pytest.mark.parametrize(
    ("original", "port"),
    [(of_two_models, port_of_two_models(optax.adam(RATE))), (of_epochs, port_of_epochs(optax.adam(RATE)))],
)
def test_the_right_ports_match(original: Callable[[], Any], port: Callable[[], Any]) -> None:
    report = checked(original, port)
    assert report.verdict == "match", str(report)
    assert np.isfinite(report.quantities[0].error64).all()
