"""A module of a port gives something else, and its loss makes up for it: no finding, whatever else differs."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
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


def test_another_output_of_a_model_hides_no_fault_of_the_loss() -> None:
    assert checked(1.0).ok
    report = checked(0.5)
    assert report.divergence is not None
    assert report.divergence.stage in ("shown", "loss"), str(report)
    assert not report.others, str(report)


class Causal(torch.nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv, self.out = torch.nn.Conv1d(3, 4, 3, padding=2), torch.nn.Linear(4, 2)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        length = x.shape[-1]
        return self.out(torch.tanh(self.conv(x)[..., :length]).mT)


class CausalPort(nnx.Module):
    def __init__(self, *, bounded: bool) -> None:
        self.conv = nnx.Conv(3, 4, (3,), padding="CAUSAL", rngs=nnx.Rngs(0))
        self.out, self.bounded = nnx.Linear(4, 2, rngs=nnx.Rngs(1)), bounded

    def __call__(self, x: jax.Array) -> jax.Array:
        x = self.conv(x)
        return self.out(jnp.tanh(x) if self.bounded else x)


def test_what_torch_cuts_off_is_no_finding_beside_another_fault() -> None:
    rng = np.random.default_rng(0)
    batches = [(rng.normal(size=(2, 3, length)), rng.normal(size=(2, length, 2))) for length in (6, 5, 6)]
    torch.manual_seed(0)
    for bounded in (True, False):
        report = compare.check(
            compare.Torch(Causal(), torch.nn.functional.mse_loss, lambda weights: torch.optim.SGD(weights, 0.1)),
            compare.Flax(
                CausalPort(bounded=bounded),
                lambda output, target: jnp.square(output - target).mean(),
                optax.sgd(0.1),
                batch=lambda x, y: (x.swapaxes(1, 2), y),
            ),
            batches,
        )
        if bounded:
            assert report.verdict == "match", str(report)
            continue
        assert report.divergence is not None
        assert report.divergence.cause is not None, str(report)
        assert "torch tanh" in report.divergence.cause.explanation
        assert not report.others, str(report)
