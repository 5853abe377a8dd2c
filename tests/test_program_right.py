"""Right programs that people write and that once failed: micro-batches one by one, a copy that never runs."""

import copy
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
import torch
from flax import nnx
from in_ci import first
from programs.regression import clipped, original, port
from torch.nn import functional

import compare


def accumulated() -> Any:
    model = torch.nn.Linear(4, 3)
    optimizer = torch.optim.AdamW(model.parameters(), 1e-2, weight_decay=0.01)

    def step(_: Any, batch: Any) -> Any:
        optimizer.zero_grad()
        for x, y in zip(batch["x"].chunk(2), batch["y"].chunk(2), strict=True):
            loss = functional.mse_loss(model(x), y) / 2
            loss.backward()
        optimizer.step()
        return {"loss": loss * 2}

    return {"model": model, "optimizer": optimizer}, step


def one_by_one(rate: float) -> Any:
    def build() -> Any:
        model = nnx.Linear(4, 3, rngs=nnx.Rngs(0))
        transform = optax.MultiSteps(optax.adamw(rate, weight_decay=0.01), 2)
        optimizer = nnx.Optimizer(model, transform, wrt=nnx.Param)

        @nnx.jit
        def step(state: Any, batch: Any) -> Any:
            for x, y in zip(jnp.split(batch["x"], 2), jnp.split(batch["y"], 2), strict=True):
                loss, gradients = nnx.value_and_grad(lambda model, x=x, y=y: jnp.mean((model(x) - y) ** 2))(
                    state["model"]
                )
                state["optimizer"].update(state["model"], gradients)
            return state, {"loss": loss}

        return {"model": model, "optimizer": optimizer}, step

    return build


@pytest.mark.parametrize(("rate", "verdict"), first([(1e-2, "match"), (2e-2, "mismatch")]))
def test_an_optimizer_that_is_given_micro_batches_one_by_one(rate: float, verdict: str) -> None:
    rng = np.random.default_rng(0)
    batches = [{"x": rng.normal(size=(6, 4)), "y": rng.normal(size=(6, 3))} for _ in range(3)]
    sides = compare.TorchProgram(accumulated), compare.JaxProgram(one_by_one(rate))
    report = compare.check(*sides, batches, steps=4, device="cpu")
    assert report.verdict == verdict, str(report)
    assert any("several gradients" in each.reason for each in report.not_compared)


