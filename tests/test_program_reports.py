"""What a report of two programs says beside its findings: what is not compared and why, and what ran."""

import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
import torch
from flax import nnx
from programs.averages import ema
from programs.common import FlaxNet, TorchNet

import compare
from compare.comparison.program_lines import with_lines
from compare.jax_side.program_run import JaxProgramRun
from compare.verdict.divergence import Divergence


def original() -> Any:
    model = TorchNet(outputs=1)
    optimizer = torch.optim.Adam(model.parameters(), 1e-2)

    def step(_: Any, batch: Any) -> Any:
        loss = model(batch["x"]).square().mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        return {"loss": loss}

    return {"model": model, "optimizer": optimizer}, step


def port(calls: int = 1) -> Any:
    model = FlaxNet(nnx.Rngs(0), outputs=1)
    optimizer = nnx.Optimizer(model, optax.adam(1e-2), wrt=nnx.Param)

    @nnx.jit
    def step(state: Any, batch: Any) -> Any:
        def loss_fn(model: Any) -> Any:
            return sum(jnp.square(model(batch["x"])).mean() for _ in range(calls)) / calls

        loss, gradients = nnx.value_and_grad(loss_fn)(state["model"])
        state["optimizer"].update(state["model"], gradients)
        return state, {"loss": loss}

    return {"model": model, "optimizer": optimizer}, step


def checked(calls: int = 1) -> compare.Report:
    batches = [{"x": np.random.default_rng(0).normal(size=(6, 5))}]
    sides = compare.TorchProgram(original), compare.JaxProgram(lambda: port(calls))
    return compare.check(*sides, batches, steps=2, device="cpu", quick=True)


def test_modules_called_another_number_of_times_are_not_compared_for_that_reason() -> None:
    report = checked(calls=2)
    assert report.verdict == "match"
    torch_side = {each.name: each.reason for each in report.not_compared if each.side == "torch"}
    assert set(torch_side) == {"model output", "model.fc1 output", "model.fc2 output"}
    assert set(torch_side.values()) == {
        "its calls cannot be paired: 1 on this side, 2 of the module with the same weights on the other"
    }


def test_modules_called_equally_often_are_compared() -> None:
    assert not any("output" in each.name for each in checked().not_compared)


