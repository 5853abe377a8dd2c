"""Where the user's code chooses, as by jnp.where, it is noted which sides were taken; what a library does is not."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
import torch
from flax import nnx

import compare
from compare.jax_side.choices import Choice, Choices, add_choices, one_sided
from compare.jax_side.lift import lift
from compare.jax_side.replay import replaying
from compare.torch_side.control import ControlledRun

X = np.linspace(-1, 1, 6)


def taken(function: Any, *, replayed: bool) -> list[str]:
    """Run a function and its gradient as a step is run, and give what is said of its choices."""
    chosen: dict[Choice, np.ndarray] = {}
    with jax.enable_x64(True):
        compute = replaying(function, (), [], []) if replayed else function

        def step(x: Any) -> Any:
            choices = Choices()
            shown = lift(lambda x: jax.value_and_grad(compute)(x), [], choices)(x)
            return shown, choices.made

        _, made = jax.jit(step)(jnp.asarray(X))
        add_choices(chosen, made)
    return [line.partition(" at ")[0] for line in one_sided(chosen)]


@pytest.mark.parametrize("replayed", [True, False])
@pytest.mark.parametrize(
    ("function", "said"),
    [
        (lambda x: jnp.where(x > 5, 0.0, x).sum(), ["jnp.where"]),
        (lambda x: jnp.where(x > 0, 0.0, x).sum(), []),
        (lambda x: jnp.clip(x, -9, 0.5).sum(), ["jnp.clip"]),
        (lambda x: jnp.clip(x, -0.5, 0.5).sum(), []),
        (lambda x: jnp.minimum(x, 7).sum(), ["jnp.maximum or jnp.minimum"]),
        (lambda x: jax.nn.relu6(x).sum(), ["relu6"]),
        (lambda x: jax.nn.relu(x + 5).sum() + jax.nn.relu(x).sum(), ["relu"]),
        (lambda x: jnp.abs(x + 5).sum() + jnp.sign(x - 5).sum() + jnp.abs(x).sum(), ["jnp.abs", "jnp.sign"]),
        (lambda x: jnp.nan_to_num(x).sum(), ["jnp.nan_to_num"]),
        (lambda x: jax.lax.cond(x.mean() > 9, lambda: 2.0, lambda: 1.0) * x.sum(), ["jax.lax.cond"]),
        (lambda x: jax.jit(lambda y: jnp.where(y > 5, 0.0, y))(x).sum(), ["jnp.where"]),
        # What a library chooses is its own affair.
        (lambda x: jax.nn.log_softmax(x).sum() + jax.nn.relu(x).sum() + jax.nn.logsumexp(x), []),
        (lambda x: jax.nn.softplus(x + 100).sum() + jnp.linalg.norm(x), []),
    ],
)
def test_a_side_that_is_never_taken_is_named(function: Any, said: list[str], replayed: bool) -> None:
    assert taken(function, replayed=replayed) == said


def test_so_is_what_torch_chooses() -> None:
    x = torch.linspace(-1, 1, 6, requires_grad=True)
    with ControlledRun() as run:
        y = x.clamp(-9, 0.5) + torch.where(x > 5, x, 0 * x) + x.masked_fill(x > 0, 0.0) + torch.relu(x)
        torch.nn.functional.normalize(y, dim=0).sum().backward()
    missed = [what.rpartition(": ")[2] for what, met in run.reached.items() if not met]
    assert missed == ["no element is below its bound", "its condition is never true"]


def test_so_are_bounds_of_modules_and_losses() -> None:
    x = torch.linspace(-1, 1, 6)
    functional = torch.nn.functional
    with ControlledRun() as run:
        torch.nn.ReLU6()(x)
        torch.nn.Hardtanh(-0.5, 0.5)(x) + functional.relu6(9 * x)
        functional.huber_loss(x, 0 * x, delta=5.0)
        torch.nn.SmoothL1Loss(beta=0.5)(x, 0 * x)
        torch.nn.MultiheadAttention(4, 1)(torch.ones(2, 4), torch.ones(2, 4), torch.ones(2, 4))
    missed = [what.rpartition(": ")[2] for what, met in run.reached.items() if not met]
    assert missed == ["no element is above its bound", "no error is above its delta"]


def test_so_are_bounds_in_place_and_weights_of_positives() -> None:
    x = torch.linspace(-1, 1, 6)
    with ControlledRun() as run:
        x.clone().clamp_(-0.5, 5.0)
        targets, weights = torch.tensor([[1.0, 0.0], [0.0, 0.0]]), torch.tensor([3.0, 7.0])
        torch.nn.functional.binary_cross_entropy_with_logits(targets, targets, pos_weight=weights)
    assert [what.rpartition(": ")[2] for what, met in run.reached.items() if not met] == [
        "no element is above its bound",
        "no target is positive where pos_weight is 7 in torch's loss",
    ]


def test_so_are_certain_probabilities_and_long_rows() -> None:
    chances, rows = torch.tensor([0.2, 0.9]), torch.nn.Embedding(3, 2, max_norm=9.0)
    with ControlledRun() as run:
        torch.nn.BCELoss()(chances, chances.round())
        rows(torch.tensor([0, 2]))
    assert [what.rpartition(": ")[2] for what, met in run.reached.items() if not met] == [
        "no probability is 0 or 1, of which torch takes the logarithm as -100",
        "no row that is looked up is longer than max_norm",
    ]
    with ControlledRun() as run:
        torch.nn.functional.binary_cross_entropy(torch.tensor([0.0, 0.9]), chances.round())
        rows.weight.data *= 100
        rows(torch.tensor([0, 2]))
    assert all(run.reached.values())


def test_so_are_bounds_of_modules_with_hooks_as_a_check_gives_them() -> None:
    module = torch.nn.Hardtanh(-0.5, 5.0)
    module.register_forward_hook(lambda *_: None)
    with ControlledRun() as run:
        module(torch.linspace(-1, 1, 6))
    assert [what.rpartition(": ")[2] for what, met in run.reached.items() if not met] == [
        "no element is above its bound"
    ]


def test_so_are_comparisons_with_a_number_but_not_of_two_tensors() -> None:
    tokens = torch.tensor([[1, 2], [3, 1]])
    with ControlledRun() as run:
        padding = tokens != 0
        padding & (tokens > 1) & (tokens == tokens + 1)
        assert tokens.sum() > 0
    missed = [what for what, met in run.reached.items() if not met]
    assert len(missed) == 1, missed
    assert missed[0].startswith("torch's ne at test_choices.py:")
    assert missed[0].endswith("it is never false")


def test_clipping_is_what_torch_clips_by_a_norm() -> None:
    """A clamp of a single number may be of a divisor: only `clip_grad_norm_` is called clipping."""
    weight = torch.nn.Parameter(torch.ones(3))
    weight.grad = torch.full((3,), 0.1)
    with ControlledRun() as run:
        torch.tensor(2.0).clamp(min=1)
    assert not any("norm" in what for what in run.reached)
    with ControlledRun() as run:
        torch.nn.utils.clip_grad_norm_([weight], 5.0)
    assert [met for what, met in run.reached.items() if "clipping by norm" in what] == [False]


def test_a_minimum_of_two_arrays_that_one_of_them_never_decides_is_named() -> None:
    x = torch.linspace(-1, 1, 6)
    with ControlledRun() as run:
        torch.min(x, x + 5) + torch.maximum(x, -x)
    missed = [what.rpartition(": ")[2] for what, met in run.reached.items() if not met]
    assert missed == ["its second argument is never the smaller one"]


@pytest.mark.parametrize(("computed", "missing"), [("one", True), ("both", False), ("both at once", False)])
def test_a_module_of_which_the_port_computes_less_is_named(computed: str, missing: bool) -> None:
    def original() -> Any:
        model = torch.nn.Linear(3, 1)
        optimizer = torch.optim.SGD(model.parameters(), 0.1)

        def step(_: Any, batch: Any) -> Any:
            loss = torch.min(model(batch["x"]), model(batch["y"]) + 9).mean()
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            return {"loss": loss}

        return {"model": model, "optimizer": optimizer}, step

    def loss(model: Any, x: Any, y: Any) -> Any:
        if computed == "one":
            return model(x).mean()
        if computed == "both":
            return jnp.minimum(model(x), model(y) + 9).mean()
        one, two = jnp.split(model(jnp.concatenate([x, y])), 2)
        return jnp.minimum(one, two + 9).mean()

    def port() -> Any:
        model = nnx.Linear(3, 1, rngs=nnx.Rngs(0))

        @nnx.jit
        def step(state: Any, batch: Any) -> Any:
            value, gradients = nnx.value_and_grad(loss)(state["model"], batch["x"], batch["y"])
            state["optimizer"].update(state["model"], gradients)
            return state, {"loss": value}

        return {"model": model, "optimizer": nnx.Optimizer(model, optax.sgd(0.1), wrt=nnx.Param)}, step

    draw = np.random.default_rng(0).normal
    batches = [{"x": draw(size=(4, 3)), "y": draw(size=(4, 3))} for _ in range(2)]
    report = compare.check(compare.TorchProgram(original), compare.JaxProgram(port), batches, device="cpu", quick=True)
    assert report.ok
    assert any(line.startswith("1 call of model that torch's step makes") for line in report.unexercised) == missing


def test_so_are_signs_and_what_losses_do_with_rare_numbers() -> None:
    x, one, loss = torch.linspace(0.1, 1, 6), torch.ones(6), torch.nn.functional
    weight = torch.nn.Parameter(one.clone())
    weight.grad = 0.1 * one
    with ControlledRun() as run:
        loss.relu(x)
        torch.nn.ReLU()(-x)
        x.abs().log1p()
        loss.margin_ranking_loss(x, -x, one, margin=9.0)
        torch.nn.PoissonNLLLoss(full=True)(x, one)
        loss.gaussian_nll_loss(x, x, x)
        loss.kl_div(x, x, reduction="sum")
        torch.nn.utils.clip_grad_value_([weight], 5.0)
    assert [what.rpartition(": ")[2] for what, met in run.reached.items() if not met] == [
        "no element is negative",
        "no element is positive",
        "no element is negative",
        "no element is below its bound",
        "it is never false",
        "no element is below its bound",
        "no element is 0, where torch's product is 0",
        "no gradient reaches torch's limit",
    ]
