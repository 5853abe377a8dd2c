"""An output that differs and that the port's loss makes up for: it is no finding beside another fault."""

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
from torch import nn
from torch.nn import functional

import compare

Loss = Callable[[Any, Any], Any]


class Original(nn.Module):
    def __init__(self, last: Callable[[torch.Tensor], torch.Tensor]) -> None:
        super().__init__()
        self.one, self.two, self.last = nn.Linear(5, 6), nn.Linear(6, 4), last

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.last(self.two(torch.tanh(self.one(x))))


class Port(nnx.Module):
    def __init__(self, rngs: nnx.Rngs) -> None:
        self.one, self.two = nnx.Linear(5, 6, rngs=rngs), nnx.Linear(6, 4, rngs=rngs)

    def __call__(self, x: jax.Array) -> jax.Array:
        return self.two(jnp.tanh(self.one(x)))


class Buffered(nn.Module):
    """Has a tensor that is no parameter, as a norm has: such a tensor cannot be copied within a controlled step."""

    temperature: torch.Tensor

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("temperature", torch.ones(1), persistent=False)

    def forward(self, y: torch.Tensor) -> torch.Tensor:
        return functional.log_softmax(y / self.temperature, -1)


def label_loss(logits: Any, target: Any) -> Any:
    return optax.softmax_cross_entropy_with_integer_labels(logits, target).mean()


def binary_loss(logits: Any, target: Any) -> Any:
    return optax.sigmoid_binary_cross_entropy(logits, jax.nn.one_hot(target, 4)).mean()


LOSSES: dict[str, tuple[Any, Loss, Loss]] = {
    "log_softmax": (lambda y: functional.log_softmax(y, -1), functional.nll_loss, label_loss),
    "log_softmax of a module with a buffer": (Buffered(), functional.nll_loss, label_loss),
    "sigmoid": (
        torch.sigmoid,
        lambda y, target: functional.binary_cross_entropy(y, functional.one_hot(target, 4).to(y.dtype)),
        binary_loss,
    ),
}
NEITHER: tuple[Any, Loss, Loss] = (
    torch.sigmoid,
    lambda y, target: torch.square(y - target[:, None]).mean(),
    lambda y, target: jnp.square(y - target[:, None]).mean(),
)


def checked(kind: str, *, nesterov: bool = True, factor: float = 1.0) -> compare.Report:
    torch.manual_seed(0)
    last, ours, theirs = LOSSES.get(kind, NEITHER)
    rng = np.random.default_rng(0)
    batches = [(rng.standard_normal((6, 5), np.float32), rng.integers(0, 4, 6)) for _ in range(3)]
    return compare.check(
        compare.Torch(Original(last), ours, lambda p: torch.optim.SGD(p, 0.1, momentum=0.9, nesterov=True)),
        compare.Flax(
            Port(nnx.Rngs(0)),
            lambda output, target: factor * theirs(output, target),
            optax.sgd(0.1, momentum=0.9, nesterov=nesterov),
        ),
        batches,
        steps=3,
        quick=True,
    )


@pytest.mark.parametrize("kind", LOSSES)
def test_it_matches_where_nothing_else_differs(kind: str) -> None:
    assert checked(kind).verdict == "match"


@pytest.mark.parametrize("kind", LOSSES)
def test_a_fault_of_the_optimizer_is_the_only_finding(kind: str) -> None:
    report = checked(kind, nesterov=False)
    assert report.divergence is not None
    assert report.divergence.stage == "update"
    assert not report.others


@pytest.mark.parametrize("kind", LOSSES)
def test_a_fault_of_the_loss_is_the_only_finding(kind: str) -> None:
    report = checked(kind, factor=0.5)
    assert report.divergence is not None
    assert report.divergence.stage == "loss"
    assert report.divergence.cause is not None
    assert not report.divergence.cause.code  # torch's formula takes another output
    assert not report.others


def test_an_activation_that_the_loss_lacks_as_well_is_a_finding() -> None:
    divergence = checked("sigmoid, and none in the port").divergence
    assert divergence is not None
    assert divergence.stage == "forward"


