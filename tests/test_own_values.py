"""Tables that a port came with: the check starts from torch's, and must not hide that the port's are others."""

import copy
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
import torch
from flax import nnx
from programs.common import trained, trained_in_torch

import compare


def window(periodic: bool) -> np.ndarray:
    n = np.arange(8) / (8 if periodic else 7)
    return (0.5 - 0.5 * np.cos(2 * np.pi * n)).astype(np.float32)


class Original(torch.nn.Module):
    window: torch.Tensor

    def __init__(self, persistent: bool) -> None:
        super().__init__()
        self.fc = torch.nn.Linear(8, 3)
        self.register_buffer("window", torch.from_numpy(window(True)), persistent=persistent)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.fc(x * self.window)


class Port(nnx.Module):
    def __init__(self, table: np.ndarray, rngs: nnx.Rngs) -> None:
        self.fc = nnx.Linear(8, 3, rngs=rngs)
        self.window: Any = nnx.Variable(jnp.asarray(table))

    def __call__(self, x: jax.Array) -> jax.Array:
        return self.fc(x * self.window[...])


def batches() -> list[tuple[np.ndarray, np.ndarray]]:
    rng = np.random.default_rng(0)
    return [(rng.normal(size=(6, 8)), rng.normal(size=(6, 3))) for _ in range(3)]


def mse(output: jax.Array, target: jax.Array) -> jax.Array:
    return jnp.mean((output - target) ** 2)


def of_models(
    table: Any,
    original: torch.nn.Module,
    port: Callable[[Any, nnx.Rngs], Any] = Port,
    weights: dict[str, str | None] | None = None,
) -> compare.Report:
    torch_side = compare.Torch(original, torch.nn.MSELoss(), lambda p: torch.optim.SGD(p, 0.1))
    jax_side = compare.Flax(port(table, nnx.Rngs(0)), mse, optax.sgd(0.1))
    return compare.check(torch_side, jax_side, batches(), weights=weights)


def of_programs(
    table: Any,
    original: torch.nn.Module,
    port: Callable[[Any, nnx.Rngs], Any] = Port,
    weights: dict[str, str | None] | None = None,
) -> compare.Report:
    def torch_side() -> Any:
        model = copy.deepcopy(original)
        optimizer = torch.optim.SGD([each for each in model.parameters() if each.requires_grad], 0.1)

        def loss_of(model: Any, batch: tuple[torch.Tensor, torch.Tensor]) -> torch.Tensor:
            return torch.nn.functional.mse_loss(model(batch[0]), batch[1])

        return trained_in_torch(model, optimizer, loss_of)

    def jax_side() -> Any:
        return trained(port(table, nnx.Rngs(0)), optax.sgd(0.1), lambda net, batch: mse(net(batch[0]), batch[1]))

    return compare.check(compare.TorchProgram(torch_side), compare.JaxProgram(jax_side), batches(), weights=weights)


@pytest.mark.parametrize("check", [of_models, of_programs])
def test_another_table_is_said(check: Callable[..., compare.Report]) -> None:
    assert check(window(True), Original(persistent=False)).limits == []
    for table in (window(False), np.ones(8, np.float32)):
        told = check(table, Original(persistent=True))
        assert told.ok
        assert "although the port came with other values than torch's of" in told.headline
        assert "window (" in told.headline
    wrong = check(window(False), Original(persistent=False))
    assert wrong.verdict == compare.Verdict.MISMATCH
    assert "nothing is proved, the port came with another table" in wrong.headline


class Frozen(torch.nn.Module):
    """A table as a frozen parameter, as the sinusoidal positions of `transformers` are."""

    def __init__(self) -> None:
        super().__init__()
        self.fc = torch.nn.Linear(8, 3)
        self.window = torch.nn.Parameter(torch.from_numpy(window(True)), requires_grad=False)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.fc(x * self.window)


class Array(Port):
    """A port whose table is a plain array."""

    def __init__(self, table: np.ndarray, rngs: nnx.Rngs) -> None:
        super().__init__(table, rngs)
        self.window = jnp.asarray(table)


class Backbone(Port):
    """A port whose frozen array is a parameter: what it has at first are initial values."""

    def __init__(self, table: np.ndarray, rngs: nnx.Rngs) -> None:
        super().__init__(table, rngs)
        self.window = nnx.Param(jnp.asarray(table))


@pytest.mark.parametrize(
    ("port", "check"),
    [
        (Port, of_models),
        pytest.param(Array, of_models, marks=pytest.mark.slow),
        (Array, of_programs),
        pytest.param(Port, of_programs, marks=pytest.mark.slow),
    ],
)
def test_another_table_is_said_of_a_frozen_parameter(port: type[Port], check: Callable[..., compare.Report]) -> None:
    told = check(window(False), Frozen(), port)
    assert told.ok
    assert "although the port came with other values than torch's of" in told.headline
    assert check(window(True), Frozen(), port).limits == []


def test_initial_values_of_a_frozen_parameter_are_not_said() -> None:
    assert of_models(window(False), Frozen(), Backbone).limits == []


class Inside(nnx.Module):
    """A port that computes the table where it uses it."""

    def __init__(self, table: np.ndarray, rngs: nnx.Rngs) -> None:
        self.fc, self.scale = nnx.Linear(8, 3, rngs=rngs), float(table[4])

    def __call__(self, x: jax.Array) -> jax.Array:
        return self.fc(x * self.scale * (0.5 - 0.5 * jnp.cos(2 * jnp.pi * jnp.arange(8) / 8)))


