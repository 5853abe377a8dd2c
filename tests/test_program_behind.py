"""Causes in a step whose forward pass draws, keeps statistics, or runs once for each micro-batch, and what is behind.

Each has a second fault behind it, in the optimizer: it is found only if the first is made in torch's step, at all
steps.
"""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
import torch
from flax import nnx
from torch.nn import functional

import compare

RATE = 1e-2


class Net(torch.nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.a, self.norm, self.b = torch.nn.Linear(4, 6), torch.nn.BatchNorm1d(6), torch.nn.Linear(6, 5)
        self.drop, self.c, self.head = torch.nn.Dropout(0.3), torch.nn.Linear(5, 6), torch.nn.Linear(6, 3)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        hidden = torch.tanh(self.norm(self.a(x)))
        inner = self.c(self.drop(torch.relu(self.b(hidden))))
        return self.head(hidden + inner)


class Unbiased(nnx.BatchNorm):
    """A norm that keeps the variance as torch does, divided by n - 1."""

    def __call__(self, x: Any) -> Any:  # type: ignore[override]
        old, count = self.var[...], len(x)
        y = super().__call__(x)
        self.var[...] = self.momentum * old + (self.var[...] - self.momentum * old) * count / (count - 1)
        return y


class Port(nnx.Module):
    def __init__(self, rngs: nnx.Rngs, norm: Any = Unbiased, momentum: float = 0.9, **wrong: bool) -> None:
        sizes = ((4, 6), (6, 5), (5, 6), (6, 3))
        self.a, self.b, self.c, self.head = (nnx.Linear(*each, rngs=rngs) for each in sizes)
        self.norm, self.drop = norm(6, momentum=momentum, epsilon=1e-5, rngs=rngs), nnx.Dropout(0.3, rngs=rngs)
        self.wrong = wrong

    def __call__(self, x: Any) -> Any:
        hidden = jnp.tanh(self.norm(self.a(x)))
        inner = nnx.relu(self.b(hidden))
        inner = self.c(inner if self.wrong.get("undropped") else self.drop(inner))
        return self.head(inner if self.wrong.get("alone") else hidden + inner)


def original() -> Any:
    model = Net()
    optimizer = torch.optim.Adam(model.parameters(), RATE)

    def step(_: Any, batch: Any) -> Any:
        optimizer.zero_grad()
        total = torch.zeros(())
        for x, y in zip(batch["x"].chunk(2), batch["y"].chunk(2), strict=True):
            output = model(x)
            size = 0.5 * (output**2).mean()
            loss = (functional.cross_entropy(output, y, label_smoothing=0.1) + 0.5 * size) / 2
            loss.backward()
            total = total + loss.detach()
        optimizer.step()
        return {"loss": total, "size": size}

    return {"model": model, "optimizer": optimizer}, step


def port(smoothing: float = 0.1, half: float = 0.5, rate: float = RATE / 2, **model: Any) -> Any:
    def build() -> Any:
        net = Port(nnx.Rngs(0), **model)
        optimizer = nnx.Optimizer(net, optax.adam(rate), wrt=nnx.Param)

        def loss_of(net: Any, x: Any, y: Any) -> Any:
            output = net(x)
            size = half * jnp.mean(output**2)
            labels = optax.smooth_labels(jax.nn.one_hot(y, 3), smoothing)
            return optax.softmax_cross_entropy(output, labels).mean() + 0.5 * size, size

        @nnx.jit
        def step(state: Any, batch: Any) -> Any:
            losses, parts = [], []
            for x, y in zip(jnp.split(batch["x"], 2), jnp.split(batch["y"], 2), strict=True):
                (loss, size), gradients = nnx.value_and_grad(loss_of, has_aux=True)(state["net"], x, y)
                losses.append(loss)
                parts.append(gradients)
            state["optimizer"].update(state["net"], jax.tree.map(lambda *each: sum(each) / 2, *parts))
            return state, {"loss": sum(losses) / 2, "size": size}

        return {"net": net, "optimizer": optimizer}, step

    return build


def checked(**wrong: Any) -> compare.Report:
    rng = np.random.default_rng(0)
    batches = [{"x": rng.normal(size=(12, 4)), "y": rng.integers(0, 3, 12)} for _ in range(3)]
    sides = compare.TorchProgram(original), compare.JaxProgram(port(**wrong))
    return compare.check(*sides, batches, steps=3, device="cpu", quick=True)


def test_the_right_port_matches() -> None:
    report = checked(rate=RATE)
    assert report.verdict == "match", str(report)


@pytest.mark.parametrize(
    ("wrong", "cause", "says"),
    [
        ({"smoothing": 0.0}, "label smoothing", "with 0"),
        ({"norm": nnx.BatchNorm}, "biased running variance", "divided by n"),
        ({"momentum": 0.99}, "momentum", "with 0.01"),
        ({"undropped": True}, "dropout on one side", "training=False"),
        ({"alone": True}, "operation left out", "leaves out the sum"),
        ({"half": 1.0}, "operation left out", "mul by 0.5"),
    ],
    ids=["smoothing", "variance", "momentum", "dropout", "residual", "term"],
)
def test_what_is_behind_has_its_cause_too(wrong: dict[str, Any], cause: str, says: str) -> None:
    report = checked(**wrong)
    assert report.divergence is not None
    assert not report.bugs
    found = {each.cause.name: each.cause for each in (report.divergence, *report.others) if each.cause}
    assert found.keys() == {cause, "learning rate"}, str(report)
    assert says in found[cause].explanation