class Net(torch.nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv, self.head = torch.nn.Conv2d(1, 3, 3), torch.nn.Linear(3 * 4 * 2, 2)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.head(torch.relu(self.conv(x)).flatten(1))


class Port(nnx.Module):
    def __init__(self, rngs: nnx.Rngs) -> None:
        self.conv, self.head = nnx.Conv(1, 3, (3, 3), padding="VALID", rngs=rngs), nnx.Linear(24, 2, rngs=rngs)

    def __call__(self, x: jax.Array) -> jax.Array:
        hidden = nnx.relu(self.conv(x))
        return self.head(hidden.reshape(len(hidden), -1))


def followed() -> Any:
    model = Net()
    average, optimizer = copy.deepcopy(model), torch.optim.SGD(model.parameters(), 0.1)

    def step(_: Any, batch: Any) -> Any:
        loss = functional.mse_loss(model(batch["x"]), batch["y"])
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        with torch.no_grad():
            for old, new in zip(average.parameters(), model.parameters(), strict=True):
                old.lerp_(new, 0.1)
        return {"loss": loss}

    return {"model": model, "average": average, "optimizer": optimizer}, step


def following() -> Any:
    model = Port(nnx.Rngs(0))
    optimizer = nnx.Optimizer(model, optax.sgd(0.1), wrt=nnx.Param)

    @nnx.jit
    def step(state: Any, batch: Any) -> Any:
        x = jnp.moveaxis(batch["x"], 1, -1)
        loss, gradients = nnx.value_and_grad(lambda model: jnp.mean((model(x) - batch["y"]) ** 2))(state["model"])
        state["optimizer"].update(state["model"], gradients)
        new, old = nnx.state(state["model"], nnx.Param), nnx.state(state["average"], nnx.Param)
        nnx.update(state["average"], optax.incremental_update(new, old, 0.1))
        return state, {"loss": loss}

    return {"model": model, "average": nnx.clone(model), "optimizer": optimizer}, step


def test_a_copy_that_never_runs_takes_an_image_as_its_model_does() -> None:
    """Which order of an image's features a linear layer takes is seen where it runs."""
    rng = np.random.default_rng(0)
    batches = [{"x": rng.normal(size=(5, 1, 6, 4)), "y": rng.normal(size=(5, 2))} for _ in range(3)]
    report = compare.check(compare.TorchProgram(followed), compare.JaxProgram(following), batches, device="cpu")
    assert report.verdict == "match", str(report)


def in_groups(model: torch.nn.Linear) -> torch.optim.Optimizer:
    groups = [{"params": [model.weight], "weight_decay": 0.2}, {"params": [model.bias], "weight_decay": 0.0}]
    return torch.optim.AdamW(groups, 1e-2)


def with_labels(decay: float) -> optax.GradientTransformation:
    of_each = {name: optax.adamw(1e-2, weight_decay=own) for name, own in (("kernel", decay), ("bias", 0.0))}
    return optax.multi_transform(
        of_each, lambda params: jax.tree.map(lambda leaf: "kernel" if leaf.ndim > 1 else "bias", params)
    )


@pytest.mark.parametrize(("decay", "verdict"), first([(0.2, "match"), (0.1, "mismatch")]))
def test_an_optimizer_for_each_label_leaves_variables_without_arrays(decay: float, verdict: str) -> None:
    rng = np.random.default_rng(0)
    batches = [{"x": rng.normal(size=(6, 4)), "y": rng.normal(size=(6, 3))} for _ in range(3)]
    sides = compare.TorchProgram(original(in_groups)), compare.JaxProgram(port(with_labels(decay)))
    report = compare.check(*sides, batches, steps=3, device="cpu")
    assert report.verdict == verdict, str(report)


@pytest.mark.parametrize(
    ("rate", "limits"),
    [(1e-2, ""), (optax.piecewise_constant_schedule(1e-2, {6: 0.5}), "up to step 6")],
    ids=["right", "later"],
)
def test_clipping_inside_of_the_optimizer_is_no_later_difference(rate: Any, limits: str) -> None:
    """Further steps are given torch's gradients, which clipped twice would be smaller by a millionth."""
    rng = np.random.default_rng(0)
    batches = [{"x": rng.normal(size=(6, 4)), "y": 5 * rng.normal(size=(6, 3))} for _ in range(3)]
    ours = original(lambda model: torch.optim.AdamW(model.parameters(), 1e-2, weight_decay=0.01), largest=0.01)
    theirs = port(optax.chain(clipped(0.01), optax.adamw(rate, weight_decay=0.01)))
    sides = compare.TorchProgram(ours), compare.JaxProgram(theirs)
    report = compare.check(*sides, batches, steps=3, device="cpu")
    assert report.verdict == "match", str(report)
    assert (limits in "; ".join(report.limits)) if limits else report.limits == [], report.limits


def critic() -> Any:
    """Update the critic twice and the generator once: their optimizers count different steps."""
    makes, judges = (torch.nn.Sequential(torch.nn.Linear(4, 8), torch.nn.Linear(8, size)) for size in (4, 1))
    one, two = (torch.optim.Adam(each.parameters(), 2e-3) for each in (makes, judges))

    def step(_: Any, batch: Any) -> Any:
        for _ in range(2):
            loss = judges(makes(batch["z"]).detach()).mean() - (judges(batch["x"]) ** 2).mean()
            two.zero_grad()
            loss.backward()
            two.step()
        one.zero_grad()
        (-judges(makes(batch["z"])).mean()).backward()
        one.step()
        return {"loss": loss}

    return {"makes": makes, "judges": judges, "one": one, "two": two}, step


class Two(nnx.Module):
    def __init__(self, size: int, rngs: nnx.Rngs) -> None:
        self.a, self.b = nnx.Linear(4, 8, rngs=rngs), nnx.Linear(8, size, rngs=rngs)

    def __call__(self, x: jax.Array) -> jax.Array:
        return self.b(self.a(x))


def flax_critic(times: int) -> Any:
    def build() -> Any:
        makes, judges = Two(4, nnx.Rngs(0)), Two(1, nnx.Rngs(1))
        one, two = (nnx.Optimizer(each, optax.adam(2e-3), wrt=nnx.Param) for each in (makes, judges))

        @nnx.jit
        def step(state: Any, batch: Any) -> Any:
            makes, judges = state["makes"], state["judges"]
            fake = makes(batch["z"])
            for _ in range(times):
                loss, gradients = nnx.value_and_grad(lambda d: d(fake).mean() - (d(batch["x"]) ** 2).mean())(judges)
                state["two"].update(judges, gradients)
            state["one"].update(makes, nnx.grad(lambda g: -judges(g(batch["z"])).mean())(makes))
            return state, {"loss": loss}

        return {"makes": makes, "judges": judges, "one": one, "two": two}, step

    return build


@pytest.mark.parametrize(("times", "verdict"), first([(2, "match"), (1, "mismatch")]))
def test_models_with_layers_of_one_name_and_size_have_their_own_optimizers(times: int, verdict: str) -> None:
    """The first layers are alike on both sides, and only the last show which optimizer trains which model."""
    rng = np.random.default_rng(0)
    batches = [{"x": rng.normal(size=(6, 4)), "z": rng.normal(size=(6, 4))} for _ in range(3)]
    sides = compare.TorchProgram(critic), compare.JaxProgram(flax_critic(times))
    report = compare.check(*sides, batches, steps=3, device="cpu", quick=True)
    assert report.verdict == verdict, str(report)
    assert not [each.name for each in report.not_compared if "exp_avg" in each.name or "mu/" in each.name]