def test_a_frozen_parameter_that_the_port_does_not_have() -> None:
    report = of_models(window(True), Frozen(), Inside)
    assert report.ok
    assert report.limits == ["with these values of window alone, which the port does not have"]


@pytest.mark.parametrize("check", [pytest.param(of_models, marks=pytest.mark.slow), of_programs])
def test_frozen_parameters_that_are_left_out(check: Callable[..., compare.Report]) -> None:
    name = "model.window" if check is of_programs else "window"
    report = check(window(True), Frozen(), Inside, {name: None})
    assert report.ok
    assert [each for each in report.limits if "window alone, which weights= leaves out" in each]


class Masked(torch.nn.Module):
    """Tables of every dtype: a causal mask, an index, and a temperature."""

    mask: torch.Tensor
    order: torch.Tensor
    temperature: torch.Tensor

    def __init__(self) -> None:
        super().__init__()
        self.fc = torch.nn.Linear(8, 3)
        self.register_buffer("mask", torch.tril(torch.ones(8, 8)).bool())
        self.register_buffer("order", torch.arange(8).flip(0))
        self.register_buffer("temperature", torch.tensor(0.07))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        mixed = x[:, self.order] @ self.mask.to(x.dtype) / self.temperature
        return self.fc(mixed)


class MaskedPort(nnx.Module):
    def __init__(self, tables: dict[str, Any]) -> None:
        self.fc = nnx.Linear(8, 3, rngs=nnx.Rngs(0))
        own = {"mask": np.tril(np.ones((8, 8), bool)), "order": np.arange(8)[::-1], "temperature": np.float32(0.07)}
        for name, table in {**own, **tables}.items():
            setattr(self, name, nnx.Variable(jnp.asarray(table)))

    def __call__(self, x: jax.Array) -> jax.Array:
        mixed = x[:, self.order[...]] @ self.mask[...].astype(x.dtype) / self.temperature[...]  # type: ignore[attr-defined]
        return self.fc(mixed)


@pytest.mark.parametrize(
    "tables",
    [
        *({"mask": np.ones((8, 8), bool)}, {"order": np.arange(8)}),
        *(pytest.param(each, marks=pytest.mark.slow) for each in ({}, {"temperature": np.float32(0.1)})),
    ],
    ids=lambda tables: "".join(tables),
)
def test_tables_of_booleans_integers_and_single_numbers(tables: dict[str, Any]) -> None:
    report = of_models(None, Masked(), lambda _, __: MaskedPort(tables))
    assert report.ok
    assert not report.bugs
    assert [f"torch's of {name} (" in each for each, name in zip(report.limits, tables, strict=True)] == [True] * len(
        tables
    )


def test_a_target_that_does_not_start_as_the_model() -> None:
    def torch_side() -> Any:
        model = torch.nn.Linear(8, 3)
        state = {"model": model, "ema": copy.deepcopy(model), "optimizer": torch.optim.SGD(model.parameters(), 0.1)}
        state["steps"] = torch.zeros(())

        def step(state: Any, batch: tuple[torch.Tensor, torch.Tensor]) -> dict[str, Any]:
            state["optimizer"].zero_grad()
            loss = torch.nn.functional.mse_loss(state["model"](batch[0]), batch[1])
            loss.backward()
            state["optimizer"].step()
            state["steps"] += 1
            with torch.no_grad():
                for own, other in zip(state["ema"].parameters(), state["model"].parameters(), strict=True):
                    own.lerp_(other, 0.1)
            return {"loss": loss}

        return state, step

    def jax_side(seed: int, steps: float) -> Any:
        def build() -> Any:
            model, ema = nnx.Linear(8, 3, rngs=nnx.Rngs(0)), nnx.Linear(8, 3, rngs=nnx.Rngs(seed))
            state = {"model": nnx.state(model), "ema": nnx.state(ema), "steps": jnp.asarray(steps)}
            graph, optimizer = nnx.graphdef(model), optax.sgd(0.1)
            state["optimizer"] = optimizer.init(state["model"])

            @jax.jit
            def step(state: Any, batch: Any) -> Any:
                def loss_of(weights: Any) -> jax.Array:
                    return mse(nnx.merge(graph, weights)(batch[0]), batch[1])

                loss, gradients = jax.value_and_grad(loss_of)(state["model"])
                updates, own = optimizer.update(gradients, state["optimizer"], state["model"])
                model = optax.apply_updates(state["model"], updates)
                ema = jax.tree.map(lambda own, other: own + 0.1 * (other - own), state["ema"], model)
                return {"model": model, "ema": ema, "steps": state["steps"] + 1, "optimizer": own}, {"loss": loss}

            return state, step

        return build

    def limits(seed: int, steps: float = 0.0) -> str:
        report = compare.check(compare.TorchProgram(torch_side), compare.JaxProgram(jax_side(seed, steps)), batches())
        assert report.ok
        return " ".join(report.limits)

    assert limits(0) == ""
    assert "ema and model start with the same weights in torch and not in the port" in limits(1).replace(
        "model and ema", "ema and model"
    )
    assert "torch's of steps" in limits(0, 5.0)
