"""Modules that run at some steps only, and sequences of another length at each step."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
import torch
from flax import nnx
from programs.common import squares, trained, trained_in_torch

import compare


def mse(output: Any, target: Any) -> Any:
    return ((output - target) ** 2).mean()


class Experts(torch.nn.Module):
    """One of three experts sees the batch, as its gate says."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.gate = torch.nn.Linear(4, 3)
        self.experts = torch.nn.ModuleList(torch.nn.Linear(4, 2) for _ in range(3))

    def forward(self, x: Any) -> Any:
        return self.experts[int(self.gate(x).mean(0).argmax())](x)


class ExpertsPort(nnx.Module):
    """All experts run, and one of them is taken."""

    def __init__(self, factor: float) -> None:
        rngs = nnx.Rngs(0)
        self.gate, self.factor = nnx.Linear(4, 3, rngs=rngs), factor
        self.experts = nnx.List([nnx.Linear(4, 2, rngs=rngs) for _ in range(3)])

    def __call__(self, x: Any) -> Any:
        outputs = [expert(x) for expert in self.experts]
        outputs[1] = outputs[1] * self.factor
        return jnp.stack(outputs)[self.gate(x).mean(0).argmax()]


def test_an_expert_that_some_batches_go_to() -> None:
    rng = np.random.default_rng(1)
    batches = [(size * rng.normal(size=(5, 4)), rng.normal(size=(5, 2))) for size in (1, -4, 3, -2)]
    original = Experts()
    chosen = [int(original.gate(torch.tensor(x).float()).mean(0).argmax()) for x, _ in batches]
    assert len(set(chosen)) > 1
    for factor in (1.0, 1.01):
        report = compare.check(
            compare.Torch(original, mse, lambda params: torch.optim.SGD(params, 0.01)),
            compare.Flax(ExpertsPort(factor), mse, optax.sgd(0.01)),
            batches,
            device="cpu",
        )
        assert (report.verdict == "match") == (factor == 1.0 or 1 not in chosen)
        if report.divergence:
            assert (report.divergence.step, report.divergence.stage) == (chosen.index(1), "forward")


class Loop(torch.nn.Module):
    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.cell = torch.nn.Linear(7, 4)

    def forward(self, x: Any) -> Any:
        state = x.new_zeros(x.shape[0], 4)
        for t in range(x.shape[1]):
            state = torch.tanh(self.cell(torch.cat([x[:, t], state], -1)))
        return state


class LoopPort(nnx.Module):
    def __init__(self, factor: float) -> None:
        self.cell, self.factor = nnx.Linear(7, 4, rngs=nnx.Rngs(0)), factor

    def __call__(self, x: Any) -> Any:
        state = jnp.zeros((x.shape[0], 4), x.dtype)
        for t in range(x.shape[1]):
            state = jnp.tanh(self.cell(jnp.concatenate([x[:, t], state], -1)))
        return state * (self.factor if x.shape[1] == 5 else 1)


@pytest.mark.parametrize("factor", [1.0, 1.01])
@pytest.mark.parametrize("lengths", [(3, 5), (5, 2)])
def test_sequences_of_another_length_at_each_step(lengths: tuple[int, ...], factor: float) -> None:
    rng = np.random.default_rng(0)
    batches = [(rng.normal(size=(2, length, 3)), rng.normal(size=(2, 4))) for length in lengths]
    report = compare.check(compare.Torch(Loop(), mse), compare.Flax(LoopPort(factor), mse), batches, device="cpu")
    assert (report.verdict == "match") == (factor == 1.0)
    if report.divergence:
        assert (report.divergence.step, report.divergence.stage) == (lengths.index(5), "forward")


