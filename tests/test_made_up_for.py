"""A module of a port gives something else, and its loss makes up for it: no finding, whatever else differs."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
import torch
from flax import nnx

import compare


class Head(torch.nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.body, self.classes, self.size = torch.nn.Linear(5, 6), torch.nn.Linear(6, 3), torch.nn.Linear(6, 1)

    def forward(self, x: torch.Tensor) -> Any:
        hidden = torch.tanh(self.body(x))
        return self.classes(hidden).log_softmax(-1), self.size(hidden)


class HeadPort(nnx.Module):
    def __init__(self, rngs: nnx.Rngs) -> None:
        self.body, self.classes = nnx.Linear(5, 6, rngs=rngs), nnx.Linear(6, 3, rngs=rngs)
        self.size = nnx.Linear(6, 1, rngs=rngs)

    def __call__(self, x: jax.Array) -> Any:
        hidden = jnp.tanh(self.body(x))
        return self.classes(hidden), self.size(hidden)


def original() -> Any:
    torch.manual_seed(0)
    model = Head()
    optimizer = torch.optim.SGD(model.parameters(), 0.1)

    def step(state: Any, batch: Any) -> Any:
        del state
        scores, size = model(batch["x"])
        likelihood = -(scores * batch["y"]).sum(-1).mean()
        error = ((size - batch["size"]) ** 2).mean()
        loss = likelihood + error
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        return {"loss": loss, "likelihood": likelihood, "error": error}

    return {"model": model, "optimizer": optimizer}, step


def port(factor: float) -> Any:
    def build() -> Any:
        model = HeadPort(nnx.Rngs(0))
        optimizer = nnx.Optimizer(model, optax.sgd(0.1), wrt=nnx.Param)

        def loss_of(model: Any, batch: Any) -> Any:
            logits, size = model(batch["x"])
            likelihood = -jnp.mean(jnp.sum(jax.nn.log_softmax(2 * logits - logits) * batch["y"], -1))
            error = factor * jnp.mean((size - batch["size"]) ** 2)
            return likelihood + error, {"likelihood": likelihood, "error": error}

        @nnx.jit
        def step(state: Any, batch: Any) -> Any:
            (loss, terms), gradients = nnx.value_and_grad(loss_of, has_aux=True)(state["model"], batch)
            state["optimizer"].update(state["model"], gradients)
            return state, {"loss": loss, **terms}

        return {"model": model, "optimizer": optimizer}, step

    return build


def checked(factor: float) -> compare.Report:
    rng = np.random.default_rng(0)
    batches = [
        {"x": rng.standard_normal((6, 5)), "y": rng.random((6, 3)), "size": rng.standard_normal((6, 1))}
        for _ in range(3)
    ]
    return compare.check(compare.TorchProgram(original), compare.JaxProgram(port(factor)), batches, device="cpu")


@pytest.mark.slow
def test_another_output_of_a_model_hides_no_fault_of_the_loss() -> None:
    assert checked(1.0).ok
    report = checked(0.5)
    assert report.divergence is not None
    assert report.divergence.stage in ("shown", "loss"), str(report)
    assert not report.others, str(report)