def test_large_programs_are_run_in_pairs(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("compare.comparison.common_runs.IN_PAIRS", 1)
    assert checked().verdict == "match"
    assert checked(calls=2).verdict == "match"


def test_what_ran_is_described() -> None:
    report = checked()
    ran = report.settings
    assert ran["batches"] == ["{x: float64 (6, 5)}"]
    assert ran["torch"]["optimizers"]["optimizer"].startswith("Adam (")
    assert "adam" in ran["jax"]["optimizers"]["optimizer"]
    assert (
        f"ran: 2 steps of the user's program on 1 batch, torch optimizer Adam; source: torch {ran['torch']['source']}"
        in (" ".join(str(report).split()))
    )


def test_the_hash_of_the_source_changes_with_a_partial_argument_alone() -> None:
    batches = [{"x": np.random.default_rng(0).normal(size=(6, 5))}]

    def sources(calls: int) -> Any:
        sides = compare.TorchProgram(original), compare.JaxProgram(functools.partial(port, calls))
        settings = compare.check(*sides, batches, steps=1, device="cpu", quick=True).settings
        return settings["torch"]["source"], settings["jax"]["source"]

    first, again, other = sources(1), sources(1), sources(2)
    assert first == again
    assert (first[0] == other[0], first[1] == other[1]) == (True, False)


@pytest.mark.slow
def test_power_plants_faults_in_programs() -> None:
    rng = np.random.default_rng(0)
    batches = [{"x": rng.normal(size=(6, 5))} for _ in range(2)]
    power = compare.power(compare.TorchProgram(original), compare.JaxProgram(port), batches, faults=22, device="cpu")
    assert power.missed == [], str(power)
    kinds = {outcome.kind for outcome in power.outcomes}
    # Of the loop, of the optimizer, of the model and of the loss, which stands in the step.
    assert {"second update", "gradients not zeroed", "gradient", "Adam eps", "weight", "mean or sum"} <= kinds
    # What watches the step calls torch too, and is not the user's.
    assert not any(outcome.where == "detach" for outcome in power.outcomes)


@pytest.mark.slow
def test_power_plants_faults_in_averages_and_clipping() -> None:
    pair = ema()
    sides = compare.TorchProgram(pair.original), compare.JaxProgram(pair.port)
    power = compare.power(*sides, pair.batches, faults=16, steps=4, device="cpu")
    found = {outcome.fault: outcome for outcome in power.outcomes}
    for fault in ("clipping left out", "schedule left out", "change of the state times 1.000001"):
        assert found[fault].caught, str(power)


def test_the_line_that_makes_the_optimizer_of_a_program() -> None:
    """Of several optimizers, the one that has the name of torch's."""

    def two_torch() -> Any:
        models = {name: TorchNet(outputs=1) for name in ("actor", "critic")}
        return models | {f"of_{name}": torch.optim.Adam(each.parameters()) for name, each in models.items()}, print

    def two_jax() -> Any:
        models = {name: FlaxNet(nnx.Rngs(0), outputs=1) for name in ("actor", "critic")}
        optimizers = {
            "of_actor": nnx.Optimizer(models["actor"], optax.adam(1e-2), wrt=nnx.Param),
            "of_critic": nnx.Optimizer(models["critic"], optax.sgd(1e-2), wrt=nnx.Param),
        }
        return models | optimizers, print

    def lines(torch_side: Any, jax_side: Any, *names: str) -> list[str]:
        found = [Divergence(0, "update", name, name.replace(".", "/"), 1.0, 0.0, 0.0) for name in names]
        sides = compare.TorchProgram(torch_side), JaxProgramRun(compare.JaxProgram(jax_side), "float32")
        return [line.source.expression for each in with_lines(*sides, found) for line in each.lines]

    assert lines(two_torch, two_jax, "critic.fc1.weight", "actor.fc1.weight") == ["optax.sgd(1e-2)", "optax.adam(1e-2)"]
    assert lines(original, port, "model.fc1.weight") == ["optax.adam(1e-2)"]


def test_the_line_of_an_optimizer_that_only_the_step_knows() -> None:
    def pure() -> Any:
        optimizer = optax.adam(3e-3)

        @jax.jit
        def step(state: Any, batch: Any) -> Any:
            return optimizer.update(batch, state), {}

        return {"model": FlaxNet(nnx.Rngs(0), outputs=1)}, step

    found = Divergence(0, "update", "model.fc1.weight", "model/fc1/kernel", 1.0, 0.0, 0.0)
    run = JaxProgramRun(compare.JaxProgram(pure), "float32")
    (known,) = with_lines(compare.TorchProgram(original), run, [found])
    assert [line.source.expression for line in known.lines] == ["optax.adam(3e-3)"]


class Remembering(torch.nn.Module):
    """A layer of what it is given and of what it gave before."""

    def __init__(self) -> None:
        super().__init__()
        self.new, self.old = torch.nn.Linear(5, 4), torch.nn.Linear(4, 4)

    def forward(self, x: torch.Tensor, memory: torch.Tensor) -> torch.Tensor:
        return torch.tanh(self.new(x) + self.old(memory))


class FlaxRemembering(nnx.Module):
    def __init__(self) -> None:
        self.new, self.old = nnx.Linear(5, 4, rngs=nnx.Rngs(0)), nnx.Linear(4, 4, rngs=nnx.Rngs(1))

    def __call__(self, x: jax.Array, memory: jax.Array) -> jax.Array:
        return jnp.tanh(self.new(x) + self.old(memory))


def test_an_input_that_is_zero_is_not_said_of_what_the_module_gives() -> None:
    def torch_side() -> Any:
        model, memory = Remembering(), torch.zeros(6, 4)
        optimizer = torch.optim.SGD(model.parameters(), 0.1)
        state = {"model": model, "optimizer": optimizer, "memory": memory}

        def step(state: Any, batch: Any) -> Any:
            given = model(batch["x"], state["memory"])
            loss = (given - 0.3).square().mean()
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            state["memory"] = given.detach()
            return {"loss": loss}

        return state, step

    def jax_side() -> Any:
        model = FlaxRemembering()
        optimizer = nnx.Optimizer(model, optax.sgd(0.1), wrt=nnx.Param)

        @nnx.jit
        def step(state: Any, batch: Any) -> Any:
            def loss_of(model: Any) -> Any:
                given = model(batch["x"], jnp.zeros((6, 4)))
                return jnp.square(given - 0.3).mean(), given

            (loss, given), gradients = nnx.value_and_grad(loss_of, has_aux=True)(state["model"])
            state["optimizer"].update(state["model"], gradients)
            return {**state, "memory": given}, {"loss": loss}

        return {"model": model, "optimizer": optimizer, "memory": jnp.zeros((6, 4))}, step

    batches = [{"x": np.random.default_rng(seed).normal(size=(6, 5))} for seed in range(2)]
    sides = compare.TorchProgram(torch_side), compare.JaxProgram(jax_side)
    report = compare.check(*sides, batches, steps=3, device="cpu", quick=True)
    assert report.divergence is not None
    assert report.divergence.cause is not None, str(report)
    assert report.divergence.cause.name == "input zero"
    assert "zero for input 1 of model" in report.divergence.cause.explanation
