"""A program whose state holds an `eqx.nn.State`: the running statistics of Equinox's models."""

from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
import torch
from programs.common import trained_in_torch

import compare
from compare.jax_side.program_state import Structure


class Net(eqx.Module):
    first: eqx.nn.Linear
    bn: eqx.nn.BatchNorm
    last: eqx.nn.Linear

    def __init__(self, seed: int = 0) -> None:
        a, b = jax.random.split(jax.random.key(seed))
        self.first, self.last = eqx.nn.Linear(3, 5, key=a), eqx.nn.Linear(5, 2, key=b)
        self.bn = eqx.nn.BatchNorm(5, "rows", mode="batch", momentum=0.9)

    def __call__(self, x: Any, state: Any) -> Any:
        x, state = self.bn(self.first(x), state)
        return self.last(jax.nn.tanh(x)), state


def original() -> Any:
    model = torch.nn.Sequential(torch.nn.Linear(3, 5), torch.nn.BatchNorm1d(5), torch.nn.Tanh(), torch.nn.Linear(5, 2))
    optimizer = torch.optim.SGD(model.parameters(), 0.1)

    def step(_: Any, batch: Any) -> Any:
        loss = torch.nn.functional.mse_loss(model(batch["x"]), batch["y"])
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        return {"loss": loss}

    return {"model": model, "optimizer": optimizer}, step


def port(*, unbiased: bool = True, hands_on: bool = True) -> Any:
    model, statistics = eqx.nn.make_with_state(Net)()
    optimizer = optax.sgd(0.1)

    def corrected(model: Any, old: Any, new: Any, count: int) -> Any:
        """Average torch's unbiased variance in, where Equinox averages the biased one."""
        index = model.bn.batch_state_index
        (_, before), (mean, after) = old.get(index), new.get(index)
        return new.set(index, (mean, 0.9 * before + (after - 0.9 * before) * count / (count - 1)))

    @eqx.filter_jit
    def step(state: Any, batch: Any) -> Any:
        def loss_fn(model: Any) -> Any:
            apply = jax.vmap(model, in_axes=(0, None), out_axes=(0, None), axis_name="rows")
            y, new = apply(batch["x"], state["statistics"])
            return jnp.mean((y - batch["y"]) ** 2), new

        (loss, new), gradients = eqx.filter_value_and_grad(loss_fn, has_aux=True)(state["model"])
        updates, memory = optimizer.update(gradients, state["a"])
        if unbiased:
            new = corrected(state["model"], state["statistics"], new, len(batch["x"]))
        statistics = new if hands_on else state["statistics"]
        return {"model": eqx.apply_updates(state["model"], updates), "a": memory, "statistics": statistics}, {
            "loss": loss
        }

    return {
        "model": model,
        "a": optimizer.init(eqx.filter(model, eqx.is_inexact_array)),
        "statistics": statistics,
    }, step


def checked(**settings: bool) -> compare.Report:
    rng = np.random.default_rng(0)
    batches = [{"x": rng.normal(size=(7, 3)), "y": rng.normal(size=(7, 2))} for _ in range(2)]
    sides = compare.TorchProgram(original), compare.JaxProgram(lambda: port(**settings))
    return compare.check(*sides, batches, quick=True)


def test_the_running_statistics_of_a_right_port_match_in_float64() -> None:
    report = checked()
    assert report.verdict == "match"
    assert ("model.1.running_var", "model/bn/var") in report.weights
    assert not report.pinned


@pytest.mark.parametrize(
    ("settings", "name"),
    [({"unbiased": False}, "model.1.running_var"), ({"hands_on": False}, "model.1.running_mean")],
)
def test_wrong_running_statistics_are_a_mismatch(settings: dict[str, bool], name: str) -> None:
    divergence = checked(**settings).divergence
    assert divergence is not None
    assert (divergence.step, divergence.stage, divergence.torch) == (0, "buffers", name)


