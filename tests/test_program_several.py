"""What differs in a step independently of an optimizer that differs is listed too; what only follows from it is not."""

import copy
from typing import Any

import jax
import numpy as np
import optax
import pytest
import torch
from flax import nnx
from programs.common import FlaxNet, TorchNet

import compare
from compare.verdict.divergence import DetailKind, Divergence

BATCHES = [{"x": np.random.default_rng(seed).normal(size=(6, 5))} for seed in range(3)]


def original(shrink: float = 1.0) -> Any:
    model = TorchNet(outputs=1)  # so that a bias has one element, which shows no decay by itself
    average, optimizer = copy.deepcopy(model), torch.optim.RMSprop(model.parameters(), 1e-2)

    def step(_: Any, batch: Any) -> Any:
        loss = (model(batch["x"]) - 1).square().mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        with torch.no_grad():
            for old, new in zip(average.parameters(), model.parameters(), strict=True):
                if shrink != 1.0:
                    new.mul_(shrink)
                old.lerp_(new, 0.1)
        return {"loss": loss}

    return {"model": model, "average": average, "optimizer": optimizer}, step


def port(transformation: Any, taken: float = 0.1, shrink: float = 1.0) -> Any:
    model = FlaxNet(nnx.Rngs(0), outputs=1)
    optimizer = nnx.Optimizer(model, transformation, wrt=nnx.Param)

    @nnx.jit
    def step(state: Any, batch: Any) -> Any:
        loss, gradients = nnx.value_and_grad(lambda model: ((model(batch["x"]) - 1) ** 2).mean())(state["model"])
        state["optimizer"].update(state["model"], gradients)
        new = jax.tree.map(lambda value: shrink * value, nnx.state(state["model"], nnx.Param))
        nnx.update(state["model"], new)
        nnx.update(state["average"], optax.incremental_update(new, nnx.state(state["average"], nnx.Param), taken))
        return state, {"loss": loss}

    return {"model": model, "average": nnx.clone(model), "optimizer": optimizer}, step


RIGHT = {"decay": 0.99, "eps": 1e-8, "eps_in_sqrt": False}


def listed(settings: dict[str, Any], taken: float = 0.1, shrink: float = 1.0, every: int = 1) -> list[Divergence]:
    def transformation() -> Any:
        made = optax.rmsprop(1e-2, **settings)
        return made if every == 1 else optax.MultiSteps(made, every).gradient_transformation()

    sides = (
        compare.TorchProgram(lambda: original(shrink)),
        compare.JaxProgram(lambda: port(transformation(), taken, shrink)),
    )
    report = compare.check(*sides, BATCHES, steps=3, device="cpu", quick=True)
    return [report.divergence, *report.others] if report.divergence else []


def places(
    settings: dict[str, Any], taken: float = 0.1, shrink: float = 1.0, every: int = 1
) -> list[tuple[str, str | None]]:
    found = listed(settings, taken, shrink, every)
    return [(each.torch.partition(".")[0], each.cause.name if each.cause else None) for each in found]


@pytest.mark.parametrize("taken", [pytest.param(0.2, marks=pytest.mark.slow), 0.03])
def test_an_average_that_differs_besides_its_optimizer(taken: float) -> None:
    first, second = places(RIGHT | {"decay": 0.9}, taken)
    assert first[0] == "model"
    assert first[1] is not None
    assert second == ("average", "average's decay")


def test_what_follows_from_an_optimizer_is_not_listed() -> None:
    assert [place for place, _ in places(RIGHT | {"decay": 0.9})] == ["model"]


@pytest.mark.slow
def test_an_update_at_every_second_step_is_not_left_out() -> None:
    assert places(RIGHT, every=2)[0] == ("model", "accumulation")


def test_an_average_alone() -> None:
    assert places(RIGHT, 0.2) == [("average", "average's decay")]


@pytest.mark.parametrize("shrink", [1.0, 0.999])
def test_nothing_differs(shrink: float) -> None:
    assert places(RIGHT, shrink=shrink) == []


def test_weights_that_the_step_changes_after_the_optimizer() -> None:
    """The port's values at the end of its step are then not its optimizer's, and the search ends."""
    (only,) = listed(RIGHT | {"decay": 0.9}, shrink=0.999)
    assert (only.torch.partition(".")[0], only.details[-1].kind) == ("model", DetailKind.UNSEARCHED)


