"""Programs of plain functions, whose modules nobody sees, and states with what is no weight."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
import torch
from flax import nnx
from programs.common import drawn, trained, trained_in_torch
from torch.nn import functional

import compare


def model() -> Any:
    torch.manual_seed(0)
    return torch.nn.Linear(4, 2)


def batches() -> list[dict[str, np.ndarray]]:
    return drawn(size=6, x=(4,), y=(2,))


def original(name: str) -> Any:
    def build() -> Any:
        net = model()
        optimizer = torch.optim.SGD(net.parameters(), 0.1)
        state, step = trained_in_torch(net, optimizer, lambda net, b: functional.mse_loss(net(b["x"]), b["y"]))
        return state, lambda state, batch: {name: step(state, batch)["loss"]}

    return build


PARAMS = {"weight": jnp.zeros((2, 4)), "bias": jnp.zeros(2)}


def learned(state: Any, batch: Any, transformation: Any) -> Any:
    """Give the loss of a linear layer, its updated parameters, and what the optimizer keeps."""

    def loss_of(params: Any) -> Any:
        return jnp.mean((batch["x"] @ params["weight"].T + params["bias"] - batch["y"]) ** 2)

    loss, gradients = jax.value_and_grad(loss_of)(state["model"])
    updates, kept = transformation.update(gradients, state["optimizer"])
    return loss, optax.apply_updates(state["model"], updates), kept


def plain(name: str, rate: float, momentum: float | None = None) -> Any:
    def build() -> Any:
        transformation = optax.sgd(rate, momentum)

        @jax.jit
        def step(state: Any, batch: Any) -> Any:
            loss, params, kept = learned(state, batch, transformation)
            return {"model": params, "optimizer": kept}, {name: loss}

        return {"model": PARAMS, "optimizer": transformation.init(PARAMS)}, step

    return build


def test_a_loss_of_another_name_is_compared_without_modules() -> None:
    """A GAN has a `d_loss` and a `g_loss`, and no module of plain functions has an output."""
    right = compare.check(
        compare.TorchProgram(original("d_loss")), compare.JaxProgram(plain("d_loss", 0.1)), batches(), device="cpu"
    )
    wrong = compare.check(
        compare.TorchProgram(original("d_loss")), compare.JaxProgram(plain("d_loss", 0.2)), batches(), device="cpu"
    )
    assert right.ok, str(right)
    assert wrong.divergence is not None
    assert wrong.divergence.stage == "update"


def with_metrics() -> Any:
    def loss_of(port: Any, batch: Any) -> Any:
        return jnp.mean((port(batch["x"]) - batch["y"]) ** 2)

    state, training_step = trained(nnx.Linear(4, 2, rngs=nnx.Rngs(0)), optax.sgd(0.1), loss_of)

    @nnx.jit
    def step(state: Any, batch: Any) -> Any:
        state, shown = training_step(state, batch)
        state["metrics"].update(**shown)
        return state, shown

    return {**state, "metrics": nnx.MultiMetric(loss=nnx.metrics.Average("loss"))}, step


def test_the_sums_of_metrics_are_no_weights() -> None:
    report = compare.check(
        compare.TorchProgram(original("loss")), compare.JaxProgram(with_metrics), batches(), device="cpu"
    )
    assert report.ok, str(report)


class Half(torch.nn.Module):
    """A sum of two layers of which the second has no effect: its outputs are hidden."""

    def __init__(self) -> None:
        super().__init__()
        self.used, self.hidden = torch.nn.Linear(4, 2), torch.nn.Linear(4, 2)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.used(x) + torch.tanh(self.hidden(x)) * 0.0


def half() -> Any:
    """Give the port, of plain functions; its second layer has another activation."""
    transformation = optax.sgd(0.1)
    params = {name: {"weight": jnp.zeros((2, 4)), "bias": jnp.zeros(2)} for name in ("used", "hidden")}

    @jax.jit
    def step(state: Any, batch: Any) -> Any:
        def loss_of(params: Any) -> Any:
            used, hidden = (batch["x"] @ each["weight"].T + each["bias"] for each in (params["used"], params["hidden"]))
            return jnp.mean((used + jax.nn.relu(hidden) * 0.0 - batch["y"]) ** 2)

        loss, gradients = jax.value_and_grad(loss_of)(state["model"])
        updates, kept = transformation.update(gradients, state["optimizer"])
        return {"model": optax.apply_updates(state["model"], updates), "optimizer": kept}, {"loss": loss}

    return {"model": params, "optimizer": transformation.init(params)}, step


def test_parameters_whose_gradient_is_zero_are_listed() -> None:
    def build() -> Any:
        torch.manual_seed(0)
        net = Half()
        optimizer = torch.optim.SGD(net.parameters(), 0.1)
        return trained_in_torch(net, optimizer, lambda net, b: functional.mse_loss(net(b["x"]), b["y"]))

    report = compare.check(compare.TorchProgram(build), compare.JaxProgram(half), batches(), device="cpu")
    assert report.ok, str(report)
    says = [line for line in report.unexercised if "the gradient is zero at every step" in line]
    assert [line.partition(":")[0] for line in says] == ["model.hidden.weight, model.hidden.bias"]


def by_hand() -> Any:
    """Give a torch program without an optimizer: a module and a bare tensor, whose updates the step writes itself."""
    net, scale = model(), torch.full((2,), 1.5, requires_grad=True)
    trained = [*net.parameters(), scale]

    def step(state: Any, batch: Any) -> Any:
        loss = functional.mse_loss(scale * state["model"](batch["x"]), batch["y"])
        for parameter in trained:
            parameter.grad = None
        loss.backward()
        with torch.no_grad():
            for parameter in trained:
                parameter -= 0.1 * parameter.grad
        return {"loss": loss}

    return {"model": net, "scale": scale}, step


def ported_by_hand(rate: float) -> Any:
    def build() -> Any:
        @jax.jit
        def step(state: Any, batch: Any) -> Any:
            def loss_of(state: Any) -> Any:
                output = batch["x"] @ state["model"]["weight"].T + state["model"]["bias"]
                return jnp.mean((state["scale"] * output - batch["y"]) ** 2)

            loss, slopes = jax.value_and_grad(loss_of)(state)
            return jax.tree.map(lambda p, g: p - rate * g, state, slopes), {"loss": loss, "gradients": slopes}

        return {"model": {"weight": jnp.zeros((2, 4)), "bias": jnp.zeros(2)}, "scale": jnp.zeros(2)}, step

    return build


def test_updates_by_hand_need_no_optimizer() -> None:
    def compared(rate: float) -> compare.Report:
        port = compare.JaxProgram(ported_by_hand(rate))
        return compare.check(compare.TorchProgram(by_hand), port, batches(), device="cpu")

    right, wrong = compared(0.1), compared(0.02)
    assert right.ok, str(right)
    assert {each.torch for each in right.quantities if each.stage == "update"} == {
        "model.weight",
        "model.bias",
        "scale",
    }
    assert wrong.divergence is not None
    assert wrong.divergence.cause is not None
    assert "0.2 times torch's" in wrong.divergence.cause.explanation


def with_momentum_by_hand() -> Any:
    """Give a torch program that keeps its momentum in tensors of the state."""
    net = model()
    trained = dict(net.named_parameters())

    def step(state: Any, batch: Any) -> Any:
        loss = functional.mse_loss(state["model"](batch["x"]), batch["y"])
        slopes = torch.autograd.grad(loss, [*trained.values()])
        with torch.no_grad():
            for (name, parameter), slope in zip(trained.items(), slopes, strict=True):
                state["velocity"][name].mul_(0.9).add_(slope)
                parameter -= 0.1 * state["velocity"][name]
        return {"loss": loss}

    return {"model": net, "velocity": {name: torch.zeros_like(each) for name, each in trained.items()}}, step


def test_momentum_by_hand_in_torch_needs_no_partner() -> None:
    """An optimizer of optax remembers it among its own state, and what it does shows in the parameters."""

    def compared(momentum: float) -> compare.Report:
        port = compare.JaxProgram(plain("loss", 0.1, momentum))
        return compare.check(compare.TorchProgram(with_momentum_by_hand), port, batches(), device="cpu")

    right, wrong = compared(0.9), compared(0.8)
    assert right.ok, str(right)
    assert "which the JAX side keeps in its optimizer: velocity.weight, velocity.bias" in " ".join(str(right).split())
    assert wrong.divergence is not None
    assert (wrong.divergence.step, wrong.divergence.stage) == (1, "update")
    with pytest.raises(compare.InputError, match=r"velocity\.weight"):  # it may be an average that the port forgets
        compare.check(
            compare.TorchProgram(with_momentum_by_hand), compare.JaxProgram(plain("loss", 0.1)), batches(), device="cpu"
        )


def with_plateau() -> Any:
    net = model()
    optimizer = torch.optim.SGD(net.parameters(), 0.5, momentum=0.5)
    schedule = torch.optim.lr_scheduler.ReduceLROnPlateau(optimizer, factor=0.5, patience=1, threshold=0.0)
    state, training_step = trained_in_torch(net, optimizer, lambda net, b: functional.mse_loss(net(b["x"]), b["y"]))

    def step(state: Any, batch: Any) -> Any:
        shown = training_step(state, batch)
        schedule.step(shown["loss"].item())
        return shown

    return {**state, "schedule": schedule}, step


def with_plateau_by_hand(patience: int) -> Any:
    """Give a port that keeps the best loss so far, which is infinite at first."""

    def build() -> Any:
        transformation = optax.inject_hyperparams(optax.sgd)(learning_rate=0.5, momentum=0.5)

        @jax.jit
        def step(state: Any, batch: Any) -> Any:
            loss, params, kept = learned(state, batch, transformation)
            better = loss < state["best"]
            bad = jnp.where(better, 0, state["bad"] + 1)
            rate = kept.hyperparams["learning_rate"]
            kept.hyperparams["learning_rate"] = jnp.where(bad > patience, 0.5 * rate, rate)
            return {
                "model": params,
                "optimizer": kept,
                "best": jnp.where(better, loss, state["best"]),
                "bad": jnp.where(bad > patience, 0, bad),
            }, {"loss": loss}

        start = {"best": jnp.array(jnp.inf), "bad": jnp.zeros((), jnp.int32)}
        return {"model": PARAMS, "optimizer": transformation.init(PARAMS), **start}, step

    return build


def test_the_best_loss_so_far_is_no_weight_and_a_plateau_no_table_of_rates() -> None:
    def compared(patience: int) -> compare.Report:
        port = compare.JaxProgram(with_plateau_by_hand(patience))
        return compare.check(compare.TorchProgram(with_plateau), port, batches(), steps=6, device="cpu")

    right, wrong = compared(1), compared(0)
    assert right.ok, str(right)
    assert wrong.divergence is not None
    assert wrong.divergence.cause is not None
    assert wrong.divergence.cause.name == "schedule"
    assert "ReduceLROnPlateau(mode='min', factor=0.5, patience=1, threshold=0.0" in wrong.divergence.cause.fix


def test_a_factor_that_fits_one_number_alone_is_no_cause() -> None:
    def original() -> Any:
        scale = torch.tensor(1.5, requires_grad=True)

        def step(state: Any, batch: Any) -> Any:
            loss = torch.mean((scale * batch["x"] - 1.0) ** 2)
            (slope,) = torch.autograd.grad(loss, scale)
            with torch.no_grad():
                scale.sub_(0.1 * slope)
            return {"loss": loss}

        return {"scale": scale}, step

    def port() -> Any:
        @jax.jit
        def step(state: Any, batch: Any) -> Any:
            loss, slope = jax.value_and_grad(lambda scale: jnp.mean((scale * batch["x"] - 1.0) ** 2))(state["scale"])
            return {"scale": state["scale"] - 0.1 * jnp.tanh(slope)}, {"loss": loss, "gradients": {"scale": slope}}

        return {"scale": jnp.zeros(())}, step

    report = compare.check(
        compare.TorchProgram(original), compare.JaxProgram(port), drawn(size=6, x=(4,)), device="cpu", steps=1
    )
    assert report.divergence is not None
    assert report.divergence.stage == "update"
    assert report.divergence.cause is None


def carried() -> Any:
    """A recurrence whose state is kept with its graph, and detached at the next step, as in pytorch/examples."""
    torch.manual_seed(0)
    cell = torch.nn.RNNCell(5, 3)

    def step(state: Any, batch: Any) -> Any:
        hidden = cell(batch["x"], state["hidden"].detach())
        loss = functional.mse_loss(hidden, batch["y"])
        cell.zero_grad()
        loss.backward()
        for parameter in cell.parameters():
            assert parameter.grad is not None
            parameter.data.add_(parameter.grad, alpha=-0.1)
        state["hidden"] = hidden
        return {"loss": loss}

    return {"cell": cell, "hidden": torch.zeros(12, 3)}, step


def carried_port() -> Any:
    shapes = {"weight_ih": (3, 5), "weight_hh": (3, 3), "bias_ih": (3,), "bias_hh": (3,)}

    def loss_of(params: Any, hidden: Any, batch: Any) -> Any:
        given = batch["x"] @ params["weight_ih"].T + params["bias_ih"]
        hidden = jnp.tanh(given + hidden @ params["weight_hh"].T + params["bias_hh"])
        return jnp.mean((hidden - batch["y"]) ** 2), hidden

    @jax.jit
    def step(state: Any, batch: Any) -> Any:
        (loss, hidden), grads = jax.value_and_grad(loss_of, has_aux=True)(state["cell"], state["hidden"], batch)
        cell = jax.tree.map(lambda old, grad: old - 0.1 * grad, state["cell"], grads)
        return {"cell": cell, "hidden": hidden}, {"loss": loss}

    return {"cell": {name: jnp.zeros(shape) for name, shape in shapes.items()}, "hidden": jnp.zeros((12, 3))}, step


def test_a_state_that_keeps_its_graph_is_no_parameter() -> None:
    sides = compare.TorchProgram(carried), compare.JaxProgram(carried_port)
    report = compare.check(*sides, drawn(x=(5,), y=(3,)), device="cpu")
    assert report.verdict == "match", str(report)


class Dropped(torch.nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.layers = torch.nn.Sequential(torch.nn.Linear(5, 8), torch.nn.Dropout(0.5), torch.nn.Linear(8, 3))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.layers(x)


def test_a_dropout_that_is_left_out_is_told_by_its_cause() -> None:
    """One side alone draws, and yet the cause is proved: the headline says it."""

    class Port(nnx.Module):
        def __init__(self, rngs: nnx.Rngs) -> None:
            self.layers = nnx.List([nnx.Linear(5, 8, rngs=rngs), nnx.Linear(8, 3, rngs=rngs)])

        def __call__(self, x: jax.Array) -> jax.Array:
            for layer in self.layers:
                x = layer(x)
            return x

    def original() -> Any:
        torch.manual_seed(0)
        model = Dropped()
        optimizer = torch.optim.SGD(model.parameters(), 0.1)
        return trained_in_torch(model, optimizer, lambda m, batch: functional.mse_loss(m(batch["x"]), batch["y"]))

    def port() -> Any:
        return trained(Port(nnx.Rngs(0)), optax.sgd(0.1), lambda m, batch: jnp.mean((m(batch["x"]) - batch["y"]) ** 2))

    report = compare.check(compare.TorchProgram(original), compare.JaxProgram(port), drawn(x=(5,), y=(3,)))
    assert report.nondeterministic
    assert report.divergence is not None
    assert report.divergence.cause is not None
    assert report.divergence.cause.name in report.headline
    assert "nothing is proved" not in str(report)
