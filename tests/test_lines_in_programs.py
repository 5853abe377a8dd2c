"""The user's line of a fault, in steps that are traced once more: not jitted, with draws, and in loops."""

import inspect
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import pytest
import torch
from programs.common import drawn
from torch import nn
from torch.nn import functional

import compare

RATE = 0.1


class Original(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.Linear(4, 4), nn.Linear(4, 4)

    def forward(self, x: torch.Tensor, turns: int, noise: float) -> torch.Tensor:
        for _ in range(turns):
            if noise:
                x = x + noise * torch.randn_like(x)
            x = torch.tanh(self.first(x))
            x = self.second(x)
        return x


def original(turns: int = 1, noise: float = 0.0) -> compare.TorchProgram:
    def build() -> Any:
        torch.manual_seed(0)
        model = Original()
        optimizer = torch.optim.SGD(model.parameters(), RATE)

        def step(state: Any, batch: Any) -> Any:
            del state
            loss = functional.mse_loss(model(batch["x"], turns, noise), batch["y"])
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            return {"loss": loss}

        return {"model": model, "optimizer": optimizer}, step

    return compare.TorchProgram(build)


def layers(params: Any, x: Any) -> Any:
    x = jax.nn.relu(x @ params["first"]["kernel"] + params["first"]["bias"])
    return x @ params["second"]["kernel"] + params["second"]["bias"]


def noisy(params: Any, x: Any, key: Any) -> Any:
    return layers(params, x + 0.2 * jax.random.normal(key, x.shape))


def once(params: Any, x: Any, key: Any) -> Any:
    del key
    return layers(params, x)


def in_scan(params: Any, x: Any, key: Any) -> Any:
    return jax.lax.scan(lambda x, key: (noisy(params, x, key), None), x, jax.random.split(key, 2))[0]


def in_a_loop_without_draws(params: Any, x: Any, key: Any) -> Any:
    del key
    return jax.lax.fori_loop(0, 2, lambda _, x: layers(params, x), x)


def in_a_jitted_function(params: Any, x: Any, key: Any) -> Any:
    del key
    return jax.jit(layers)(params, x)


def port(output_of: Callable[..., Any], *, jitted: bool = True, looks: bool = False) -> compare.JaxProgram:
    def build() -> Any:
        params = {name: {"kernel": jnp.zeros((4, 4)), "bias": jnp.zeros(4)} for name in ("first", "second")}

        def step(state: Any, batch: Any) -> Any:
            key, own = jax.random.split(state["key"])

            def loss_of(params: Any) -> Any:
                return jnp.mean((output_of(params, batch["x"], own) - batch["y"]) ** 2)

            loss, gradients = jax.value_and_grad(loss_of)(state["params"])
            if looks and float(loss) > 1e6:
                gradients = jax.tree.map(jnp.zeros_like, gradients)
            params = jax.tree.map(lambda old, gradient: old - RATE * gradient, state["params"], gradients)
            return {"params": params, "key": key}, {"loss": loss}

        return {"params": params, "key": jax.random.key(0)}, jax.jit(step) if jitted else step

    return compare.JaxProgram(build)


@pytest.mark.parametrize(
    ("ours", "theirs"),
    [
        pytest.param(original(), port(once, jitted=False), id="not jitted"),
        pytest.param(original(), port(once, jitted=False, looks=True), id="looks at its loss"),
        pytest.param(original(noise=0.2), port(noisy), id="draws"),
        pytest.param(original(2, 0.2), port(in_scan), id="draws in a scan"),
        pytest.param(original(2), port(in_a_loop_without_draws), id="a loop"),
        pytest.param(original(), port(in_a_jitted_function), id="a jitted function"),
    ],
)
def test_the_line_of_a_fault_is_known(ours: Any, theirs: Any) -> None:
    report = compare.check(ours, theirs, drawn(x=(4,), y=(4,)), device="cpu")
    (edit,) = report.edits
    with open(edit.file, encoding="utf-8") as file:
        before = file.read()[: edit.start]
    assert before.count("\n") == inspect.getsourcelines(layers)[1], str(report)  # the line below the first
    assert edit.text.startswith("jnp.tanh(x @")


def halved(old: Any, new: Any) -> Any:
    return jax.tree.map(lambda a, b: 0.4 * a + 0.6 * b, old, new)


def passed_on(params: Any, target: Any, x: Any, y: Any) -> Any:
    def loss_of(params: Any) -> Any:
        return jnp.mean((x @ params["weight"].T + params["bias"] - y) ** 2)

    loss, gradients = jax.value_and_grad(loss_of)(params)
    return loss, jax.tree.map(lambda old, gradient: old - RATE * gradient, params, gradients), target


def test_the_line_of_a_step_that_computes_something_else_than_the_first() -> None:
    """Python decides at which steps the target follows: in the first it is passed on."""

    def ours() -> Any:
        net, target = nn.Linear(4, 3), nn.Linear(4, 3)
        optimizer, count = torch.optim.SGD(net.parameters(), RATE), 0

        def step(_: Any, batch: Any) -> Any:
            nonlocal count
            loss = functional.mse_loss(net(batch["x"]), batch["y"])
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            count += 1
            if count % 2 == 0:
                with torch.no_grad():
                    for old, new in zip(target.parameters(), net.parameters(), strict=True):
                        old.lerp_(new, 0.5)
            return {"loss": loss}

        return {"net": net, "target": target, "optimizer": optimizer}, step

    def theirs() -> Any:
        first, second, count = jax.jit(passed_on), jax.jit(halved), 0

        def step(state: Any, batch: Any) -> Any:
            nonlocal count
            loss, net, target = first(state["net"], state["target"], batch["x"], batch["y"])
            count += 1
            if count % 2 == 0:
                target = second(target, net)
            return {"net": net, "target": target}, {"loss": loss}

        params = {"weight": jnp.zeros((3, 4)), "bias": jnp.zeros(3)}
        return {"net": params, "target": params}, step

    sides = compare.TorchProgram(ours), compare.JaxProgram(theirs)
    report = compare.check(*sides, drawn(x=(4,), y=(3,)), steps=4, device="cpu", quick=True)
    assert report.divergence is not None
    assert (report.divergence.step, report.divergence.torch) == (1, "target.weight")
    lines = {each.source.line for each in report.divergence.lines if each.side == "jax"}
    start = inspect.getsourcelines(halved)[1]
    assert lines == {start + 1}, str(report)
