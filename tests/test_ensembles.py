"""Ensembles: torch has a module for each critic, and the port stacks their parameters and maps over them."""

import copy
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import optax
import pytest
import torch
from flax import linen, nnx
from programs.common import drawn
from torch.nn import functional

import compare

KEPT = 0.9


class Critic(torch.nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.fc1, self.fc2 = torch.nn.Linear(4, 8), torch.nn.Linear(8, 1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.fc2(torch.tanh(self.fc1(x)))[:, 0]


class Twin(torch.nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.q1, self.q2 = Critic(), Critic()


def of_list() -> tuple[dict[str, torch.nn.Module], list[Critic]]:
    critics = [Critic(), Critic()]
    return {"critics": torch.nn.ModuleList(critics)}, critics


def of_module() -> tuple[dict[str, torch.nn.Module], list[Critic]]:
    twin = Twin()
    return {"critics": twin}, [twin.q1, twin.q2]


def of_state() -> tuple[dict[str, torch.nn.Module], list[Critic]]:
    critics = [Critic(), Critic()]
    return {"q1": critics[0], "q2": critics[1]}, critics


def original(made: Callable[[], tuple[dict[str, torch.nn.Module], list[Critic]]]) -> compare.TorchProgram:
    def build() -> Any:
        state, critics = made()
        copies = {name: copy.deepcopy(module) for name, module in state.items()}
        targets = [*(copies["critics"].children() if "critics" in copies else copies.values())]
        optimizer = torch.optim.Adam([p for critic in critics for p in critic.parameters()], 1e-2)

        def step(_: Any, batch: Any) -> Any:
            with torch.no_grad():
                goal = batch["y"][:, 0] + torch.min(*(target(batch["x"]) for target in targets))
            loss = sum(functional.mse_loss(critic(batch["x"]), goal) for critic in critics)
            assert isinstance(loss, torch.Tensor)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            with torch.no_grad():
                for critic, target in zip(critics, targets, strict=True):
                    for new, old in zip(critic.parameters(), target.parameters(), strict=True):
                        old.mul_(KEPT).add_(new, alpha=1 - KEPT)
            return {"loss": loss}

        return {**state, **{f"{name}_target": each for name, each in copies.items()}, "optimizer": optimizer}, step

    return compare.TorchProgram(build)


class Port(linen.Module):
    @linen.compact
    def __call__(self, x: Any) -> Any:
        return linen.Dense(1, name="fc2")(jnp.tanh(linen.Dense(8, name="fc1")(x)))[:, 0]


class NnxPort(nnx.Module):
    def __init__(self, rngs: nnx.Rngs) -> None:
        self.fc1, self.fc2 = nnx.Linear(4, 8, rngs=rngs), nnx.Linear(8, 1, rngs=rngs)

    def __call__(self, x: Any) -> Any:
        return self.fc2(jnp.tanh(self.fc1(x)))[:, 0]


def of_linen() -> tuple[Any, Callable[[Any, Any], Any]]:
    net = linen.vmap(
        Port, variable_axes={"params": 0}, split_rngs={"params": True}, in_axes=None, out_axes=0, axis_size=2
    )()
    params = net.init(jax.random.key(0), jnp.zeros((1, 4)))["params"]
    return params, lambda params, x: net.apply({"params": params}, x)


def of_nnx(critic: type[NnxPort] = NnxPort) -> tuple[Any, Callable[[Any, Any], Any]]:
    made = nnx.vmap(lambda key: critic(nnx.Rngs(key)))(jax.random.split(jax.random.key(0), 2))
    graph, params = nnx.split(made)

    def apply(params: Any, x: Any) -> Any:
        return jax.vmap(lambda each: nnx.merge(graph, each)(x))(params)

    return params, apply


def port(
    made: Callable[[], tuple[Any, Callable[[Any, Any], Any]]], kept: float = KEPT, lower: Callable[..., Any] = jnp.min
) -> compare.JaxProgram:
    adam = optax.adam(1e-2)

    def build() -> Any:
        params, apply = made()

        @jax.jit
        def step(state: Any, batch: Any) -> Any:
            goal = batch["y"][:, 0] + lower(apply(state["critics_target"], batch["x"]), axis=0)

            def loss_of(params: Any) -> Any:
                return jnp.mean((apply(params, batch["x"]) - goal) ** 2, axis=1).sum()

            loss, gradients = jax.value_and_grad(loss_of)(state["critics"])
            updates, moments = adam.update(gradients, state["moments"])
            params = optax.apply_updates(state["critics"], updates)
            target = optax.incremental_update(params, state["critics_target"], 1 - kept)
            return {"critics": params, "critics_target": target, "moments": moments}, {"loss": loss}

        return {"critics": params, "critics_target": params, "moments": adam.init(params)}, step

    return compare.JaxProgram(build)


def checked(torch_side: compare.TorchProgram, jax_side: compare.JaxProgram, size: int = 12) -> compare.Report:
    return compare.check(torch_side, jax_side, drawn(size=size, x=(4,), y=(1,)), device="cpu", quick=True)


@pytest.mark.parametrize("theirs", [of_linen, of_nnx])
@pytest.mark.parametrize("ours", [of_list, of_module, of_state])
def test_each_critic_is_a_part_of_the_stack(ours: Any, theirs: Any) -> None:
    report = checked(original(ours), port(theirs))
    assert report.verdict == "match", str(report)
    parameters = {quantity.torch for quantity in report.quantities if quantity.stage in ("parameters", "state")}
    assert len(parameters) == 16, parameters
    seen = {quantity.torch for quantity in report.quantities if quantity.stage == "forward"}
    assert sum("fc1 output" in each for each in seen) == sum("fc2 output" in each for each in seen) == 4, seen


@pytest.mark.parametrize(
    ("fault", "cause"),
    [
        ({"kept": 0.5}, "average's decay"),
        ({"lower": jnp.max}, "another operation"),
        ({"lower": jnp.mean}, "another operation"),
    ],
)
def test_faults_of_an_ensemble_are_explained(fault: dict[str, Any], cause: str) -> None:
    report = checked(original(of_module), port(of_linen, **fault))
    assert report.divergence is not None
    assert report.divergence.cause is not None, str(report)
    assert report.divergence.cause.name == cause


def test_a_fault_within_an_ensemble_is_placed_in_it() -> None:
    class Other(NnxPort):
        def __call__(self, x: Any) -> Any:
            return self.fc2(nnx.sigmoid(self.fc1(x)))[:, 0]

    report = checked(original(of_list), port(lambda: of_nnx(Other)))
    assert report.divergence is not None
    assert report.divergence.stage == "forward"
    assert report.divergence.cause is not None, str(report)
    assert report.divergence.cause.name == "activation"
    assert report.divergence.torch == "between critics_target.0.fc1 and critics_target.0.fc2", report.divergence


@pytest.mark.parametrize("size", [2, 5])
def test_a_map_over_examples_around_the_one_over_critics_is_told_from_it(size: int) -> None:
    """With as many examples as critics, the axes of both are of one size."""

    def rows() -> tuple[Any, Callable[[Any, Any], Any]]:
        params, apply = of_linen()
        return params, lambda params, x: jax.vmap(lambda row: apply(params, row[None])[:, 0], out_axes=1)(x)

    report = checked(original(of_list), port(rows), size=size)
    assert report.verdict == "match", str(report)
    assert "makes up" not in str(report)
    assert not any("torch's step makes" in each for each in report.unexercised), report.unexercised


def test_a_critic_that_is_taken_out_of_the_stack_is_not_called_missing() -> None:
    def first_again() -> tuple[Any, Callable[[Any, Any], Any]]:
        params, apply = of_nnx()
        graph, _ = nnx.split(NnxPort(nnx.Rngs(0)))

        def twice(params: Any, x: Any) -> Any:
            first = nnx.merge(graph, jax.tree.map(lambda stack: stack[0], params))
            return apply(params, x).at[0].set(first(x))

        return params, twice

    def again(model: Any, _: Any, output: Any) -> Any:
        return output + 0 * model.fc2(torch.tanh(model.fc1(torch.ones(1, 4))))[0, 0]

    def with_more_calls() -> Any:
        state, critics = of_list()
        critics[0].register_forward_hook(again)
        return state, critics

    report = checked(original(with_more_calls), port(first_again))
    assert report.verdict == "match", str(report)
    assert not any("torch's step makes" in each for each in report.unexercised), report.unexercised
