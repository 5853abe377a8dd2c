"""Steps that apply a model to parameters which they have updated themselves, as MAML does (Finn et al., 2017)."""

from typing import Any

import jax
import jax.numpy as jnp
import optax
import pytest
import torch
from flax import linen
from programs.common import drawn
from torch.nn import functional

import compare

RATE, TASKS = 0.1, 2


def original() -> Any:
    model = torch.nn.Sequential(torch.nn.Linear(4, 8), torch.nn.Tanh(), torch.nn.Linear(8, 3))
    optimizer = torch.optim.Adam(model.parameters(), 1e-2)

    def step(_: Any, batch: Any) -> Any:
        losses = []
        for x, y in zip(batch["x"].chunk(TASKS), batch["y"].chunk(TASKS), strict=True):
            fast: dict[str, torch.Tensor] = dict(model.named_parameters())
            for _ in range(2):
                loss = functional.mse_loss(torch.func.functional_call(model, fast, (x,)), y)
                gradients = torch.autograd.grad(loss, list(fast.values()), create_graph=True)
                fast = {name: p - RATE * g for (name, p), g in zip(fast.items(), gradients, strict=True)}
            losses.append(functional.mse_loss(torch.func.functional_call(model, fast, (x,)), y))
        loss = torch.stack(losses).mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        return {"loss": loss}

    return {"model": model, "optimizer": optimizer}, step


class Net(linen.Module):
    @linen.compact
    def __call__(self, x: Any) -> Any:
        return linen.Dense(3)(jnp.tanh(linen.Dense(8)(x)))


def port(rate: float, *, scanned: bool, conditional: bool = False) -> Any:
    net, adam = Net(), optax.adam(1e-2)

    def build() -> Any:
        params = net.init(jax.random.key(0), jnp.zeros((1, 4)))["params"]

        def adapted(params: Any, x: Any, y: Any) -> Any:
            def loss_of(params: Any) -> Any:
                return jnp.mean((net.apply({"params": params}, x) - y) ** 2)

            def turn(params: Any, _: Any) -> Any:
                return jax.tree.map(lambda p, g: p - rate * g, params, jax.grad(loss_of)(params)), None

            if scanned:
                params, _ = jax.lax.scan(turn, params, None, 2)
            else:
                params, _ = turn(turn(params, None)[0], None)
            if conditional:
                return jax.lax.cond(jnp.sum(x**2) >= 0, loss_of, lambda _: jnp.zeros(()), params)
            return loss_of(params)

        @jax.jit
        def step(state: Any, batch: Any) -> Any:
            def loss_of(params: Any) -> Any:
                tasks = zip(jnp.split(batch["x"], TASKS), jnp.split(batch["y"], TASKS), strict=True)
                return jnp.mean(jnp.stack([adapted(params, x, y) for x, y in tasks]))

            loss, gradients = jax.value_and_grad(loss_of)(state["params"])
            updates, moments = adam.update(gradients, state["moments"])
            return {"params": optax.apply_updates(state["params"], updates), "moments": moments}, {"loss": loss}

        return {"params": params, "moments": adam.init(params)}, step

    return compare.JaxProgram(build)


@pytest.mark.parametrize("form", [{"scanned": False}, {"scanned": True}, {"scanned": False, "conditional": True}])
def test_the_calls_with_updated_parameters_are_those_of_the_model(form: dict[str, bool]) -> None:
    batches = drawn(x=(4,), y=(3,))
    report = compare.check(compare.TorchProgram(original), port(RATE, **form), batches, device="cpu", quick=True)
    assert report.verdict == "match", str(report)
    compared = {quantity.torch for quantity in report.quantities if quantity.stage == "forward"}
    assert {"model (6th call) output", "model.2 (6th call) output"} <= compared, compared
    assert not any("calls of" in limit for limit in report.limits), report.limits


def test_another_rate_of_the_inner_updates_is_a_cause() -> None:
    batches = drawn(x=(4,), y=(3,))
    report = compare.check(compare.TorchProgram(original), port(0.05, scanned=False), batches, device="cpu", quick=True)
    assert report.divergence is not None
    assert report.divergence.cause is not None, str(report)
    assert report.divergence.cause.name == "constant"
    assert str(RATE) in report.divergence.cause.fix
    assert report.divergence.torch == "model.0 (2nd call)"


def test_an_average_of_two_models_takes_the_place_of_neither() -> None:
    """Torch's step applies a model to the mean of two models' parameters; the port's call is no call of either."""

    def both() -> Any:
        one, other = torch.nn.Linear(4, 3), torch.nn.Linear(4, 3)
        optimizer = torch.optim.SGD([*one.parameters(), *other.parameters()], 0.1)

        def step(_: Any, batch: Any) -> Any:
            x, y = batch["x"], batch["y"]
            weight, bias = (one.weight + other.weight) / 2, (one.bias + other.bias) / 2
            loss = ((one(x) - y) ** 2 + (other(x) - y) ** 2 + (functional.linear(x, weight, bias) - y) ** 2).mean()
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            return {"loss": loss}

        return {"one": one, "other": other, "optimizer": optimizer}, step

    def theirs() -> Any:
        net, sgd = linen.Dense(3), optax.sgd(0.1)
        params = {name: net.init(jax.random.key(0), jnp.zeros((1, 4)))["params"] for name in ("one", "other")}

        @jax.jit
        def step(state: Any, batch: Any) -> Any:
            def loss_of(models: Any) -> Any:
                mean = jax.tree.map(lambda a, b: (a + b) / 2, models["one"], models["other"])
                outputs = (net.apply({"params": each}, batch["x"]) for each in (models["one"], models["other"], mean))
                return jnp.mean(sum((output - batch["y"]) ** 2 for output in outputs))

            models = {name: state[name] for name in ("one", "other")}
            loss, gradients = jax.value_and_grad(loss_of)(models)
            updates, moments = sgd.update(gradients, state["moments"])
            return {**optax.apply_updates(models, updates), "moments": moments}, {"loss": loss}

        return {**params, "moments": sgd.init(params)}, step

    batches = drawn(x=(4,), y=(3,))
    report = compare.check(compare.TorchProgram(both), compare.JaxProgram(theirs), batches, device="cpu", quick=True)
    assert report.verdict == "match", str(report)
    compared = {quantity.torch for quantity in report.quantities if quantity.stage == "forward"}
    assert {"one output", "other output"} <= compared, compared
    assert not any("2nd call" in name for name in compared), compared
