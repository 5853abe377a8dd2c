"""What a step shows besides its loss: images in the order of their own side, shapes, and when it was computed."""

from collections.abc import Callable
from typing import Any

import jax.numpy as jnp
import numpy as np
import optax
import pytest
import torch
from flax import nnx
from torch import nn

import compare


class Original(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 4, 3, padding=1)

    def forward(self, x: Any) -> Any:
        return torch.tanh(self.conv(x))


class Port(nnx.Module):
    def __init__(self, rngs: nnx.Rngs) -> None:
        self.conv = nnx.Conv(3, 4, (3, 3), padding=1, rngs=rngs)

    def __call__(self, x: Any) -> Any:
        return jnp.tanh(self.conv(x))


def original() -> Any:
    model = Original()
    optimizer = torch.optim.SGD(model.parameters(), 0.1)

    def step(_: Any, batch: Any) -> Any:
        y = model(batch["x"])
        loss = y.square().mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        return {"loss": loss, "y": y, "mean": y.mean((2, 3))}

    return {"model": model, "optimizer": optimizer}, step


def port(shown: Callable[[Any], dict[str, Any]]) -> Any:
    model = Port(nnx.Rngs(0))
    optimizer = nnx.Optimizer(model, optax.sgd(0.1), wrt=nnx.Param)

    @nnx.jit
    def step(state: Any, batch: Any) -> Any:
        def loss_fn(model: Any) -> Any:
            y = model(batch["x"])
            return jnp.square(y).mean(), y

        (loss, y), gradients = nnx.value_and_grad(loss_fn, has_aux=True)(state["model"])
        state["optimizer"].update(state["model"], gradients)
        return state, {"loss": loss, **shown(y)}

    return {"model": model, "optimizer": optimizer}, step


def checked(size: int, shown: Callable[[Any], dict[str, Any]]) -> compare.Report:
    """Compare on images of a size: of 4, with as many channels, every order of axes has the same shape."""
    rng = np.random.default_rng(0)
    batches = [{"x": rng.standard_normal((5, 3, size, size), np.float32)} for _ in range(2)]
    sides = (
        compare.TorchProgram(original),
        compare.JaxProgram(lambda: port(shown), lambda batch: {"x": np.moveaxis(batch["x"], 1, -1)}),
    )
    return compare.check(*sides, batches, steps=2, device="cpu", quick=True)


@pytest.mark.parametrize("size", [4, 7])
def test_images_are_compared_in_the_order_of_torch(size: int) -> None:
    report = checked(size, lambda y: {"y": y, "mean": y.mean((1, 2))})
    assert report.verdict == "match", str(report)
    assert {"y", "mean"} <= {each.torch for each in report.quantities}


@pytest.mark.parametrize("size", [4, 7])
def test_a_factor_of_what_is_computed_before_the_update_is_a_cause(size: int) -> None:
    found = checked(size, lambda y: {"y": 1.25 * y, "mean": y.mean((1, 2))}).divergence
    assert found is not None
    assert (found.stage, found.torch) == ("shown", "y")
    assert found.cause is not None
    assert "1.25" in found.cause.explanation or "5/4" in found.cause.explanation


def test_another_shape_is_a_cause_wherever_it_is_computed() -> None:
    found = checked(7, lambda y: {"y": y, "mean": y.mean(0)}).divergence
    assert found is not None
    assert (found.stage, found.torch) == ("shown", "mean")
    assert found.cause is not None
    assert found.cause.name == "shape"
    assert "(5, 4)" in found.cause.explanation


def test_axes_of_equal_length_are_not_exchanged() -> None:
    """Attention by keys and queries is no other order of the port's: nothing else in it has one."""

    def original() -> Any:
        model = nn.Linear(4, 4)
        optimizer = torch.optim.SGD(model.parameters(), 0.1)

        def step(_: Any, batch: Any) -> Any:
            y = model(batch["x"])
            scores = y @ batch["x"].transpose(1, 2)
            loss = scores.square().mean()
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            return {"loss": loss, "scores": scores, "each": scores.mean((1, 2))}

        return {"model": model, "optimizer": optimizer}, step

    def port(*, exchanged: bool, kept: bool) -> Any:
        model = nnx.Linear(4, 4, rngs=nnx.Rngs(0))
        optimizer = nnx.Optimizer(model, optax.sgd(0.1), wrt=nnx.Param)

        @nnx.jit
        def step(state: Any, batch: Any) -> Any:
            def loss_fn(model: Any) -> Any:
                scores = model(batch["x"]) @ batch["x"].swapaxes(1, 2)
                return jnp.square(scores).mean(), scores

            (loss, scores), gradients = nnx.value_and_grad(loss_fn, has_aux=True)(state["model"])
            state["optimizer"].update(state["model"], gradients)
            each = scores.mean((1, 2), keepdims=kept)
            return state, {"loss": loss, "scores": scores.swapaxes(1, 2) if exchanged else scores, "each": each}

        return {"model": model, "optimizer": optimizer}, step

    def found(**settings: bool) -> Any:
        rng = np.random.default_rng(0)
        batches = [{"x": rng.standard_normal((6, 3, 4), np.float32)} for _ in range(2)]
        sides = compare.TorchProgram(original), compare.JaxProgram(lambda: port(**settings))
        divergence = compare.check(*sides, batches, steps=2, device="cpu", quick=True).divergence
        return divergence and divergence.torch

    assert found(exchanged=False, kept=False) is None
    assert found(exchanged=True, kept=False) == "scores"
    assert found(exchanged=False, kept=True) == "each"
