"""Each run trains a copy of the torch model, and what refers to the model refers to the copy: hooks, optimizers."""

import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
import torch
import torch.nn.utils.prune
from flax import nnx

import compare
from compare.torch_side.copies import Copies


def batches(size: float = 1.0) -> list[tuple[np.ndarray, np.ndarray]]:
    rng = np.random.default_rng(0)
    return [(rng.normal(size=(4, 3)), size * rng.normal(size=(4, 2))) for _ in range(2)]


def apply(params: Any, x: Any) -> Any:
    return x @ params["weight"].T + params["bias"]


def mse(output: Any, target: Any) -> Any:
    return jnp.mean((output - target) ** 2)


def port(optimizer: Any = None, loss: Any = mse) -> compare.Jax:
    return compare.Jax(apply, {"weight": jnp.zeros((2, 3)), "bias": jnp.zeros(2)}, loss, optimizer or optax.sgd(0.1))


def linear() -> torch.nn.Linear:
    torch.manual_seed(0)
    return torch.nn.Linear(3, 2)


def sgd(params: Any) -> torch.optim.Optimizer:
    return torch.optim.SGD(params, 0.1)


def check(original: compare.Torch, jax_side: compare.Jax, size: float = 1.0) -> str:
    return compare.check(original, jax_side, batches(size), device="cpu").headline


def test_hooks_of_parameters_are_kept() -> None:
    model = linear()
    for parameter in model.parameters():
        parameter.register_hook(lambda gradient: gradient.clamp(-0.1, 0.1))
    original = compare.Torch(model, torch.nn.MSELoss(), sgd)
    assert check(original, port(optax.chain(optax.clip(0.1), optax.sgd(0.1))), 10) == "match"
    assert check(original, port(), 10).startswith("mismatch at step 0, update")


def test_hooks_after_accumulation_are_kept() -> None:
    model = linear()

    def halved(parameter: torch.Tensor) -> None:
        assert parameter.grad is not None
        parameter.grad.mul_(0.5)

    model.weight.register_post_accumulate_grad_hook(halved)
    half = optax.chain(optax.masked(optax.scale(0.5), {"weight": True, "bias": False}), optax.sgd(0.1))
    original = compare.Torch(model, torch.nn.MSELoss(), sgd)
    assert check(original, port(half)) == "match"
    assert check(original, port()).startswith("mismatch at step 0, update, weight")


def test_a_hook_that_refers_to_the_model_refers_to_the_copy() -> None:
    """Each run's own weights decide, and not those of the original, which no step changes."""
    model = linear()
    model.weight.register_hook(lambda gradient: gradient + 0.5 * model.weight.detach())
    decay = optax.masked(optax.add_decayed_weights(0.5), {"weight": True, "bias": False})
    original = compare.Torch(model, torch.nn.MSELoss(), sgd)
    assert check(original, port(optax.chain(decay, optax.sgd(0.1)))) == "match"
    assert check(original, port()).startswith("mismatch at step 0, update, weight")


def test_a_loss_with_a_penalty_on_the_models_weights() -> None:
    model = linear()

    def loss(output: Any, target: Any) -> Any:
        return torch.nn.functional.mse_loss(output, target) + 0.1 * model.bias.square().sum()

    def penalized(output: Any, target: Any) -> Any:
        return mse(output[0], target) + 0.1 * (output[1] ** 2).sum()

    original, params = compare.Torch(model, loss, sgd), port().params
    right = compare.Jax(lambda p, x: (apply(p, x), p["bias"]), params, penalized, optax.sgd(0.1))
    constant = compare.Jax(
        lambda p, x: (apply(p, x), jax.lax.stop_gradient(p["bias"])), params, penalized, optax.sgd(0.1)
    )
    assert check(original, right) == "match"
    assert check(original, constant).startswith("mismatch at step 0, gradient, bias")


GLOBAL = linear()


def of_the_global(params: Any) -> torch.optim.Optimizer:
    return torch.optim.SGD(helper(), 0.1)


def helper() -> Any:
    return GLOBAL.parameters()