def test_a_search_that_goes_on_to_the_end_says_nothing_of_more() -> None:
    for found in listed(RIGHT | {"decay": 0.9}, 0.2):
        assert DetailKind.UNSEARCHED not in [detail.kind for detail in found.details]


def two_modules(as_dictionary: bool, rate: float) -> compare.Report:
    """Train two modules with one optimizer, which holds them in a tuple or a dictionary."""

    def torch_side() -> Any:
        one, two = torch.nn.Linear(5, 4), torch.nn.Linear(4, 2)
        optimizer = torch.optim.SGD([*one.parameters(), *two.parameters()], 0.1)

        def step(_: Any, batch: Any) -> Any:
            loss = two(one(batch["x"])).square().mean()
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            return {"loss": loss}

        return {"one": one, "two": two, "optimizer": optimizer}, step

    def held(one: Any, two: Any) -> Any:
        return {"one": one, "two": two} if as_dictionary else (one, two)

    def jax_side() -> Any:
        one, two = nnx.Linear(5, 4, rngs=nnx.Rngs(0)), nnx.Linear(4, 2, rngs=nnx.Rngs(1))
        optimizer = nnx.Optimizer(held(one, two), optax.sgd(rate), wrt=nnx.Param)
        first, second = ("one", "two") if as_dictionary else (0, 1)

        @nnx.jit
        def step(state: Any, batch: Any) -> Any:
            models = held(state["one"], state["two"])
            loss, gradients = nnx.value_and_grad(lambda m: (m[second](m[first](batch["x"])) ** 2).mean())(models)
            state["optimizer"].update(models, gradients)
            return state, {"loss": loss}

        return {"one": one, "two": two, "optimizer": optimizer}, step

    return compare.check(
        compare.TorchProgram(torch_side), compare.JaxProgram(jax_side), BATCHES, device="cpu", quick=True
    )


@pytest.mark.parametrize("as_dictionary", [False, True])
def test_an_optimizer_may_hold_a_tuple_or_a_dictionary_of_modules(as_dictionary: bool) -> None:
    report = two_modules(as_dictionary, 0.1)
    assert report.ok
    assert {"two.weight", "one.bias"} <= {each.torch for each in report.quantities if each.stage == "gradient"}
    assert not two_modules(as_dictionary, 0.2).ok


def test_a_schedule_of_the_momentum_says_nothing_of_the_rate() -> None:
    """A schedule that stands still explains the momentum as well, and would make a right rate look wrong."""

    def torch_side() -> Any:
        model = TorchNet(outputs=2)
        optimizer = torch.optim.SGD(model.parameters(), 0.02, momentum=0.95)
        schedule = torch.optim.lr_scheduler.CyclicLR(
            optimizer, 0.02, 0.06, step_size_up=2, base_momentum=0.7, max_momentum=0.95
        )

        def step(_: Any, batch: Any) -> Any:
            loss = model(batch["x"]).square().mean()
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            schedule.step()
            return {"loss": loss}

        return {"model": model, "optimizer": optimizer, "schedule": schedule}, step

    def rate(count: Any) -> Any:
        return 0.02 + 0.02 * abs((count + 2) % 4 - 2)

    def jax_side() -> Any:
        model = FlaxNet(nnx.Rngs(0), outputs=2)
        optimizer = nnx.Optimizer(model, optax.sgd(rate, momentum=0.95), wrt=nnx.Param)

        @nnx.jit
        def step(state: Any, batch: Any) -> Any:
            loss, gradients = nnx.value_and_grad(lambda model: (model(batch["x"]) ** 2).mean())(state["model"])
            state["optimizer"].update(state["model"], gradients)
            return state, {"loss": loss}

        return {"model": model, "optimizer": optimizer}, step

    sides = compare.TorchProgram(torch_side), compare.JaxProgram(jax_side)
    report = compare.check(*sides, BATCHES, steps=5, device="cpu", quick=True)
    assert report.divergence is not None
    assert report.divergence.cause is not None
    assert report.divergence.cause.name == "momentum schedule"
    assert not report.others, str(report)
