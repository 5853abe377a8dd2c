"""Gradients that are accumulated: over micro-batches along the first axis, or over several steps."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import torch
from flax import nnx
from torch.nn import functional

import compare

MICRO, EVERY = 3, 4


def model() -> Any:
    torch.manual_seed(0)
    return torch.nn.Linear(5, 2)


def loss_of(port: Any, batch: Any) -> Any:
    return jnp.mean((port(batch["x"]) - batch["y"]) ** 2)


def batches(*shape: int) -> list[dict[str, np.ndarray]]:
    rng = np.random.default_rng(0)
    return [{"x": rng.normal(size=(*shape, 5)), "y": rng.normal(size=(*shape, 2))} for _ in range(3)]


def over_micro_batches() -> Any:
    net = model()
    optimizer = torch.optim.SGD(net.parameters(), 0.1)

    def step(_: Any, batch: Any) -> Any:
        optimizer.zero_grad()
        total = torch.zeros(())
        for x, y in zip(batch["x"], batch["y"], strict=True):
            loss = functional.mse_loss(net(x), y) / MICRO
            loss.backward()
            total = total + loss.detach()
        optimizer.step()
        return {"loss": total}

    return {"model": net, "optimizer": optimizer}, step


def by_scan() -> Any:
    port = nnx.Linear(5, 2, rngs=nnx.Rngs(0))
    optimizer = nnx.Optimizer(port, optax.sgd(0.1), wrt=nnx.Param)

    @nnx.jit
    def step(state: Any, batch: Any) -> Any:
        graph, params = nnx.split(state["model"], nnx.Param)

        def loss(params: Any) -> Any:
            _, losses = jax.lax.scan(lambda _, each: (None, loss_of(nnx.merge(graph, params), each)), None, batch)
            return losses.mean()

        total, gradients = jax.value_and_grad(loss)(params)
        state["optimizer"].update(state["model"], gradients)
        return state, {"loss": total}

    return {"model": port, "optimizer": optimizer}, step


def test_another_number_of_micro_batches_is_no_other_batch_size() -> None:
    sides = compare.TorchProgram(over_micro_batches), compare.JaxProgram(by_scan)
    report = compare.check(*sides, batches(MICRO, 4), device="cpu")
    assert report.ok, str(report)
    assert any("over which torch loops" in line for line in report.unexercised)


def returns_of_a_rollout(length: int) -> Any:
    def build() -> Any:
        net = model()
        optimizer = torch.optim.SGD(net.parameters(), 0.1)

        def step(_: Any, batch: Any) -> Any:
            returns, total = torch.zeros_like(batch["y"]), torch.zeros(())
            for time in reversed(range(length)):
                total = batch["y"][time] + 0.9 * total
                returns[time] = total
            loss = functional.mse_loss(net(batch["x"]), returns)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            return {"loss": loss}

        return {"model": net, "optimizer": optimizer}, step

    return build


def returns_by_scan() -> Any:
    port = nnx.Linear(5, 2, rngs=nnx.Rngs(0))
    optimizer = nnx.Optimizer(port, optax.sgd(0.1), wrt=nnx.Param)

    @nnx.jit
    def step(state: Any, batch: Any) -> Any:
        def before(total: Any, reward: Any) -> Any:
            total = reward + 0.9 * total
            return total, total

        _, returns = jax.lax.scan(before, jnp.zeros_like(batch["y"][0]), batch["y"], reverse=True)
        loss, gradients = nnx.value_and_grad(loss_of)(state["model"], {**batch, "y": returns})
        state["optimizer"].update(state["model"], gradients)
        return state, {"loss": loss}

    return {"model": port, "optimizer": optimizer}, step


def test_a_longer_rollout_is_no_other_batch_size() -> None:
    """Torch's loop is over the length that the training has; another length would be another setting."""
    sides = compare.TorchProgram(returns_of_a_rollout(MICRO)), compare.JaxProgram(returns_by_scan)
    report = compare.check(*sides, batches(MICRO, 4), device="cpu")
    assert report.ok, str(report)
    assert any("over which torch loops" in line for line in report.unexercised)


def over_steps() -> Any:
    net, taken = model(), [0]
    optimizer = torch.optim.SGD(net.parameters(), 0.1, momentum=0.9)

    def step(_: Any, batch: Any) -> Any:
        loss = functional.mse_loss(net(batch["x"]), batch["y"])
        (loss / EVERY).backward()
        taken[0] += 1
        if taken[0] % EVERY == 0:
            optimizer.step()
            optimizer.zero_grad()
        return {"loss": loss}

    return {"model": net, "optimizer": optimizer}, step


def by_multi_steps(momentum: float) -> Any:
    def build() -> Any:
        port = nnx.Linear(5, 2, rngs=nnx.Rngs(0))
        taken = optax.MultiSteps(optax.sgd(0.1, momentum=momentum), EVERY)
        optimizer = nnx.Optimizer(port, taken.gradient_transformation(), wrt=nnx.Param)

        @nnx.jit
        def step(state: Any, batch: Any) -> Any:
            loss, gradients = nnx.value_and_grad(loss_of)(state["model"], batch)
            state["optimizer"].update(state["model"], gradients)
            return state, {"loss": loss}

        return {"model": port, "optimizer": optimizer}, step

    return build


def test_as_many_steps_are_taken_as_two_updates_need() -> None:
    original = compare.TorchProgram(over_steps)
    right = compare.check(original, compare.JaxProgram(by_multi_steps(0.9)), batches(4), device="cpu", quick=True)
    wrong = compare.check(original, compare.JaxProgram(by_multi_steps(0.5)), batches(4), device="cpu", quick=True)
    assert right.ok, str(right)
    assert right.settings["steps"] == 2 * EVERY
    assert wrong.divergence is not None
    assert wrong.divergence.step == 2 * EVERY - 1
