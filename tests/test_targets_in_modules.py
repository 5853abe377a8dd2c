"""A target that is a part of the module that it follows, as in MoCo and BYOL, and parameters that nothing trains."""

import copy
import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
import torch
from flax import nnx
from in_ci import first
from programs.common import FlaxNet, TorchNet, drawn
from torch.nn import functional

import compare
from compare.diagnosis.steps.copies import following

KEPT = 0.9


class Learner(torch.nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.encoder_q, self.head_q = TorchNet(), torch.nn.Linear(3, 3)
        self.encoder_k, self.head_k = copy.deepcopy(self.encoder_q), copy.deepcopy(self.head_q)
        for parameter in (*self.encoder_k.parameters(), *self.head_k.parameters()):
            parameter.requires_grad_(False)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        with torch.no_grad():
            key = self.head_k(self.encoder_k(x))
        return functional.mse_loss(torch.tanh(self.head_q(self.encoder_q(x))), key)

    @torch.no_grad()
    def follow(self) -> None:
        for key, query in ((self.encoder_k, self.encoder_q), (self.head_k, self.head_q)):
            for old, new in zip(key.parameters(), query.parameters(), strict=True):
                old.mul_(KEPT).add_(new, alpha=1 - KEPT)


class Port(nnx.Module):
    def __init__(self, rngs: nnx.Rngs) -> None:
        self.encoder_q, self.head_q = FlaxNet(rngs), nnx.Linear(3, 3, rngs=rngs)
        self.encoder_k, self.head_k = nnx.clone(self.encoder_q), nnx.clone(self.head_q)

    def __call__(self, x: Any) -> Any:
        key = jax.lax.stop_gradient(self.head_k(self.encoder_k(x)))
        return jnp.mean((jnp.tanh(self.head_q(self.encoder_q(x))) - key) ** 2)

    def follow(self, share: float, parts: tuple[str, ...]) -> None:
        for part in parts:
            key, query = (getattr(self, f"{part}_{kind}") for kind in "kq")
            old, new = nnx.state(key, nnx.Param), nnx.state(query, nnx.Param)
            nnx.update(key, optax.incremental_update(new, old, share))


def original(*, of_all: bool, early: bool = False) -> Callable[[], Any]:
    def build() -> Any:
        learner = Learner()
        trained = [each for each in learner.parameters() if of_all or each.requires_grad]
        optimizer = torch.optim.Adam(trained, 1e-2)

        def step(_: Any, batch: Any) -> Any:
            if early:
                learner.follow()
            loss = learner(batch["x"])
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            if not early:
                learner.follow()
            return {"loss": loss}

        return {"learner": learner, "optimizer": optimizer}, step

    return build


def port(share: float, parts: tuple[str, ...], *, early: bool) -> Callable[[], Any]:
    trained = nnx.All(nnx.Param, lambda path, _: not path[0].endswith("_k"))

    def build() -> Any:
        learner = Port(nnx.Rngs(0))

        @nnx.jit
        def step(state: Any, batch: Any) -> Any:
            if early:
                state["learner"].follow(share, parts)
            of_trained = nnx.value_and_grad(lambda each: each(batch["x"]), argnums=nnx.DiffState(0, trained))
            loss, gradients = of_trained(state["learner"])
            state["optimizer"].update(state["learner"], gradients)
            if not early:
                state["learner"].follow(share, parts)
            return state, {"loss": loss}

        return {"learner": learner, "optimizer": nnx.Optimizer(learner, optax.adam(1e-2), wrt=trained)}, step

    return build


BOTH = ("encoder", "head")


@pytest.mark.parametrize("of_all", [False, True], ids=["of what is trained", "of all"])
@pytest.mark.parametrize(
    ("share", "parts", "early", "causes"),
    first(
        [
            (0.1, BOTH, False, []),
            (0.01, BOTH, False, ["average's decay"]),
            (0.9, BOTH, False, ["decay exchanged"]),
            (1.0, BOTH, False, ["average copied"]),
            (0.1, (), False, ["average not updated"]),
            (0.1, ("encoder",), False, ["average not updated"]),
            (0.1, BOTH, True, ["average before the update"]),
        ],
        2,
    ),
)
def test_a_target_within_a_module(
    share: float, parts: tuple[str, ...], early: bool, causes: list[str], of_all: bool
) -> None:
    """It is one whether or not torch's optimizer has its parameters, which no gradient reaches."""
    sides = compare.TorchProgram(original(of_all=of_all)), compare.JaxProgram(port(share, parts, early=early))
    report = compare.check(*sides, drawn(x=(5,)), steps=3, device="cpu", quick=True)
    assert [group.name for group in report.groups] == causes, str(report)
    if report.divergence:
        assert report.divergence.stage == "state"
        assert report.divergence.torch.startswith(f"learner.{'head' if parts == ('encoder',) else 'encoder'}_k.")


@pytest.mark.parametrize(
    ("share", "parts", "early", "causes"),
    first(
        [
            (0.01, BOTH, True, ["average's decay"]),
            (0.1, BOTH, True, []),
            (0.9, BOTH, True, ["decay exchanged"]),
            (1.0, BOTH, True, ["average copied"]),
            (0.1, (), True, ["average not updated"]),
            (0.1, BOTH, False, ["average after the update"]),
        ]
    ),
)
def test_a_target_that_follows_before_it_is_used(
    share: float, parts: tuple[str, ...], early: bool, causes: list[str]
) -> None:
    """It equals the weights at first, so that nothing shows before the second step."""
    sides = compare.TorchProgram(original(of_all=True, early=True)), compare.JaxProgram(port(share, parts, early=early))
    report = compare.check(*sides, drawn(x=(5,)), steps=4, device="cpu", quick=True)
    assert [group.name for group in report.groups] == causes, str(report)


def test_what_may_follow_what() -> None:
    square, wide = np.zeros((2, 2)), np.zeros((2, 3))
    model = {f"a.online.{n}.weight": square for n in (1, 2)} | {"a.online.3.weight": wide}
    target = {f"a.target.module.{n}.weight": square for n in (1, 2)}
    state = {"b.7.weight": wide, "b.8.weight": square, "x": wide, "y": wide}
    found = list(following(model | target | state, trained=model))
    inside = [each for each in found if each.inside]
    pairs = {"a.target.module.1.weight": "a.online.1.weight", "a.target.module.2.weight": "a.online.2.weight"}
    assert ("a.target", "a.online", pairs) in inside
    # The longest end in common decides: the second layer of the target is no copy of the first.
    assert all(set(each.pairs.values()) <= {*model} for each in inside if each.root == "a.target")
    assert ("x", "y", {"x": "y"}) in found


def test_layers_that_are_trained_later(monkeypatch: pytest.MonkeyPatch) -> None:
    """Torch's optimizer has them from the beginning, and leaves them alone until they require a gradient."""
    monkeypatch.setattr(
        Learner, "follow", lambda self: [each.requires_grad_(True) for each in self.head_k.parameters()]
    )
    monkeypatch.setattr(
        Learner, "forward", lambda self, x: functional.mse_loss(self.head_k(self.encoder_q(x)), self.head_q(x[:, :3]))
    )
    monkeypatch.setattr(
        Port, "__call__", lambda self, x: jnp.mean((self.head_k(self.encoder_q(x)) - self.head_q(x[:, :3])) ** 2)
    )
    for rate, verdict in ((1e-2, "match"), (2e-2, "mismatch")):
        sides = compare.TorchProgram(original(of_all=True)), compare.JaxProgram(unfrozen(rate))
        report = compare.check(*sides, drawn(x=(5,)), steps=3, device="cpu", quick=True)
        assert report.verdict == verdict, str(report)


def unfrozen(rate: float) -> Callable[[], Any]:
    """Train `head_k` from the second step on, with this learning rate for it."""

    def build() -> Any:
        parts: Any = nnx.split(Port(nnx.Rngs(0)), nnx.Param, ...)
        graph, params, rest = parts
        learner = nnx.to_pure_dict(params)
        rates = {"encoder_q": 1e-2, "head_q": 1e-2, "head_k": rate}

        @jax.jit
        def step(state: Any, batch: Any) -> Any:
            def loss_of(learner: Any) -> Any:
                return nnx.merge(graph, learner, rest)(batch["x"])

            loss, gradients = jax.value_and_grad(loss_of)(state["learner"])
            now, moments = {**state["learner"]}, {}
            for name in rates:
                part, moment = state["learner"][name], state["moments"][name]
                updates, moved = optax.adam(rates[name]).update(gradients[name], moment, part)
                waits = (name == "head_k") & (state["count"] == 0)
                keep = functools.partial(jnp.where, waits)
                now[name] = jax.tree.map(keep, part, optax.apply_updates(part, updates))
                moments[name] = jax.tree.map(keep, moment, moved)
            return {"learner": now, "moments": moments, "count": state["count"] + 1}, {"loss": loss}

        moments = {name: optax.adam(rates[name]).init(learner[name]) for name in rates}
        return {"learner": learner, "moments": moments, "count": jnp.zeros((), int)}, step

    return build
