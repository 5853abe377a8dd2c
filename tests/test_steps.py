"""Where a step does something is no difference if the state comes out the same; what is not seen is not said."""

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

import compare

RNG = np.random.default_rng(0)
BATCHES = [{"x": RNG.normal(size=(8, 4)), "y": RNG.normal(size=(8, 2))} for _ in range(4)]


def original(clip: float = 0.0, decay: Callable[[int], float] | None = None) -> compare.TorchProgram:
    """A linear model; gradients are clipped in the loop, and an average follows the weights with a decay of its own."""

    def build() -> Any:
        model = torch.nn.Linear(4, 2)
        optimizer, average, number = torch.optim.SGD(model.parameters(), lr=0.1), copy.deepcopy(model), 0

        def step(state: Any, batch: Any) -> Any:
            nonlocal number
            number += 1
            loss = torch.nn.functional.mse_loss(model(batch["x"]), batch["y"])
            optimizer.zero_grad()
            loss.backward()
            if clip:
                torch.nn.utils.clip_grad_norm_(model.parameters(), clip)
            optimizer.step()
            if decay:
                with torch.no_grad():
                    for old, new in zip(average.parameters(), model.parameters(), strict=True):
                        old.lerp_(new, 1 - decay(number))
            return {"loss": loss}

        return {"model": model, "optimizer": optimizer} | ({"average": average} if decay else {}), step

    return compare.TorchProgram(build)


def clipped(norm: float) -> optax.GradientTransformation:
    """`torch.nn.utils.clip_grad_norm_`, which divides by the norm plus 1e-6."""

    def update(gradients: Any, state: Any, params: Any = None) -> Any:
        factor = jnp.minimum(1.0, norm / (optax.tree.norm(gradients) + 1e-6))
        return jax.tree.map(lambda leaf: leaf * factor, gradients), state

    return optax.GradientTransformation(lambda params: optax.EmptyState(), update)


def with_nnx(optimizer: optax.GradientTransformation, scale: float = 1.0) -> compare.JaxProgram:
    def build() -> Any:
        model = nnx.Linear(4, 2, rngs=nnx.Rngs(0))

        @nnx.jit
        def step(state: Any, batch: Any) -> Any:
            mse = nnx.value_and_grad(lambda model: jnp.mean((model(batch["x"]) - batch["y"]) ** 2))
            loss, gradients = mse(state["model"])
            state["optimizer"].update(state["model"], jax.tree.map(lambda leaf: leaf * scale, gradients))
            return state, {"loss": loss}

        return {"model": model, "optimizer": nnx.Optimizer(model, optimizer, wrt=nnx.Param)}, step

    return compare.JaxProgram(build)


def with_optax(optimizer: optax.GradientTransformation, scale: float = 1.0, keep: float = 0.0) -> compare.JaxProgram:
    """A step that calls optax itself: what it gives the optimizer is not seen."""

    def build() -> Any:
        params = {"kernel": jnp.zeros((4, 2)), "bias": jnp.zeros(2)}
        first = {"model": params, "optimizer": optimizer.init(params)}

        def step(state: Any, batch: Any) -> Any:
            def mse(params: Any) -> jax.Array:
                return jnp.mean((batch["x"] @ params["kernel"] + params["bias"] - batch["y"]) ** 2)

            loss, gradients = jax.value_and_grad(mse)(state["model"])
            gradients = jax.tree.map(lambda leaf: leaf * scale, gradients)
            updates, slots = optimizer.update(gradients, state["optimizer"], state["model"])
            new = optax.apply_updates(state["model"], updates)
            after = {"model": new, "optimizer": slots}
            if keep:
                after["average"] = optax.incremental_update(new, state["average"], 1 - keep)
            return after, {"loss": loss}

        return first | ({"average": jax.tree.map(jnp.copy, params)} if keep else {}), step

    return compare.JaxProgram(build)


def checked(torch_side: compare.TorchProgram, jax_side: compare.JaxProgram) -> compare.Report:
    return compare.check(torch_side, jax_side, BATCHES, device="cpu")


def test_clipping_within_the_optimizer_is_no_difference() -> None:
    report = checked(original(clip=0.2), with_nnx(optax.chain(clipped(0.2), optax.sgd(0.1))))
    assert report.verdict == "match", str(report)
    assert "gradient" in {quantity.stage for quantity in report.quantities}


def test_gradients_of_another_size_are_one_however_much_is_clipped() -> None:
    """Twice the gradients give the same update where all are clipped: the gradients themselves differ."""
    report = checked(original(clip=0.2), with_nnx(optax.chain(clipped(0.2), optax.sgd(0.1)), scale=2.0))
    assert report.verdict == "mismatch"
    assert report.divergence is not None
    assert report.divergence.stage == "gradient"


@pytest.mark.parametrize("port", [with_nnx, with_optax])
def test_clipping_left_out_is_clipping_and_no_schedule(port: Any) -> None:
    """A rate for each step would explain the updates too, with as many numbers as there are steps."""
    report = checked(original(clip=0.2), port(optax.sgd(0.1)))
    assert report.divergence is not None
    assert report.divergence.cause is not None
    assert report.divergence.cause.name == "clipping"
    assert not report.others


def test_half_the_gradients_are_not_called_half_the_rate_where_neither_is_seen() -> None:
    report = checked(original(), with_optax(optax.sgd(0.1), scale=0.5))
    assert report.divergence is not None
    assert report.divergence.cause is None
    assert "two causes fit" in str(report)


def test_a_decay_that_changes_is_given_for_each_step() -> None:
    report = checked(original(decay=lambda step: (1 + step) / (10 + step)), with_optax(optax.sgd(0.1), keep=0.99))
    assert report.divergence is not None
    assert report.divergence.cause is not None
    assert "torch keeps 2/11, 0.25, 4/13, 5/14" in report.divergence.cause.explanation
    assert "9/11, 0.75, 9/13, 9/14" in report.divergence.cause.fix


def test_losses_of_two_names_are_refused() -> None:
    def build() -> Any:
        state, step = with_optax(optax.sgd(0.1)).build()

        def renamed(state: Any, batch: Any) -> Any:
            after, shown = step(state, batch)
            return after, {"train_loss": shown["loss"]}

        return state, renamed

    with pytest.raises(compare.InputError, match="the JAX step returns 'train_loss' and no \"loss\""):
        checked(original(), compare.JaxProgram(build))


def test_a_state_without_an_optimizer_is_refused() -> None:
    def build() -> Any:
        state, step = original().build()
        return {"model": state["model"]}, step

    with pytest.raises(compare.InputError, match=r"the torch state holds no torch\.optim\.Optimizer"):
        checked(compare.TorchProgram(build), with_optax(optax.sgd(0.1)))
