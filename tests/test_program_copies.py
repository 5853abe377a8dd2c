"""Copies of the weights: targets of several critics, slow weights of an optimizer; and what torch does not train."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
import torch
from flax import nnx
from programs.common import FlaxNet, TorchNet, drawn, trained, trained_in_torch

import compare

TAU, SLOW, PERIOD = 0.05, 0.5, 2


class Lookahead(torch.optim.SGD):
    """SGD whose weights go a part of the way from the slow ones at every second step."""

    @torch.no_grad()
    def step(self, closure: Any = None) -> Any:
        for group in self.param_groups:
            for weight in group["params"]:
                self.state[weight].setdefault("slow", weight.clone())
        super().step(closure)
        self.count = getattr(self, "count", 0) + 1
        for group in self.param_groups if self.count % PERIOD == 0 else ():
            for weight in group["params"]:
                slow = self.state[weight]["slow"]
                weight.copy_(slow.add_(SLOW * (weight - slow)))
        return None


def lookahead(rate: float, part: float) -> optax.GradientTransformation:
    def init(params: Any) -> Any:
        return {"slow": params, "count": jnp.zeros((), int)}

    def update(gradients: Any, state: Any, params: Any = None) -> Any:
        count = state["count"] + 1
        fast = jax.tree.map(lambda weight, gradient: weight - rate * gradient, params, gradients)
        nearer = jax.tree.map(lambda slow, weight: slow + part * (weight - slow), state["slow"], fast)

        def chosen(one: Any, other: Any) -> Any:
            return jax.tree.map(lambda a, b: jnp.where(count % PERIOD == 0, a, b), one, other)

        updates = jax.tree.map(jnp.subtract, chosen(nearer, fast), params)
        return updates, {"slow": chosen(nearer, state["slow"]), "count": count}

    return optax.GradientTransformation(init, update)


def loss_of(model: Any, batch: Any) -> Any:
    return ((model(batch["x"]) - batch["y"]) ** 2).mean()


@pytest.mark.parametrize("part", [SLOW, 0.4])
def test_what_an_optimizer_holds_as_a_copy_of_the_weights_starts_from_those_of_torch(part: float) -> None:
    def original() -> Any:
        model = TorchNet()
        return trained_in_torch(model, Lookahead(model.parameters(), 0.1), loss_of)

    def port() -> Any:
        return trained(FlaxNet(nnx.Rngs(0)), lookahead(0.1, part), loss_of)

    report = compare.check(
        compare.TorchProgram(original), compare.JaxProgram(port), drawn(x=(5,), y=(3,)), steps=5, quick=True
    )
    assert report.verdict == (compare.Verdict.MATCH if part == SLOW else compare.Verdict.MISMATCH), str(report)
    if part != SLOW:
        assert report.divergence is not None
        assert report.divergence.step == PERIOD - 1


def test_two_targets_from_before_the_update_are_one_finding() -> None:
    def original() -> Any:
        critics = [TorchNet(outputs=1), TorchNet(outputs=1)]
        targets = [TorchNet(outputs=1), TorchNet(outputs=1)]
        for critic, target in zip(critics, targets, strict=True):
            target.load_state_dict(critic.state_dict())
        optimizer = torch.optim.Adam([*critics[0].parameters(), *critics[1].parameters()], 1e-2)

        def step(_: Any, batch: Any) -> Any:
            with torch.no_grad():
                wanted = batch["y"] + 0.9 * torch.minimum(*(target(batch["x"]) for target in targets))
            loss = sum(((critic(batch["x"]) - wanted) ** 2).mean() for critic in critics)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            with torch.no_grad():
                for critic, target in zip(critics, targets, strict=True):
                    for old, new in zip(target.parameters(), critic.parameters(), strict=True):
                        old.lerp_(new, TAU)
            return {"loss": loss}

        names = ("first", "second", "first_target", "second_target")
        return {**dict(zip(names, (*critics, *targets), strict=True)), "optimizer": optimizer}, step

    def port() -> Any:
        rngs = nnx.Rngs(0)
        critics = nnx.List([FlaxNet(rngs, outputs=1), FlaxNet(rngs, outputs=1)])
        targets = [FlaxNet(rngs, outputs=1), FlaxNet(rngs, outputs=1)]

        @nnx.jit
        def step(state: Any, batch: Any) -> Any:
            critics, targets = state["critics"], (state["first_target"], state["second_target"])
            wanted = batch["y"] + 0.9 * jnp.minimum(*(target(batch["x"]) for target in targets))

            def of_critics(critics: Any) -> Any:
                return sum(((critic(batch["x"]) - wanted) ** 2).mean() for critic in critics)

            loss, gradients = nnx.value_and_grad(of_critics)(critics)
            for critic, target in zip(critics, targets, strict=True):
                new, old = nnx.state(critic, nnx.Param), nnx.state(target, nnx.Param)
                nnx.update(target, optax.incremental_update(new, old, TAU))
            state["optimizer"].update(critics, gradients)
            return state, {"loss": loss}

        optimizer = nnx.Optimizer(critics, optax.adam(1e-2), wrt=nnx.Param)
        return {
            "critics": critics,
            "first_target": targets[0],
            "second_target": targets[1],
            "optimizer": optimizer,
        }, step

    report = compare.check(compare.TorchProgram(original), compare.JaxProgram(port), drawn(x=(5,), y=(1,)), quick=True)
    assert report.divergence is not None, str(report)
    assert report.divergence.cause is not None, str(report)
    assert report.divergence.cause.name == "average before the update"
    assert not report.others, str(report)


@pytest.mark.parametrize(("dropped", "halved"), [(False, False), (True, False), (True, True)])
def test_a_gradient_that_torch_does_not_use_is_not_compared(*, dropped: bool, halved: bool) -> None:
    """A frozen layer that the optimizer lists, or a gradient that the step drops, also where others are changed."""

    def original() -> Any:
        model = TorchNet()
        model.fc1.requires_grad_(dropped)
        optimizer = torch.optim.SGD(model.parameters(), 0.1)

        def step(_: Any, batch: Any) -> Any:
            loss = loss_of(model, batch)
            optimizer.zero_grad()
            loss.backward()
            for parameter in model.parameters() if halved else ():
                if parameter.grad is not None:
                    parameter.grad.mul_(0.5)
            if dropped:
                model.fc1.weight.grad = model.fc1.bias.grad = None
            optimizer.step()
            return {"loss": loss}

        return {"model": model, "optimizer": optimizer}, step

    def port() -> Any:
        def label(path: Any, _: Any) -> str:
            return "frozen" if "fc1" in jax.tree_util.keystr(path) else "trained"

        tx = optax.multi_transform(
            {"frozen": optax.set_to_zero(), "trained": optax.sgd(0.1)},
            lambda params: jax.tree_util.tree_map_with_path(label, params),
        )
        model = FlaxNet(nnx.Rngs(0))

        @nnx.jit
        def step(state: Any, batch: Any) -> Any:
            loss, gradients = nnx.value_and_grad(loss_of)(state["model"], batch)
            if halved:
                gradients = jax.tree.map(lambda each: each / 2, gradients)
            state["optimizer"].update(state["model"], gradients)
            return state, {"loss": loss}

        return {"model": model, "optimizer": nnx.Optimizer(model, tx, wrt=nnx.Param)}, step

    report = compare.check(compare.TorchProgram(original), compare.JaxProgram(port), drawn(x=(5,), y=(3,)), quick=True)
    assert report.verdict == compare.Verdict.MATCH, str(report)


class Noise(torch.nn.Module):
    """Holds a table in float64, as one that comes from NumPy."""

    def __init__(self) -> None:
        super().__init__()
        self.net = torch.nn.Linear(5, 3)
        self.register_buffer("table", torch.tensor(1 / np.arange(3, 13)))

    def forward(self, x: torch.Tensor, at: torch.Tensor) -> torch.Tensor:
        return self.net(x) * self.get_buffer("table")[at].to(x.dtype)[:, None]


@pytest.mark.parametrize("held", ["variable", "array", "in the step"])
def test_a_table_that_torch_keeps_in_float64_has_all_its_digits(held: str) -> None:
    table = 1 / np.arange(3, 13)

    def of_table(model: Any, batch: Any) -> Any:
        return ((model(batch["x"], batch["at"]) - batch["y"]) ** 2).mean()

    def original() -> Any:
        model = Noise()
        return trained_in_torch(model, torch.optim.SGD(model.parameters(), 0.1), of_table)

    class Port(nnx.Module):
        def __init__(self) -> None:
            self.net = nnx.Linear(5, 3, rngs=nnx.Rngs(0))
            if held != "in the step":
                self.table = nnx.Variable(jnp.asarray(table)) if held == "variable" else jnp.asarray(table)

        def __call__(self, x: Any, at: Any) -> Any:
            values = jnp.asarray(table if held == "in the step" else self.table[...])
            return self.net(x) * values[at].astype(x.dtype)[:, None]

    def port() -> Any:
        return trained(Port(), optax.sgd(0.1), of_table)

    rng = np.random.default_rng(0)
    batches = [{**batch, "at": rng.integers(0, 10, 12)} for batch in drawn(x=(5,), y=(3,))]
    report = compare.check(compare.TorchProgram(original), compare.JaxProgram(port), batches)
    assert report.ok, str(report)


def test_an_average_that_shares_the_variables_of_the_model_at_first_is_a_copy() -> None:
    """And a schedule of a given number of steps ends the further steps, and is no error."""

    def original() -> Any:
        model, average = TorchNet(), TorchNet()
        average.load_state_dict(model.state_dict())
        optimizer = torch.optim.SGD(model.parameters(), 0.1)
        flat: Any = {"div_factor": 1.0, "final_div_factor": 1.0, "cycle_momentum": False}
        schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, 0.1, total_steps=4, **flat)  # 0.1, and an end

        def step(_: Any, batch: Any) -> Any:
            loss = loss_of(model, batch)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            schedule.step()
            with torch.no_grad():
                for old, new in zip(average.parameters(), model.parameters(), strict=True):
                    old.lerp_(new, TAU)
            return {"loss": loss}

        return {"model": model, "average": average, "optimizer": optimizer, "schedule": schedule}, step

    def port() -> Any:
        model = FlaxNet(nnx.Rngs(0))

        @nnx.jit
        def step(state: Any, batch: Any) -> Any:
            loss, gradients = nnx.value_and_grad(loss_of)(state["model"], batch)
            state["optimizer"].update(state["model"], gradients)
            average = optax.incremental_update(nnx.state(state["model"], nnx.Param), state["average"], TAU)
            return {**state, "average": average}, {"loss": loss}

        optimizer = nnx.Optimizer(model, optax.sgd(0.1), wrt=nnx.Param)
        return {"model": model, "average": nnx.state(model, nnx.Param), "optimizer": optimizer}, step

    report = compare.check(compare.TorchProgram(original), compare.JaxProgram(port), drawn(x=(5,), y=(3,)))
    assert not report.bugs
    assert "incomplete" not in str(report)
    assert report.verdict == compare.Verdict.MATCH, str(report)


@pytest.mark.parametrize("decay", [0.9, 0.8])
def test_an_optimizer_that_the_port_writes_by_hand_keeps_its_moments_in_the_state(decay: float) -> None:
    def original() -> Any:
        model = torch.nn.Linear(5, 3)
        return trained_in_torch(model, torch.optim.Adam(model.parameters(), 1e-2), loss_of)

    def port() -> Any:
        model = {"weight": jnp.zeros((3, 5)), "bias": jnp.zeros(3)}

        @jax.jit
        def step(state: Any, batch: Any) -> Any:
            def of_model(model: Any) -> Any:
                return ((batch["x"] @ model["weight"].T + model["bias"] - batch["y"]) ** 2).mean()

            loss, gradients = jax.value_and_grad(of_model)(state["model"])
            count = state["adam"]["t"] + 1
            first = jax.tree.map(lambda m, g: decay * m + (1 - decay) * g, state["adam"]["m"], gradients)
            second = jax.tree.map(lambda v, g: 0.999 * v + 0.001 * g * g, state["adam"]["v"], gradients)

            def updated(weight: Any, m: Any, v: Any) -> Any:
                return weight - 1e-2 * (m / (1 - decay**count)) / (jnp.sqrt(v / (1 - 0.999**count)) + 1e-8)

            model = jax.tree.map(updated, state["model"], first, second)
            return {"model": model, "adam": {"t": count, "m": first, "v": second}}, {"loss": loss}

        zeros = jax.tree.map(jnp.zeros_like, model)
        return {"model": model, "adam": {"t": jnp.zeros((), int), "m": zeros, "v": zeros}}, step

    report = compare.check(compare.TorchProgram(original), compare.JaxProgram(port), drawn(x=(5,), y=(3,)), quick=True)
    assert report.verdict == (compare.Verdict.MATCH if decay == 0.9 else compare.Verdict.MISMATCH), str(report)


@pytest.mark.parametrize(
    ("params", "moments", "scale"),
    [("params", "velocity", 1.0), ("params", "momentum", 1.0), ("theta", "buffer", 1.0), ("params", "momentum", 0.0)],
)
def test_moments_are_known_whatever_the_state_calls_them(params: str, moments: str, scale: float) -> None:
    """The keys of a dictionary are sorted: moments may come before the weights, which may be zero at first as well."""

    def original() -> Any:
        model = torch.nn.Linear(4, 3)
        return trained_in_torch(model, torch.optim.SGD(model.parameters(), 0.1, momentum=0.9), loss_of)

    def port() -> Any:
        weights = {"w": scale * jnp.linspace(-1, 1, 12).reshape(4, 3), "b": scale * jnp.linspace(0, 1, 3)}

        @jax.jit
        def step(state: Any, batch: Any) -> Any:
            def loss_fn(p: Any) -> Any:
                return jnp.mean(jnp.square(batch["x"] @ p["w"] + p["b"] - batch["y"]))

            loss, gradients = jax.value_and_grad(loss_fn)(state[params])
            kept = jax.tree.map(lambda m, g: 0.9 * m + g, state[moments], gradients)
            return {params: jax.tree.map(lambda p, m: p - 0.1 * m, state[params], kept), moments: kept}, {"loss": loss}

        return {params: weights, moments: jax.tree.map(jnp.zeros_like, weights)}, step

    batches = drawn(x=(4,), y=(3,))
    report = compare.check(compare.TorchProgram(original), compare.JaxProgram(port), batches, steps=3, quick=True)
    assert report.verdict == "match", str(report)


@pytest.mark.parametrize("wrong", [True, False])
def test_weights_that_the_port_converts_wrongly_are_a_mismatch(wrong: bool) -> None:
    def made() -> TorchNet:
        torch.manual_seed(3)
        return TorchNet()

    def original() -> Any:
        model = made()
        return trained_in_torch(model, torch.optim.SGD(model.parameters(), 0.1), loss_of)

    def port() -> Any:
        model = FlaxNet(nnx.Rngs(0))
        compare.copy_weights(made(), model)
        if wrong:
            kernel = model.fc1.kernel
            kernel[...] = -kernel[...]
        return trained(model, optax.sgd(0.1), loss_of)

    report = compare.check(compare.TorchProgram(original), compare.JaxProgram(port), drawn(x=(5,), y=(3,)), quick=True)
    assert report.verdict == (compare.Verdict.MISMATCH if wrong else compare.Verdict.MATCH), str(report)
    if report.divergence:
        assert (report.divergence.stage, report.divergence.torch) == ("parameters", "model.fc1.weight")
        assert report.divergence.cause is not None
        assert report.divergence.cause.name == "converted weight"