def test_each_state_belongs_to_the_model_whose_words_it_has() -> None:
    """Models of one class have equal indices; what an optimizer remembers has them too."""
    (model, first), (target, second) = (eqx.nn.make_with_state(Net)(seed) for seed in (0, 1))
    memory = optax.adam(0.1).init(eqx.filter(model, eqx.is_inexact_array))
    state = {"adam": memory, "bn_target": second, "model": model, "statistics": first, "target": target}
    structure = Structure(state)
    named = dict(zip((leaf.name for leaf in structure.leaves), structure.take_apart(state), strict=True))
    for name, net, statistics in (("model", model, first), ("target", target, second)):
        index: Any = net.bn.batch_state_index
        assert named[f"{name}/bn/var"] is statistics.get(index)[1]
    assert len(named) == len(structure.leaves)


def test_the_state_of_a_model_that_the_programs_state_lacks_keeps_its_own_place() -> None:
    _, statistics = eqx.nn.make_with_state(Net)()
    leaves = Structure({"statistics": statistics}).leaves
    assert all(leaf.name.startswith("statistics/") and leaf.buffer for leaf in leaves)


def test_a_state_of_no_model_is_refused_with_what_it_holds() -> None:
    """The model is cut into arrays that have lost the indices, so nothing tells what a statistic belongs to."""

    def build() -> Any:
        state, step = port()
        return {**state, "model": jax.tree.leaves(eqx.filter(state["model"], eqx.is_array))}, step

    batches = [{"x": np.ones((7, 3)), "y": np.ones((7, 2))}]
    with pytest.raises(compare.InputError, match=r"statistics/\d/\d \(5,\)"):
        compare.check(compare.TorchProgram(original), compare.JaxProgram(build), batches, quick=True)


class Scaled(eqx.Module):
    """A layer with the rate of a dropout, and a number by which it divides."""

    linear: eqx.nn.Linear
    dropout: eqx.nn.Dropout
    scale: float

    def __init__(self) -> None:
        self.linear = eqx.nn.Linear(4, 3, key=jax.random.key(0))
        self.dropout, self.scale = eqx.nn.Dropout(0.5, inference=True), 2.0

    def __call__(self, x: jax.Array) -> jax.Array:
        return self.dropout(jax.vmap(self.linear)(x)) / self.scale


def with_numbers(*, changed: bool) -> compare.Report:
    def original() -> Any:
        model = torch.nn.Linear(4, 3)
        optimizer = torch.optim.SGD(model.parameters(), 0.1)
        loss_of = lambda model, batch: torch.square(model(batch["x"]) / 2.0 - batch["y"]).mean()  # noqa: E731
        return trained_in_torch(model, optimizer, loss_of)

    def port() -> Any:
        @eqx.filter_jit
        def step(state: Any, batch: Any) -> Any:
            def loss_fn(model: Any) -> Any:
                return jnp.square(model(batch["x"]) - batch["y"]).mean()

            loss, gradients = eqx.filter_value_and_grad(loss_fn)(state["model"])
            model = eqx.apply_updates(state["model"], jax.tree.map(lambda each: -0.1 * each, gradients))
            if changed:
                model = eqx.tree_at(lambda each: each.scale, model, 0.8 * model.scale)
            return {"model": model}, {"loss": loss}

        return {"model": Scaled()}, step

    rng = np.random.default_rng(0)
    batches = [{"x": rng.normal(size=(6, 4)), "y": rng.normal(size=(6, 3))} for _ in range(3)]
    weights = {"model.weight": "model/linear/weight", "model.bias": "model/linear/bias"}
    sides = compare.TorchProgram(original), compare.JaxProgram(port)
    return compare.check(*sides, batches, weights=weights, steps=3, device="cpu", quick=True)


def test_numbers_of_a_module_are_settings() -> None:
    assert with_numbers(changed=False).verdict == "match"


def test_a_step_that_changes_such_a_number_is_refused() -> None:
    with pytest.raises(compare.InputError, match=r"model/scale.*jnp\.asarray\(2\.0\)"):
        with_numbers(changed=True)
