"""Causes in a step whose forward pass draws, keeps statistics, or runs once for each micro-batch, and what is behind.

Each has a second fault behind it, in the optimizer: it is found only if the first is made in torch's step, at all
steps.
"""

from itertools import pairwise
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
import torch
from flax import nnx
from in_ci import first
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
    first(
        [
            ({"momentum": 0.99}, "momentum", "with 0.01"),
            ({"norm": nnx.BatchNorm}, "biased running variance", "divided by n"),
            ({"smoothing": 0.0}, "label smoothing", "with 0"),
            ({"undropped": True}, "dropout on one side", "training=False"),
            ({"alone": True}, "operation left out", "leaves out the sum"),
            ({"half": 1.0}, "operation left out", "mul by 0.5"),
        ],
        0,
    ),
    ids=["momentum", "variance", "smoothing", "dropout", "residual", "term"],
)
def test_what_is_behind_has_its_cause_too(wrong: dict[str, Any], cause: str, says: str) -> None:
    report = checked(**wrong)
    assert report.divergence is not None
    assert not report.bugs
    found = {each.cause.name: each.cause for each in (report.divergence, *report.others) if each.cause}
    assert found.keys() == {cause, "learning rate"}, str(report)
    assert says in found[cause].explanation


class Two(nnx.Module):
    def __init__(self, sizes: tuple[int, int, int], rngs: nnx.Rngs) -> None:
        self.a, self.b = (nnx.Linear(*each, rngs=rngs) for each in pairwise(sizes))

    def __call__(self, x: Any) -> Any:
        return self.b(jnp.tanh(self.a(x)))


def penalized() -> Any:
    """Penalize the critic's gradient by its input, as a WGAN-GP does, and update the generator behind it."""
    layers = torch.nn.Linear
    makes = torch.nn.Sequential(layers(3, 5), torch.nn.Tanh(), layers(5, 4))
    judges = torch.nn.Sequential(layers(4, 6), torch.nn.Tanh(), layers(6, 1))
    one, two = (torch.optim.Adam(each.parameters(), RATE) for each in (makes, judges))

    def step(_: Any, batch: Any) -> Any:
        between = ((batch["x"] + makes(batch["z"]).detach()) / 2).requires_grad_(True)
        (gradient,) = torch.autograd.grad(judges(between).sum(), between, create_graph=True)
        loss = ((gradient.norm(dim=1) - 1) ** 2).mean() - judges(batch["x"]).mean()
        two.zero_grad()
        loss.backward()
        two.step()
        one.zero_grad()
        (-judges(makes(batch["z"])).mean()).backward()
        one.step()
        return {"loss": loss}

    return {"makes": makes, "judges": judges, "one": one, "two": two}, step


def flax_penalized(*, stopped: bool, rate: float) -> Any:
    def build() -> Any:
        makes, judges = Two((3, 5, 4), nnx.Rngs(0)), Two((4, 6, 1), nnx.Rngs(1))
        one, two = (nnx.Optimizer(m, optax.adam(r), wrt=nnx.Param) for m, r in ((makes, rate), (judges, RATE)))

        @nnx.jit
        def step(state: Any, batch: Any) -> Any:
            makes, judges = state["makes"], state["judges"]
            between = (batch["x"] + makes(batch["z"])) / 2

            def loss_of(judges: Any) -> Any:
                gradient = jax.grad(lambda x: judges(x).sum())(between)
                gradient = jax.lax.stop_gradient(gradient) if stopped else gradient
                return jnp.mean((jnp.linalg.norm(gradient, axis=1) - 1) ** 2) - judges(batch["x"]).mean()

            loss, gradients = nnx.value_and_grad(loss_of)(judges)
            state["two"].update(judges, gradients)
            state["one"].update(makes, nnx.grad(lambda makes: -judges(makes(batch["z"])).mean())(makes))
            return state, {"loss": loss}

        return {"makes": makes, "judges": judges, "one": one, "two": two}, step

    return build


@pytest.mark.parametrize(
    ("stopped", "rate", "expected"),
    [(False, RATE, []), (True, RATE / 2, ["second derivative", "learning rate"])],
    ids=["right", "wrong"],
)
def test_a_fault_behind_the_first_update_does_not_hide_one_before_it(
    stopped: bool, rate: float, expected: list[str]
) -> None:
    rng = np.random.default_rng(0)
    batches = [{"x": rng.normal(size=(6, 4)), "z": rng.normal(size=(6, 3))} for _ in range(3)]
    sides = compare.TorchProgram(penalized), compare.JaxProgram(flax_penalized(stopped=stopped, rate=rate))
    report = compare.check(*sides, batches, steps=3, device="cpu", quick=True)
    places = [report.divergence, *report.others] if report.divergence else []
    assert [each.cause.name if each.cause else "" for each in places] == expected, str(report)
