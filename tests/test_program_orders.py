"""Orders that are drawn anew, and settings that an optimizer's state holds: right programs that looked wrong."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
import torch
from flax import nnx
from programs.common import FlaxNet, TorchNet, drawn
from test_program_kinds import checked, flax_plain, mse
from torch.nn import functional


def shuffled() -> Any:
    """Shuffle the same indices twice in a step, once for each epoch."""
    model = TorchNet()
    optimizer = torch.optim.SGD(model.parameters(), 0.1)

    def step(_: Any, batch: Any) -> Any:
        indices = np.arange(len(batch["x"]))
        for _epoch in range(2):
            np.random.shuffle(indices)  # noqa: NPY002
            for taken in (indices[:6], indices[6:]):
                loss = functional.mse_loss(model(batch["x"][taken]), batch["y"][taken])
                optimizer.zero_grad()
                loss.backward()
                optimizer.step()
        return {"loss": loss}

    return {"model": model, "optimizer": optimizer}, step


def flax_shuffled(*, again: bool, half: int = 6, rate: float = 0.1, loss: Any = mse) -> Any:
    model = FlaxNet(nnx.Rngs(0))
    optimizer = nnx.Optimizer(model, optax.sgd(rate), wrt=nnx.Param)

    @nnx.jit
    def step(state: Any, batch: Any) -> Any:
        key, *keys = jax.random.split(state["key"], 3)
        indices = jnp.arange(12)
        for each in keys:
            indices = jax.random.permutation(each, indices if again else 12)
            for taken in (indices[:half], indices[half:]):
                rows = batch["x"][taken], batch["y"][taken]
                shown, gradients = nnx.value_and_grad(lambda model, x, y: loss(model(x), y))(state["model"], *rows)
                state["optimizer"].update(state["model"], gradients)
        return {**state, "key": key}, {"loss": shown}

    return {"model": model, "optimizer": optimizer, "key": jax.random.key(0)}, step


@pytest.mark.slow
def test_a_new_order_in_each_epoch_is_as_good_as_one_that_is_shuffled_again() -> None:
    batches = drawn(x=(5,), y=(3,))
    for again in (True, False):
        report = checked(shuffled, lambda again=again: flax_shuffled(again=again), batches, steps=2, quick=True)
        assert report.verdict == "match", str(report)
    assert checked(shuffled, lambda: flax_shuffled(again=False, half=5), batches, steps=2).verdict == "mismatch"


def absolute(output: jax.Array, target: jax.Array) -> jax.Array:
    return jnp.abs(output - target).mean()


@pytest.mark.parametrize(("fault", "cause"), [({"rate": 0.2}, "learning rate"), ({"loss": absolute}, "another loss")])
def test_a_fault_before_the_second_order_is_the_only_finding(fault: dict[str, Any], cause: str) -> None:
    """With torch's second order in place of its own, the port would differ from the second epoch on."""
    batches = drawn(x=(5,), y=(3,))
    report = checked(shuffled, lambda: flax_shuffled(again=False, **fault), batches, steps=2, quick=True)
    assert report.divergence is not None
    assert report.divergence.cause is not None
    assert report.divergence.cause.name == cause
    assert not report.others


def test_settings_in_the_state_of_an_optimizer_are_the_numbers_of_the_users_code() -> None:
    """`optax.inject_hyperparams` keeps 0.999 in float32, as 0.99900001287; in float64 it is 0.999."""
    batches = drawn(x=(5,), y=(3,))

    def original() -> Any:
        model = TorchNet()
        optimizer = torch.optim.Adam(model.parameters(), 1e-3, eps=1e-5)

        def step(_: Any, batch: Any) -> Any:
            loss = functional.mse_loss(model(batch["x"]), batch["y"])
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            return {"loss": loss}

        return {"model": model, "optimizer": optimizer}, step

    def port(eps: float) -> Any:
        state, step = flax_plain()
        made = optax.inject_hyperparams(optax.adam)(learning_rate=optax.constant_schedule(1e-3), eps=eps)
        return {**state, "optimizer": nnx.Optimizer(state["model"], made, wrt=nnx.Param)}, step

    assert checked(original, lambda: port(1e-5), batches, steps=3, quick=True).verdict != "mismatch"
    assert checked(original, lambda: port(1.01e-5), batches, steps=3, quick=True).verdict == "mismatch"