@pytest.mark.parametrize(
    "optimizer",
    [
        lambda params: torch.optim.SGD(GLOBAL.parameters(), 0.1),
        of_the_global,
        functools.partial(lambda model, params: torch.optim.SGD(model.parameters(), 0.1), GLOBAL),
        lambda params: torch.optim.SGD(list(GLOBAL.named_parameters()), 0.1),
        lambda params: torch.optim.SGD([{"params": [p for p in params if p.ndim > 1]}, {"params": params[1:]}], 0.1),
    ],
    ids=["closure", "helper", "partial", "named", "twice"],
)
def test_an_optimizer_of_the_original_is_one_of_the_copy(optimizer: Any) -> None:
    before = GLOBAL.weight.detach().clone()
    assert check(compare.Torch(GLOBAL, torch.nn.MSELoss(), optimizer), port()) == "match"
    assert check(compare.Torch(GLOBAL, torch.nn.MSELoss(), optimizer), port(optax.sgd(0.2))) != "match"
    assert torch.equal(GLOBAL.weight, before)


def test_a_loss_and_an_optimizer_share_what_they_keep() -> None:
    latest: dict[str, float] = {}
    losses = []
    model = linear()

    def loss(output: Any, target: Any) -> Any:
        value = torch.nn.functional.mse_loss(output, target) + 0 * model.bias.sum()
        latest["loss"] = float(value.detach())
        losses.append(latest["loss"])
        return value

    def optimizer(params: Any) -> torch.optim.Optimizer:
        made = sgd(model.parameters())
        made.register_step_pre_hook(lambda *_: latest.update(seen=latest["loss"]))
        return made

    assert check(compare.Torch(model, loss, optimizer), port()) == "match"
    assert latest["seen"] in losses


def test_a_function_that_calls_itself_and_keyword_defaults() -> None:
    model = linear()

    def norm(depth: int, *, of: Any = model) -> Any:
        return norm(depth - 1) if depth else of.weight

    (copied,) = (copies := Copies(model)).modules
    assert copies.of(norm, "a function")(3) is copied.weight
    assert copies.of(len, "a function") is len


def test_what_cannot_be_copied_is_refused_by_name() -> None:
    class Locked:
        def __init__(self, model: Any) -> None:
            self.model, self.rows = model, (row for row in range(3))

        def __call__(self, gradient: Any) -> Any:
            return gradient

    model = linear()
    model.bias.register_hook(Locked(model))
    with pytest.raises(compare.InputError, match="a hook of the torch model's parameter bias refers to the original"):
        check(compare.Torch(model, torch.nn.MSELoss(), sgd), port())


def test_a_pruned_model_and_modules_in_a_list() -> None:
    pruned = torch.nn.Sequential(linear())
    torch.nn.utils.prune.l1_unstructured(pruned[0], "weight", 0.5)
    pruned(torch.zeros(1, 3))

    class Teacher(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.fc, self.teacher = linear(), [torch.nn.Linear(2, 2, bias=False)]
            self.teacher[0].weight.data.fill_(0.5)

        def forward(self, x: Any) -> Any:
            return self.teacher[0](self.fc(x))

    (copied,) = Copies(pruned).modules
    assert torch.equal(copied(torch.ones(1, 3)), pruned(torch.ones(1, 3)))
    summed = compare.Jax(lambda p, x: apply(p, x) @ jnp.full((2, 2), 0.5), port().params, mse, optax.sgd(0.1))
    assert check(compare.Torch(Teacher(), torch.nn.MSELoss(), sgd), summed) == "match"


class Items(torch.nn.Module):
    def __init__(self, size: int) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.item, self.head = torch.nn.EmbeddingBag(size, 4, sparse=True), torch.nn.Linear(4, 2)

    def forward(self, i: Any) -> Any:
        return self.head(self.item(i))


class ItemsPort(nnx.Module):
    def __init__(self, size: int) -> None:
        rngs = nnx.Rngs(0)
        self.item, self.head = nnx.Embed(size, 4, rngs=rngs), nnx.Linear(4, 2, rngs=rngs)

    def __call__(self, i: Any) -> Any:
        return self.head(self.item(i).mean(1))


@pytest.mark.parametrize("rate", [0.3, 0.1])
def test_sparse_gradients(rate: float) -> None:
    rng = np.random.default_rng(0)
    data = [(rng.integers(0, 9, (3, 2)), rng.normal(size=(3, 2))) for _ in range(2)]
    original = compare.Torch(Items(9), torch.nn.MSELoss(), lambda params: torch.optim.SGD(params, 0.3))
    report = compare.check(
        original, compare.Flax(ItemsPort(9), mse, optax.sgd(rate)), data, device="cpu", weights={"item": "item"}
    )
    assert (report.verdict == "match") == (rate == 0.3)