class Either(torch.nn.Module):
    """One of two layers sees the batch."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.stem, self.one, self.other, self.head = (torch.nn.Linear(4, size) for size in (4, 4, 4, 2))

    def forward(self, x: Any) -> Any:
        h = torch.tanh(self.stem(x))
        h = torch.relu(self.one(h)) if x.mean() > 0 else torch.nn.functional.gelu(self.other(h))
        return self.head(h)


Choose = Callable[[Any, Callable[[Any], Any], Callable[[Any], Any], Any], Any]


def by_where(chosen: Any, one: Callable[[Any], Any], other: Callable[[Any], Any], h: Any) -> Any:
    return jnp.where(chosen, one(h), other(h))


def by_inverted(chosen: Any, one: Callable[[Any], Any], other: Callable[[Any], Any], h: Any) -> Any:
    return jax.lax.cond(~chosen, one, other, h)


class EitherPort(nnx.Module):
    def __init__(self, choose: Choose, *, approximate: bool = False) -> None:
        rngs = nnx.Rngs(0)
        self.stem, self.one, self.other, self.head = (nnx.Linear(4, size, rngs=rngs) for size in (4, 4, 4, 2))
        self.choose, self.approximate = choose, approximate

    def __call__(self, x: Any) -> Any:
        def one(h: Any) -> Any:
            return jax.nn.relu(self.one(h))

        def other(h: Any) -> Any:
            return jax.nn.gelu(self.other(h), approximate=self.approximate)

        return self.head(self.choose(x.mean() > 0, one, other, jnp.tanh(self.stem(x))))


Optimizers = tuple[Callable[[Any], torch.optim.Optimizer], optax.GradientTransformation]

SGD: Optimizers = (lambda parameters: torch.optim.SGD(parameters, 0.1), optax.sgd(0.1))
ADAM: Optimizers = (lambda parameters: torch.optim.Adam(parameters, 0.1), optax.adam(0.1))
ADAMW: Optimizers = (
    lambda parameters: torch.optim.AdamW(parameters, 0.1, weight_decay=0.1),
    optax.adamw(0.1, weight_decay=0.1),
)


def as_models(port: nnx.Module, optimizers: Optimizers) -> tuple[Any, Any]:
    return compare.Torch(Either(), mse, optimizers[0]), compare.Flax(port, mse, optimizers[1])


def as_programs(port: nnx.Module, optimizers: Optimizers) -> tuple[Any, Any]:
    def original() -> Any:
        model = Either()
        return trained_in_torch(
            model, optimizers[0](model.parameters()), lambda model, batch: mse(model(batch["x"]), batch["y"])
        )

    # Each run starts from a port of its own.
    return compare.TorchProgram(original), compare.JaxProgram(lambda: trained(nnx.clone(port), optimizers[1], squares))


SIDES = pytest.mark.parametrize(("sides", "root"), [(as_models, ""), (as_programs, "model.")])


def checked(
    sides: Callable[[nnx.Module, Optimizers], tuple[Any, Any]], port: nnx.Module, optimizers: Optimizers = SGD
) -> compare.Report:
    """Check a port on three batches, of which the second alone goes to the other layer."""
    rng = np.random.default_rng(0)
    batches: list[Any] = [(rng.normal(size=(5, 4)) + mean, rng.normal(size=(5, 2))) for mean in (1, -1, 1)]
    if sides is as_programs:
        batches = [{"x": x, "y": y} for x, y in batches]
    return compare.check(*sides(port, optimizers), batches, device="cpu", quick=True)


@SIDES
@pytest.mark.parametrize("choose", [jax.lax.cond, by_where])
def test_a_module_that_runs_at_a_later_step_is_compared(sides: Any, root: str, choose: Choose) -> None:
    """Also where the port runs both layers at each step: what torch does not compute then is no difference."""
    report = checked(sides, EitherPort(choose))
    assert report.verdict == "match", str(report)
    assert {f"{root}one output", f"{root}other output"} <= {each.torch for each in report.quantities}
    assert not [each for each in report.not_compared if each.side == "torch"], str(report)


@SIDES
@pytest.mark.parametrize("choose", [jax.lax.cond, by_where])
def test_a_fault_behind_a_module_that_runs_at_a_later_step_is_found_there(
    sides: Any, root: str, choose: Choose
) -> None:
    found = checked(sides, EitherPort(choose, approximate=True)).divergence
    assert found is not None
    assert (found.step, found.torch) == (1, f"between {root}other and {root}head")
    assert found.cause is not None
    assert "GELU" in found.cause.explanation


@SIDES
def test_the_layers_of_the_wrong_branch_are_not_compared_with_each_other(sides: Any, root: str) -> None:
    report = checked(sides, EitherPort(by_inverted))
    found = report.divergence
    assert found is not None
    assert (found.step, found.torch) == (0, f"between {root}stem and {root}head"), str(report)
    assert np.isfinite(found.error64)
    alone = {each.name for each in report.not_compared if "different steps" in each.reason}
    assert {f"{root}one output", f"{root}other output"} <= alone
    says = {detail.text for detail in found.details}
    assert f"the two sides run {root}one, {root}other at different steps" in says, says
    # Of either branch it is not known whether it was taken.
    assert not [line for line in found.lines if line.source.text.startswith("return jax.nn.")], found.lines


@SIDES
@pytest.mark.parametrize("optimizers", [ADAM, ADAMW])
def test_what_torch_leaves_out_without_a_gradient_is_a_cause(sides: Any, root: str, optimizers: Optimizers) -> None:
    """In torch a layer that does not run has no gradient, in JAX one of zero, with which Adam updates it."""
    report = checked(sides, EitherPort(jax.lax.cond), optimizers)
    found = report.divergence
    assert found is not None
    assert found.torch.startswith(f"{root}other.")
    assert found.cause is not None
    assert found.cause.name == "parameters without a gradient"
    assert f"{root}other.weight" in found.cause.explanation
    assert not report.others


@SIDES
def test_another_learning_rate_is_not_told_as_a_missing_gradient(sides: Any, root: str) -> None:
    found = checked(sides, EitherPort(jax.lax.cond), (ADAM[0], optax.adam(0.2))).divergence
    assert found is not None
    assert found.cause is None or found.cause.name != "parameters without a gradient"
    assert found.torch.startswith(root)


class Gated(torch.nn.Module):
    """A norm that runs where the batch says so, with a layer that runs in any case."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.stem, self.norm, self.head = torch.nn.Linear(4, 4), torch.nn.LayerNorm(4), torch.nn.Linear(4, 2)

    def forward(self, x: Any, deep: Any) -> Any:
        h = self.stem(x)
        return self.head(torch.relu(self.norm(h)) if bool(deep) else h)


