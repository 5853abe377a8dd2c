"""What a step's model and loss compute otherwise is explained as in a check of models, whatever else the step does."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
import torch
from flax import nnx
from in_ci import first

import compare
from compare.torch_side.program import TorchProgram
from compare.torch_side.program_run import TorchProgramRun
from compare.torch_side.snapshot import snapshot


class Net(torch.nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.inner, self.norm = torch.nn.Linear(6, 16), torch.nn.LayerNorm(16)
        self.mixed, self.outer = torch.nn.Linear(16, 16), torch.nn.Linear(16, 3)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        hidden = torch.nn.functional.gelu(self.norm(self.inner(x)))
        return self.outer(hidden + torch.tanh(self.mixed(hidden)))


class Port(nnx.Module):
    def __init__(self, rngs: nnx.Rngs, *, epsilon: float, approximate: bool, residual: bool) -> None:
        self.inner, self.mixed = nnx.Linear(6, 16, rngs=rngs), nnx.Linear(16, 16, rngs=rngs)
        self.outer = nnx.Linear(16, 3, rngs=rngs)
        self.norm = nnx.LayerNorm(16, epsilon=epsilon, rngs=rngs)
        self.approximate, self.residual = approximate, residual

    def __call__(self, x: jax.Array) -> jax.Array:
        hidden = nnx.gelu(self.norm(self.inner(x)), approximate=self.approximate)
        mixed = jnp.tanh(self.mixed(hidden))
        return self.outer(hidden + mixed if self.residual else mixed)


def original() -> Any:
    model = Net()
    optimizer = torch.optim.AdamW(model.parameters(), 1e-2)

    def step(state: Any, batch: Any) -> dict[str, Any]:
        del state
        loss = torch.nn.functional.cross_entropy(model(batch["x"]), batch["y"], label_smoothing=0.1)
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 0.5)
        optimizer.step()
        return {"loss": loss}

    return {"model": model, "optimizer": optimizer}, step


def clipped(gradients: Any) -> Any:
    """Clip as torch does: `optax.clip_by_global_norm` does not add 1e-6 to the norm."""
    return optax.tree.scale(jnp.minimum(1.0, 0.5 / (optax.tree.norm(gradients) + 1e-6)), gradients)


def port(*, smoothing: float = 0.1, decay: float = 1e-2, in_chain: bool = False, **model: Any) -> Any:
    settings = {"epsilon": 1e-5, "approximate": False, "residual": True, **model}

    def build() -> Any:
        adam = optax.adamw(1e-2, weight_decay=decay)
        transform = optax.chain(optax.clip_by_global_norm(0.5), adam) if in_chain else adam
        net = Port(nnx.Rngs(0), **settings)
        optimizer = nnx.Optimizer(net, transform, wrt=nnx.Param)

        @nnx.jit
        def step(state: Any, batch: Any) -> Any:
            def loss_of(model: Any) -> jax.Array:
                labels = optax.smooth_labels(jax.nn.one_hot(batch["y"], 3), smoothing)
                return optax.softmax_cross_entropy(model(batch["x"]), labels).mean()

            loss, gradients = nnx.value_and_grad(loss_of)(state["model"])
            state["optimizer"].update(state["model"], gradients if in_chain else clipped(gradients))
            return state, {"loss": loss}

        return {"model": net, "optimizer": optimizer}, step

    return build


def checked(**wrong: Any) -> compare.Report:
    rng = np.random.default_rng(0)
    batches = [{"x": rng.normal(size=(8, 6)).astype("f"), "y": rng.integers(0, 3, 8)} for _ in range(3)]
    return compare.check(compare.TorchProgram(original), compare.JaxProgram(port(**wrong)), batches, steps=4)


def causes(report: compare.Report) -> list[str]:
    found = [each for each in (report.divergence, *report.others) if each is not None]
    return [each.cause.name if each.cause else "" for each in found]


def test_the_right_port_matches() -> None:
    assert checked().verdict == "match"


@pytest.mark.slow
def test_each_fault_is_explained_beside_the_others() -> None:
    """One in a layer, one between layers, one of the optimizer's settings, and one of its clipping."""
    report = checked(epsilon=1e-6, approximate=True, decay=1e-4, in_chain=True)
    names = causes(report)
    assert names[:2] == ["epsilon", "activation"], str(report)
    assert all(any(word in name for name in names[2:]) for word in ("clipping", "weight decay")), str(report)
    assert report.divergence is not None
    assert report.divergence.cause is not None
    assert report.divergence.cause.fix == "nnx.LayerNorm(..., epsilon=1e-05)"
    lines = [line.source.text for line in report.others[0].lines if line.side == "jax"]
    assert any("nnx.gelu" in text for text in lines), lines


@pytest.mark.parametrize(
    ("wrong", "cause", "says"),
    first(
        [
            ({"residual": False}, "operation left out", "leaves out the sum"),
            ({"smoothing": 0.0}, "label smoothing", "label_smoothing=0.1"),
        ]
    ),
)
def test_structure_and_losses_are_explained_beside_another_fault(wrong: dict[str, Any], cause: str, says: str) -> None:
    report = checked(in_chain=True, **wrong)
    assert report.divergence is not None
    assert report.divergence.cause is not None, str(report)
    assert report.divergence.cause.name == cause
    assert says in report.divergence.cause.explanation


def test_a_step_can_be_taken_again_from_its_snapshot() -> None:
    def build() -> Any:
        model, history = torch.nn.Linear(2, 1), [torch.zeros(1)]
        optimizer = torch.optim.Adam(model.parameters())
        schedule = torch.optim.lr_scheduler.StepLR(optimizer, 1, 0.5)

        def step(state: Any, batch: Any) -> dict[str, Any]:
            loss = model(batch).mean() + 0 * len(history)
            loss.backward()  # gradients are added to those of the step before
            optimizer.step()
            schedule.step()
            state["count"] = state["count"] + 1
            history.append(loss.detach())
            return {"loss": loss, "count": torch.tensor(float(state["count"]))}

        return {"model": model, "optimizer": optimizer, "schedule": schedule, "count": 0, "history": history}, step

    run = TorchProgramRun(TorchProgram(build), "float64", "cpu")
    batch = np.ones((3, 2))
    run.step(batch)
    restore = snapshot(run)
    seen = []
    for _ in range(2):
        restore()
        taken = run.step(batch)
        seen.append({**{n: each.clone() for n, each in taken.parameters.items()}, **taken.shown})
    assert all(torch.equal(seen[0][name], seen[1][name]) for name in seen[0])
    assert len(run.state.entries["history"]) == 3
