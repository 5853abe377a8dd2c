"""Averages in a state: tensors that are zero at first, as biases often are, and values that are no average."""

import copy
from collections.abc import Callable
from typing import Any

import jax.numpy as jnp
import numpy as np
import optax
import pytest
import torch
from flax import nnx
from torch.nn import functional

import compare


class Net(torch.nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.a, self.norm, self.b = torch.nn.Linear(4, 5), torch.nn.LayerNorm(5), torch.nn.Linear(5, 2)
        torch.nn.init.zeros_(self.b.bias)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.b(torch.tanh(self.norm(self.a(x))))


class Port(nnx.Module):
    def __init__(self, rngs: nnx.Rngs) -> None:
        self.a, self.norm = nnx.Linear(4, 5, rngs=rngs), nnx.LayerNorm(5, epsilon=1e-5, rngs=rngs)
        self.b = nnx.Linear(5, 2, rngs=rngs)

    def __call__(self, x: Any) -> Any:
        return self.b(jnp.tanh(self.norm(self.a(x))))


def original(decay: Callable[[int], float]) -> Any:
    def build() -> Any:
        model, counted = Net(), [0]
        average, optimizer = copy.deepcopy(model), torch.optim.SGD(model.parameters(), 0.1)
        state: dict[str, Any] = {"model": model, "average": average, "optimizer": optimizer, "centre": torch.zeros(2)}

        def step(_: Any, batch: Any) -> Any:
            loss = functional.mse_loss(model(batch["x"]), batch["y"])
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            with torch.no_grad():
                kept = decay(counted[0])
                counted[0] += 1
                for old, new in zip(average.parameters(), model.parameters(), strict=True):
                    old.mul_(kept).add_(new, alpha=1 - kept)
                state["centre"].mul_(0.9).add_(0.1 * batch["y"].mean(0))
            return {"loss": loss}

        return state, step

    return build


def port(decay: Callable[[Any], Any], centre: float = 0.1) -> Any:
    def build() -> Any:
        model = Port(nnx.Rngs(0))
        optimizer = nnx.Optimizer(model, optax.sgd(0.1), wrt=nnx.Param)

        @nnx.jit
        def step(state: Any, batch: Any) -> Any:
            loss, gradients = nnx.value_and_grad(lambda model: jnp.mean((model(batch["x"]) - batch["y"]) ** 2))(
                state["model"]
            )
            state["optimizer"].update(state["model"], gradients)
            old, new = nnx.state(state["average"], nnx.Param), nnx.state(state["model"], nnx.Param)
            nnx.update(state["average"], optax.incremental_update(new, old, 1 - decay(state["count"])))
            moved = (1 - centre) * state["centre"] + centre * batch["y"].mean(0)
            return {**state, "count": state["count"] + 1, "centre": moved}, {"loss": loss}

        state = {"model": model, "average": nnx.clone(model), "optimizer": optimizer, "count": jnp.zeros((), int)}
        return {**state, "centre": jnp.zeros(2)}, step

    return build


def found(torch_decay: Any, jax_decay: Any, **given: Any) -> list[tuple[str, str]]:
    rng = np.random.default_rng(0)
    batches = [{"x": rng.normal(size=(6, 4)), "y": rng.normal(size=(6, 2))} for _ in range(3)]
    sides = compare.TorchProgram(original(torch_decay)), compare.JaxProgram(port(jax_decay, **given))
    report = compare.check(*sides, batches, steps=4, device="cpu", quick=True)
    places = [report.divergence, *report.others] if report.divergence else []
    return [(each.torch, each.cause.name if each.cause else "") for each in places]


@pytest.mark.parametrize(
    ("ours", "theirs", "expected"),
    [
        (lambda _: 0.995, lambda _: 0.995, []),
        (lambda _: 0.995, lambda _: 0.999, [("average.a.weight", "average's decay")]),
        (lambda k: (1 + k) / (10 + k), lambda _: 0.9, [("average.a.weight", "average's decay")]),
    ],
    ids=["right", "decay", "warm-up"],
)
def test_an_average_is_one_finding_with_its_zero_biases(ours: Any, theirs: Any, expected: Any) -> None:
    """An average of a bias that was zero is 1 - decay times the bias, which float64 knows less well than the decay."""
    assert found(ours, theirs) == expected


def test_a_running_value_of_no_norm_is_not_called_running_statistics() -> None:
    expected = [("centre", "share of the new value")]
    assert found(lambda _: 0.9, lambda _: 0.9, centre=0.01) == expected


class Attending(torch.nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.attention, self.head = torch.nn.MultiheadAttention(4, 2, batch_first=True), torch.nn.Linear(4, 2)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = x[:, None] * torch.ones(3, 1, device=x.device, dtype=x.dtype)
        return self.head(self.attention(x, x, x, need_weights=False)[0].mean(1))


class AttendingPort(nnx.Module):
    def __init__(self, rngs: nnx.Rngs) -> None:
        self.attention = nnx.MultiHeadAttention(2, 4, decode=False, rngs=rngs)
        self.head = nnx.Linear(4, 2, rngs=rngs)

    def __call__(self, x: Any) -> Any:
        return self.head(self.attention(x[:, None] * jnp.ones((3, 1))).mean(1))


def test_an_average_of_a_part_of_a_tensor_is_one(monkeypatch: pytest.MonkeyPatch) -> None:
    """Torch keeps three projections of attention in one tensor, of which Flax's kernels are parts."""
    monkeypatch.setattr(f"{__name__}.Net", Attending)
    monkeypatch.setattr(f"{__name__}.Port", AttendingPort)
    assert found(lambda _: 0.9, lambda _: 0.9) == []
    ((place, cause),) = found(lambda _: 0.9, lambda _: 0.99)
    assert place.startswith("average.attention.in_proj_weight[")
    assert cause == "average's decay"
