"""A step of torch's that counts in Python: each time that it is repeated, it starts from the same count."""

from typing import Any

import jax.numpy as jnp
import numpy as np
import optax
import torch
from flax import nnx

import compare
from compare.torch_side.counts import counts


def original() -> Any:
    torch.manual_seed(0)
    model = torch.nn.Linear(5, 3)
    optimizer = torch.optim.SGD(model.parameters(), 0.1)
    taken = 0

    def step(state: Any, batch: Any) -> Any:
        nonlocal taken
        del state
        taken += 1
        code = model(batch["x"])
        loss = (code - batch["y"]).abs().mean() + min(1.0, taken / 4) * (code**2).mean(0).clamp(min=0.3).sum()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        return {"loss": loss}

    return {"model": model, "optimizer": optimizer}, step


def port(*, each: bool) -> Any:
    def build() -> Any:
        model = nnx.Linear(5, 3, rngs=nnx.Rngs(0))
        optimizer = nnx.Optimizer(model, optax.sgd(0.1), wrt=nnx.Param)

        def loss_of(model: Any, batch: Any, taken: Any) -> Any:
            code = model(batch["x"])
            square = code**2
            free = jnp.maximum(square, 0.3).mean(0) if each else jnp.maximum(square.mean(0), 0.3)
            return jnp.abs(code - batch["y"]).mean() + jnp.minimum(1.0, taken / 4) * free.sum()

        @nnx.jit
        def step(state: Any, batch: Any) -> Any:
            taken = state["taken"] + 1
            loss, gradients = nnx.value_and_grad(loss_of)(state["model"], batch, taken)
            state["optimizer"].update(state["model"], gradients)
            return {**state, "taken": taken}, {"loss": loss}

        return {"model": model, "optimizer": optimizer, "taken": jnp.array(0)}, step

    return build


def test_a_cause_in_the_loss_of_a_step_that_counts() -> None:
    rng = np.random.default_rng(0)
    batches = [{"x": rng.standard_normal((6, 5)), "y": rng.standard_normal((6, 3))} for _ in range(3)]
    ports = compare.JaxProgram(port(each=True))
    report = compare.check(compare.TorchProgram(original), ports, batches, device="cpu")
    assert report.divergence is not None
    assert report.divergence.cause is not None, str(report)
    assert "applies clamp" in report.divergence.cause.explanation, str(report)


def test_numbers_are_put_back() -> None:
    class Kept:
        count = 0

    kept, numbers, table, count = Kept(), [1, 2], {"n": 3, "name": "x"}, 4
    kept.count = 5

    def inner() -> None:
        nonlocal count
        count += 1

    def step() -> tuple[Any, ...]:
        inner()
        numbers.append(0)
        table["n"] = 0
        kept.count += 1
        return count, numbers, table, kept.count

    put_back = counts(step)
    assert step() == (5, [1, 2, 0], {"n": 0, "name": "x"}, 6)
    put_back()
    assert (count, numbers, table, kept.count) == (4, [1, 2], {"n": 3, "name": "x"}, 5)
