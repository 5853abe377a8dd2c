"""What the optimizers of a program remember, of models whose names are alike."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
import torch
from flax import nnx
from programs.common import trained
from programs.perturbed import memory

import compare
from compare.torch_side.program_run import TorchProgramRun


def original(names: tuple[str, str]) -> Any:
    one, two = torch.nn.Linear(3, 2), torch.nn.Linear(3, 2)
    optimizer = torch.optim.Adam([*one.parameters(), *two.parameters()], 1e-2)

    def step(state: Any, batch: Any) -> Any:
        loss = sum(((each(batch["x"]) - batch["y"]) ** 2).mean() for each in (one, two))
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        return {"loss": loss}

    return {names[0]: one, names[1]: two, "optimizer": optimizer}, step


def port(names: tuple[str, str], rate: float = 1e-2, *, key: bool = False) -> Any:
    graph, _ = nnx.split(nnx.Linear(3, 2, rngs=nnx.Rngs(0)))
    models = [nnx.split(nnx.Linear(3, 2, rngs=nnx.Rngs(seed)))[1] for seed in (0, 1)]
    noise = [optax.add_noise(0.0, 0.5, jax.random.key(0))] if key else []
    optimizer = optax.chain(*noise, optax.adam(rate))

    @jax.jit
    def step(state: Any, batch: Any) -> Any:
        def loss_fn(both: Any) -> Any:
            return sum(jnp.mean((nnx.merge(graph, each)(batch["x"]) - batch["y"]) ** 2) for each in both)

        both = tuple(state[name] for name in names)
        loss, gradients = jax.value_and_grad(loss_fn)(both)
        updates, remembered = optimizer.update(gradients, state["optimizer"], both)
        one, two = optax.apply_updates(both, updates)
        return {names[0]: one, names[1]: two, "optimizer": remembered}, {"loss": loss}

    return {names[0]: models[0], names[1]: models[1], "optimizer": optimizer.init(tuple(models))}, step


def checked(names: tuple[str, str], **settings: Any) -> compare.Report:
    rng = np.random.default_rng(0)
    batches = [{"x": rng.normal(size=(8, 3)), "y": rng.normal(size=(8, 2))} for _ in range(3)]
    sides = compare.TorchProgram(lambda: original(names)), compare.JaxProgram(lambda: port(names, **settings))
    return compare.check(*sides, batches, steps=3, quick=True)


@pytest.mark.parametrize("names", [("q1", "q2"), ("critic0", "critic1"), ("actor", "value")])
def test_one_optimizer_over_a_tuple_of_models(names: tuple[str, str]) -> None:
    """The place in the tuple, 1, is the second model's, and not that of the name that ends in 1."""
    assert checked(names).verdict == "match"


def test_another_rate_of_it_is_a_mismatch() -> None:
    assert checked(("q1", "q2"), rate=2e-2).verdict == "mismatch"


def test_a_key_among_what_an_optimizer_remembers_is_no_number() -> None:
    """As that of `optax.add_noise`: the search for the cause of an update reads all of the state."""
    report = checked(("q1", "q2"), rate=2e-2, key=True)
    assert report.verdict == "mismatch"
    assert not report.bugs


def test_an_optimizer_that_has_a_state_from_the_start_is_in_float64_too() -> None:
    """So is one that is loaded from a checkpoint."""

    def build() -> Any:
        model = torch.nn.Linear(2, 1)
        return {"model": model, "optimizer": torch.optim.Adagrad(model.parameters())}, lambda state, batch: {}

    (optimizer,) = TorchProgramRun(compare.TorchProgram(build), "float64", "cpu").optimizers.values()
    assert {slots["sum"].dtype for slots in optimizer.state.values()} == {torch.float64}


def test_an_integer_of_the_state_may_be_left_out() -> None:
    """The ring that the pointer points into is compared all the same."""
    pair = memory("pointer kept")
    sides = compare.TorchProgram(pair.original), compare.JaxProgram(pair.port)
    found = [
        compare.check(*sides, pair.batches, weights=weights, steps=3, quick=True, device="cpu").divergence
        for weights in (None, {"pointer": None})
    ]
    assert [(each.step, each.torch) for each in found if each] == [(0, "pointer"), (1, "ring")]


def test_a_frozen_network_that_the_step_updates_needs_a_partner() -> None:
    """It is no table, as it would be in a model: without a partner, nobody would see what the step makes of it."""

    def original() -> Any:
        net, target = torch.nn.Linear(3, 2), torch.nn.Linear(3, 2).requires_grad_(False)
        optimizer = torch.optim.SGD(net.parameters(), 0.1)

        def step(state: Any, batch: Any) -> Any:
            del state
            loss = ((net(batch["x"]) - batch["y"]) ** 2).mean()
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            torch._foreach_lerp_([*target.parameters()], [*net.parameters()], 0.1)
            return {"loss": loss}

        return {"net": net, "target": target, "optimizer": optimizer}, step

    def port() -> Any:
        def loss_of(model: Any, batch: Any) -> jax.Array:
            return ((model["net"](batch["x"]) - batch["y"]) ** 2).mean()

        return trained(nnx.Dict(net=nnx.Linear(3, 2, rngs=nnx.Rngs(0))), optax.sgd(0.1), loss_of)

    batches = [{"x": np.ones((4, 3), np.float32), "y": np.ones((4, 2), np.float32)}]
    with pytest.raises(compare.InputError, match=r"no partner, in torch[\s\S]*target\.weight"):
        compare.check(compare.TorchProgram(original), compare.JaxProgram(port), batches, steps=2)