def test_a_fault_of_the_loss_is_the_only_finding_in_a_program() -> None:
    last, ours, theirs = LOSSES["sigmoid"]

    def original() -> Any:
        model = Original(last)
        optimizer = torch.optim.SGD(model.parameters(), 0.1)
        return trained_in_torch(model, optimizer, lambda model, batch: ours(model(batch["x"]), batch["y"]))

    def port() -> Any:
        return trained(
            Port(nnx.Rngs(0)), optax.sgd(0.1), lambda model, batch: 0.5 * theirs(model(batch["x"]), batch["y"])
        )

    rng = np.random.default_rng(0)
    batches = [{"x": rng.normal(size=(6, 5)), "y": rng.integers(0, 4, 6)} for _ in range(3)]
    report = compare.check(compare.TorchProgram(original), compare.JaxProgram(port), batches, steps=3)
    assert report.divergence is not None
    assert report.divergence.stage == "loss"
    assert report.divergence.cause is not None


def test_a_fault_before_it_is_the_only_finding_in_a_program() -> None:
    """With the fault mended, what differs at the end of the model is made up for as well."""
    last, ours, _ = LOSSES["sigmoid"]

    class Other(Port):
        def __call__(self, x: jax.Array) -> jax.Array:
            return self.two(jax.nn.relu(self.one(x)))

    report = in_programs(last, lambda model, batch: ours(model(batch["x"]), batch["y"]), Other, binary_loss)
    assert report.divergence is not None
    assert report.divergence.cause is not None
    assert report.divergence.cause.name == "activation"
    assert not report.others, str(report)


def test_a_fault_of_one_loss_of_two_is_the_only_finding() -> None:
    """As of a generator: the discriminator's own loss, which is right, tells that its logits are made up for."""
    last, ours, theirs = LOSSES["sigmoid"]

    def both(loss: Loss, model: Any, batch: Any, factor: float) -> Any:
        return {"one": loss(model(batch["x"]), batch["y"]), "two": factor * loss(model(batch["other"]), batch["y"])}

    def original() -> Any:
        model = Original(last)
        optimizer = torch.optim.SGD(model.parameters(), 0.1)

        def step(state: Any, batch: Any) -> Any:
            del state
            losses = both(ours, model, batch, 1.0)
            optimizer.zero_grad()
            sum(losses.values()).backward()
            optimizer.step()
            return {"loss": sum(losses.values()), **losses}

        return {"model": model, "optimizer": optimizer}, step

    def port() -> Any:
        def loss_of(model: Any, batch: Any) -> Any:
            losses = both(theirs, model, batch, 3.0)
            return sum(losses.values()), losses

        model = Port(nnx.Rngs(0))
        optimizer = nnx.Optimizer(model, optax.sgd(0.1), wrt=nnx.Param)

        @nnx.jit
        def step(state: Any, batch: Any) -> Any:
            (loss, losses), gradients = nnx.value_and_grad(loss_of, has_aux=True)(state["model"], batch)
            state["optimizer"].update(state["model"], gradients)
            return state, {"loss": loss, **losses}

        return {"model": model, "optimizer": optimizer}, step

    report = compare.check(compare.TorchProgram(original), compare.JaxProgram(port), batches(), steps=3)
    assert report.divergence is not None
    assert (report.divergence.stage, report.divergence.torch) == ("loss", "loss"), str(report)


def test_what_is_made_up_for_is_not_counted_in_the_table_of_a_match() -> None:
    last, ours, theirs = LOSSES["sigmoid"]
    report = in_programs(last, lambda model, batch: ours(model(batch["x"]), batch["y"]), Port, theirs)
    assert report.verdict == "match"
    assert all(max(each.error64) < 1e-9 for each in report.quantities)
    assert "model" in [each.name.partition(" ")[0] for each in report.not_compared if "makes up" in each.reason]


def batches() -> list[Any]:
    rng = np.random.default_rng(0)
    shapes = {"x": (6, 5), "other": (6, 5)}
    return [{n: rng.normal(size=s) for n, s in shapes.items()} | {"y": rng.integers(0, 4, 6)} for _ in range(3)]


def in_programs(last: Any, loss_of: Loss, module: type[Port], theirs: Loss) -> compare.Report:
    def original() -> Any:
        torch.manual_seed(0)
        model = Original(last)
        return trained_in_torch(model, torch.optim.SGD(model.parameters(), 0.1), loss_of)

    def port() -> Any:
        model = module(nnx.Rngs(0))
        return trained(model, optax.sgd(0.1), lambda model, batch: theirs(model(batch["x"]), batch["y"]))

    return compare.check(compare.TorchProgram(original), compare.JaxProgram(port), batches(), steps=3)