class GatedPort(nnx.Module):
    def __init__(self, epsilon: float) -> None:
        rngs = nnx.Rngs(0)
        self.stem, self.head = nnx.Linear(4, 4, rngs=rngs), nnx.Linear(4, 2, rngs=rngs)
        self.norm = nnx.LayerNorm(4, epsilon=epsilon, rngs=rngs)

    def __call__(self, x: Any, deep: Any) -> Any:
        return self.head(jax.lax.cond(deep, lambda h: jax.nn.relu(self.norm(h)), lambda h: h, self.stem(x)))


def test_a_layer_of_a_branch_has_its_cause_though_other_steps_take_the_other_branch() -> None:
    rng = np.random.default_rng(0)
    batches = [((rng.normal(size=(5, 4)), np.array(deep)), rng.normal(size=(5, 2))) for deep in (True, False, True)]
    ours = compare.Torch(Gated(), mse, SGD[0])
    report = compare.check(ours, compare.Flax(GatedPort(1e-2), mse, SGD[1]), batches, device="cpu", quick=True)
    assert not report.bugs
    assert report.divergence is not None
    assert report.divergence.torch == "norm"
    assert report.divergence.cause is not None
    assert report.divergence.cause.name == "epsilon"


class Reused(torch.nn.Module):
    """A layer that runs in any case, and once more where the batch says so."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.stem, self.head = torch.nn.Linear(4, 4), torch.nn.Linear(4, 2)

    def forward(self, x: Any, deep: Any) -> Any:
        h = self.stem(x)
        if bool(deep):
            h = torch.tanh(self.stem(h))
        return self.head(h)


class ReusedPort(nnx.Module):
    def __init__(self) -> None:
        rngs = nnx.Rngs(0)
        self.stem, self.head = nnx.Linear(4, 4, rngs=rngs), nnx.Linear(4, 2, rngs=rngs)

    def __call__(self, x: Any, deep: Any) -> Any:
        def deeper(h: Any) -> Any:
            return jnp.tanh(self.stem(h))

        h = jax.lax.cond(deep, deeper, lambda h: h, self.stem(x))
        return self.head(h * 1.5)


def test_no_line_of_a_branch_is_told_where_its_module_runs_outside_too() -> None:
    rng = np.random.default_rng(0)
    batches = [((rng.normal(size=(5, 4)), np.array(deep)), rng.normal(size=(5, 2))) for deep in (False, True)]
    ours, theirs = compare.Torch(Reused(), mse, SGD[0]), compare.Flax(ReusedPort(), mse, SGD[1])
    found = compare.check(ours, theirs, batches, device="cpu", quick=True).divergence
    assert found is not None
    assert (found.step, found.torch) == (0, "between stem and head")
    lines = {line.source.text for line in found.lines}
    assert "return self.head(h * 1.5)" in lines
    assert "return jnp.tanh(self.stem(h))" not in lines
