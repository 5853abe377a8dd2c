"""Gradients that are accumulated: over micro-batches along the first axis, or over several steps."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import torch
from flax import nnx
from programs.common import drawn, trained, trained_in_torch
from torch.nn import functional

import compare

MICRO, EVERY = 3, 4


def model() -> Any:
    torch.manual_seed(0)
    return torch.nn.Linear(5, 2)


def loss_of(port: Any, batch: Any) -> Any:
    return jnp.mean((port(batch["x"]) - batch["y"]) ** 2)


def batches(size: int, *shape: int) -> list[dict[str, np.ndarray]]:
    return drawn(size=size, x=(*shape, 5), y=(*shape, 2))


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
    def of_micro_batches(port: Any, batch: Any) -> Any:
        graph, params = nnx.split(port)
        _, losses = jax.lax.scan(lambda _, each: (None, loss_of(nnx.merge(graph, params), each)), None, batch)
        return losses.mean()

    return trained(nnx.Linear(5, 2, rngs=nnx.Rngs(0)), optax.sgd(0.1), of_micro_batches)


def test_another_number_of_micro_batches_is_no_other_batch_size() -> None:
    sides = compare.TorchProgram(over_micro_batches), compare.JaxProgram(by_scan)
    report = compare.check(*sides, batches(MICRO, 4), device="cpu")
    assert report.ok, str(report)
    assert any("over which torch loops" in line for line in report.unexercised)


def returns_of_a_rollout(length: int) -> Any:
    def loss_of(net: Any, batch: Any) -> Any:
        returns, total = torch.zeros_like(batch["y"]), torch.zeros(())
        for time in reversed(range(length)):
            total = batch["y"][time] + 0.9 * total
            returns[time] = total
        return functional.mse_loss(net(batch["x"]), returns)

    def build() -> Any:
        net = model()
        return trained_in_torch(net, torch.optim.SGD(net.parameters(), 0.1), loss_of)

    return build


def returns_by_scan() -> Any:
    def of_returns(port: Any, batch: Any) -> Any:
        def before(total: Any, reward: Any) -> Any:
            total = reward + 0.9 * total
            return total, total

        _, returns = jax.lax.scan(before, jnp.zeros_like(batch["y"][0]), batch["y"], reverse=True)
        return loss_of(port, {**batch, "y": returns})

    return trained(nnx.Linear(5, 2, rngs=nnx.Rngs(0)), optax.sgd(0.1), of_returns)


def test_a_longer_rollout_is_no_other_batch_size() -> None:
    """Torch's loop is over the length that the training has; another length would be another setting."""
    sides = compare.TorchProgram(returns_of_a_rollout(MICRO)), compare.JaxProgram(returns_by_scan)
    report = compare.check(*sides, batches(MICRO, 4), device="cpu")
    assert report.ok, str(report)
    assert any("over which torch loops" in line for line in report.unexercised)


def first_of_two(net: Any, batch: Any) -> Any:
    state = torch.stack([net(batch["x"]), net(batch["x"])])[0]
    return ((state - batch["y"]) ** 2).sum() / MICRO


def test_one_of_two_states_is_no_loop_over_a_batch() -> None:
    """The number of examples is written into torch's step, and no loop reads them one by one."""

    def build() -> Any:
        net = model()
        return trained_in_torch(net, torch.optim.SGD(net.parameters(), 0.1), first_of_two)

    def port() -> Any:
        of_batch = lambda port, batch: ((port(batch["x"]) - batch["y"]) ** 2).sum() / len(batch["x"])  # noqa: E731
        return trained(nnx.Linear(5, 2, rngs=nnx.Rngs(0)), optax.sgd(0.1), of_batch)

    report = compare.check(compare.TorchProgram(build), compare.JaxProgram(port), batches(MICRO), device="cpu")
    assert report.divergence is not None, str(report)
    assert "another batch size" in report.headline


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
        taken = optax.MultiSteps(optax.sgd(0.1, momentum=momentum), EVERY)
        return trained(nnx.Linear(5, 2, rngs=nnx.Rngs(0)), taken.gradient_transformation(), loss_of)

    return build


def test_as_many_steps_are_taken_as_two_updates_need() -> None:
    original = compare.TorchProgram(over_steps)
    right = compare.check(original, compare.JaxProgram(by_multi_steps(0.9)), batches(4), device="cpu", quick=True)
    wrong = compare.check(original, compare.JaxProgram(by_multi_steps(0.5)), batches(4), device="cpu", quick=True)
    assert right.ok, str(right)
    assert right.settings["steps"] == 2 * EVERY
    assert wrong.divergence is not None
    assert wrong.divergence.step == 2 * EVERY - 1
