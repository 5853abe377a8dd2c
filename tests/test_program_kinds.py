"""Programs of kinds that scripts have: averaged models, closures, tasks, curricula, shared weights, long schedules."""

import itertools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
import torch
from flax import nnx
from programs.common import FlaxNet, TorchNet, drawn
from torch.nn import functional

import compare


def checked(original: Any, port: Any, batches: Any, **settings: Any) -> compare.Report:
    sides = compare.TorchProgram(original), compare.JaxProgram(port)
    return compare.check(*sides, batches, device="cpu", **settings)


def mse(output: jax.Array, target: jax.Array) -> jax.Array:
    return jnp.mean((output - target) ** 2)


def averaged() -> Any:
    """Average the weights as `AveragedModel` does: each with the same weight, from the second step on."""
    model = TorchNet(norm=True)
    average, optimizer = torch.optim.swa_utils.AveragedModel(model), torch.optim.SGD(model.parameters(), 0.1)
    steps = itertools.count()

    def step(_: Any, batch: Any) -> Any:
        loss = functional.mse_loss(model(batch["x"]), batch["y"])
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        if next(steps) >= 1:
            average.update_parameters(model)
        return {"loss": loss}

    return {"model": model, "average": average, "optimizer": optimizer}, step


def flax_averaged(share: Callable[[Any], Any]) -> Any:
    model = FlaxNet(nnx.Rngs(0), norm=True)
    optimizer = nnx.Optimizer(model, optax.sgd(0.1), wrt=nnx.Param)

    @nnx.jit
    def step(state: Any, batch: Any) -> Any:
        loss, gradients = nnx.value_and_grad(lambda model: mse(model(batch["x"]), batch["y"]))(state["model"])
        state["optimizer"].update(state["model"], gradients)
        old, new = nnx.state(state["average"], nnx.Param), nnx.state(state["model"], nnx.Param)
        nnx.update(state["average"], optax.incremental_update(new, old, share(state["count"])))
        # `AveragedModel` copies buffers.
        old, new = nnx.state(state["average"], nnx.BatchStat), nnx.state(state["model"], nnx.BatchStat)
        nnx.update(state["average"], optax.incremental_update(new, old, jnp.where(state["count"] < 1, 0.0, 1.0)))
        return {**state, "count": state["count"] + 1}, {"loss": loss}

    return {"model": model, "average": nnx.clone(model), "optimizer": optimizer, "count": jnp.zeros((), int)}, step


@pytest.mark.slow
def test_averages_whose_decay_changes_from_step_to_step() -> None:
    batches = drawn(x=(5,), y=(3,))

    def found(share: Callable[[Any], Any]) -> compare.Report:
        return checked(averaged, lambda: flax_averaged(share), batches, steps=5, quick=True)

    assert found(lambda count: jnp.where(count < 1, 0.0, 1 / jnp.maximum(count, 1))).verdict == "match"
    wrong = found(lambda count: jnp.where(count < 1, 0.0, 1 / (count + 1))).divergence
    assert wrong is not None
    assert wrong.cause is not None
    assert wrong.cause.name == "average's decay"
    assert wrong.cause.fix.endswith("torch's: 0, 1, 0.5, 1/3, 0.25")
    report = found(lambda count: 1 / (count + 1))
    early = report.divergence
    assert early is not None
    assert not report.others, "the average's own running statistics do not follow the model's"
    assert early.cause is not None
    assert early.cause.name == "averaged at other steps"


def lbfgs(iterations: int) -> Any:
    model = TorchNet()
    optimizer = torch.optim.LBFGS(model.parameters(), lr=0.5, max_iter=iterations, max_eval=9, history_size=4)

    def step(_: Any, batch: Any) -> Any:
        def closure() -> torch.Tensor:
            optimizer.zero_grad()
            loss = functional.mse_loss(model(batch["x"]), batch["y"])
            loss.backward()
            return loss

        return {"loss": optimizer.step(closure)}

    return {"model": model, "optimizer": optimizer}, step


def flax_lbfgs(iterations: int, *, as_torch: bool) -> Any:
    """Make the port; torch divides its first step by the sum of absolute values, and optax by the norm."""
    model, inner = FlaxNet(nnx.Rngs(0)), optax.lbfgs(0.5, memory_size=4, linesearch=None)

    def update(gradients: Any, state: Any, params: Any) -> Any:
        updates, kept = inner.update(gradients, state[0], params)
        total = sum(jnp.abs(leaf).sum() for leaf in jax.tree.leaves(gradients))
        first = jnp.minimum(1, 1 / total) / jnp.minimum(1, 1 / optax.tree.norm(gradients))
        scale = jnp.where(state[1] == 0, first, 1.0) if as_torch else 1.0
        return optax.tree.scale(scale, updates), (kept, state[1] + 1)

    start = optax.GradientTransformation(lambda params: (inner.init(params), jnp.zeros((), int)), update)
    optimizer = nnx.Optimizer(model, start, wrt=nnx.Param)

    @nnx.jit
    def step(state: Any, batch: Any) -> Any:
        losses = []
        for _ in range(iterations):
            loss, gradients = nnx.value_and_grad(lambda model: mse(model(batch["x"]), batch["y"]))(state["model"])
            state["optimizer"].update(state["model"], gradients)
            losses.append(loss)
        return state, {"loss": losses[0]}

    return {"model": model, "optimizer": optimizer}, step


@pytest.mark.slow
def test_a_closure_that_is_called_several_times() -> None:
    """Each call makes gradients, which are compared with those of the port's updates in turn."""
    batches = drawn(x=(5,), y=(3,))
    right = checked(lambda: lbfgs(2), lambda: flax_lbfgs(2, as_torch=True), batches, steps=3, quick=True)
    assert right.verdict == "match", str(right)
    assert any(each.torch == "model.fc1.weight#2" for each in right.quantities)
    wrong = checked(lambda: lbfgs(2), lambda: flax_lbfgs(2, as_torch=False), batches, steps=3, quick=True)
    assert wrong.verdict == "mismatch"


def tasks(*, fixed: bool) -> Any:
    model = TorchNet()
    optimizer = torch.optim.SGD(model.parameters(), 0.1)

    def step(_: Any, batch: Any) -> Any:
        count = 2 if fixed else len(batch["x"])
        each = [functional.mse_loss(model(batch["x"][task]), batch["y"][task]) for task in range(count)]
        loss = torch.stack(each).sum() / 2
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        return {"loss": loss}

    return {"model": model, "optimizer": optimizer}, step


def flax_plain(weights: Callable[[Any, Any], Any] = lambda state, batch: jnp.ones(len(batch["x"]))) -> Any:
    """Make a port whose loss is a weighted mean over the examples."""
    model = FlaxNet(nnx.Rngs(0))
    optimizer = nnx.Optimizer(model, optax.sgd(0.1), wrt=nnx.Param)

    @nnx.jit
    def step(state: Any, batch: Any) -> Any:
        weight = weights(state, batch)

        def loss_fn(model: FlaxNet) -> jax.Array:
            each = ((model(batch["x"]) - batch["y"]) ** 2).reshape(len(weight), -1).mean(1)
            return (each * weight).sum() / weight.sum()

        loss, gradients = nnx.value_and_grad(loss_fn)(state["model"])
        state["optimizer"].update(state["model"], gradients)
        return {**state, "count": state["count"] + 1}, {"loss": loss}

    return {"model": model, "optimizer": optimizer, "count": jnp.zeros((), int)}, step


def test_a_fixed_number_of_tasks_is_no_other_batch_size() -> None:
    batches = drawn(x=(6, 5), y=(6, 3), size=2)
    fixed = checked(lambda: tasks(fixed=True), flax_plain, batches, steps=2)
    assert fixed.verdict == "match", str(fixed)
    assert "another batch size: the torch side does not read the additional example" in fixed.unexercised
    # Torch's loss over three tasks is divided by two all the same, as a sum over a fixed number of micro-batches is.
    looped = checked(lambda: tasks(fixed=False), flax_plain, batches, steps=2)
    assert looped.verdict == "match", str(looped)
    assert any("over which torch loops" in line for line in looped.unexercised)


def curriculum() -> Any:
    """Take two examples more in each step."""
    model = TorchNet()
    optimizer, taken = torch.optim.SGD(model.parameters(), 0.1), itertools.count(4, 2)

    def step(_: Any, batch: Any) -> Any:
        size = next(taken)
        loss = functional.mse_loss(model(batch["x"][:size]), batch["y"][:size])
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        return {"loss": loss}

    return {"model": model, "optimizer": optimizer}, step


def test_a_curriculum_differs_where_its_loss_does() -> None:
    """Torch slices the batch, and the port masks it: modules take other numbers of examples, and are not to blame."""
    batches = drawn(x=(5,), y=(3,))

    def found(start: int) -> compare.Report:
        def weights(state: Any, batch: Any) -> Any:
            return jnp.where(jnp.arange(len(batch["x"])) < start + 2 * state["count"], 1.0, 0.0)

        return checked(curriculum, lambda: flax_plain(weights), batches, steps=3, quick=True)

    right, wrong = found(4), found(6)
    assert right.verdict == "match"
    assert any("a different number of examples" in each.reason for each in right.not_compared)
    assert wrong.divergence is not None
    assert (wrong.divergence.step, wrong.divergence.stage) == (0, "loss")


def shared(*, stale: bool) -> tuple[Any, Any]:
    """Make both sides of two optimizers that train one layer in common."""

    def original() -> Any:
        model = TorchNet()
        first = torch.optim.Adam(model.parameters(), 1e-2)
        second = torch.optim.SGD(model.fc1.parameters(), 0.1)

        def step(_: Any, batch: Any) -> Any:
            loss = functional.mse_loss(model(batch["x"]), batch["y"])
            first.zero_grad()
            loss.backward()
            first.step()
            other = model(batch["x"]).abs().mean()
            second.zero_grad()
            other.backward()
            second.step()
            return {"loss": loss, "other": other}

        return {"model": model, "first": first, "second": second}, step

    def port() -> Any:
        model = FlaxNet(nnx.Rngs(0))
        of_fc1 = nnx.All(nnx.Param, nnx.PathContains("fc1"))
        first = nnx.Optimizer(model, optax.adam(1e-2), wrt=nnx.Param)
        second = nnx.Optimizer(model, optax.sgd(0.1), wrt=of_fc1)

        @nnx.jit
        def step(state: Any, batch: Any) -> Any:
            def of_other() -> Any:
                take = nnx.value_and_grad(lambda m: jnp.abs(m(batch["x"])).mean(), argnums=nnx.DiffState(0, of_fc1))
                return take(state["model"])

            loss, gradients = nnx.value_and_grad(lambda model: mse(model(batch["x"]), batch["y"]))(state["model"])
            before = of_other() if stale else None
            state["first"].update(state["model"], gradients)
            other, gradients = before or of_other()
            state["second"].update(state["model"], gradients)
            return state, {"loss": loss, "other": other}

        return {"model": model, "first": first, "second": second}, step

    return original, port


def test_the_order_of_updates_of_shared_weights() -> None:
    batches = drawn(x=(5,), y=(3,))
    assert checked(*shared(stale=False), batches, steps=3, quick=True).verdict == "match"
    found = checked(*shared(stale=True), batches, steps=3, quick=True).divergence
    assert found is not None
    assert found.cause is not None
    assert found.cause.name == "order of updates"


def scheduled() -> Any:
    model = TorchNet()
    optimizer = torch.optim.SGD(model.parameters(), 0.1)
    schedule = torch.optim.lr_scheduler.StepLR(optimizer, 1000)

    def step(_: Any, batch: Any) -> Any:
        loss = functional.mse_loss(model(batch["x"]), batch["y"])
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        schedule.step()
        return {"loss": loss}

    return {"model": model, "optimizer": optimizer, "schedule": schedule}, step


@pytest.mark.slow
def test_a_schedule_that_goes_on_is_said() -> None:
    batches = drawn(x=(5,), y=(3,))
    report = checked(scheduled, flax_plain, batches, steps=2)
    assert report.verdict == "match"
    (line,) = [each for each in report.unexercised if "schedule" in each]
    last = int(line.partition("after step ")[2].partition(",")[0])
    assert np.less(6, last)
    assert not any("schedule" in each for each in checked(lambda: tasks(fixed=True), flax_plain, batches).unexercised)


@pytest.mark.slow
def test_gradients_of_single_examples_by_vmap() -> None:
    """What `torch.func.vmap` calls has no numbers to record; what the step does with its results has."""
    batches = drawn(x=(5,), y=(3,))

    def original() -> Any:
        model = TorchNet()
        optimizer = torch.optim.SGD(model.parameters(), 0.1)

        def loss_of(params: Any, x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
            return functional.mse_loss(torch.func.functional_call(model, params, (x[None],))[0], y)

        def step(state: Any, batch: Any) -> Any:
            params = {name: param.detach() for name, param in model.named_parameters()}
            each = torch.func.vmap(torch.func.grad(loss_of), in_dims=(None, 0, 0))(params, batch["x"], batch["y"])
            norms = sum(gradient.flatten(1).pow(2).sum(1) for gradient in each.values()).sqrt()
            scale = 1 / (1 + norms)
            for name, param in model.named_parameters():
                param.grad = torch.einsum("n,n...->...", scale, each[name])
            optimizer.step()
            return {"loss": functional.mse_loss(model(batch["x"]), batch["y"])}

        return {"model": model, "optimizer": optimizer}, step

    def port(offset: float) -> Any:
        model = FlaxNet(nnx.Rngs(0))
        optimizer = nnx.Optimizer(model, optax.sgd(0.1), wrt=nnx.Param)

        @nnx.jit
        def step(state: Any, batch: Any) -> Any:
            graph, params = nnx.split(state["model"])

            def loss_of(params: Any, x: jax.Array, y: jax.Array) -> jax.Array:
                return jnp.mean((nnx.merge(graph, params)(x[None])[0] - y) ** 2)

            each = jax.vmap(jax.grad(loss_of), in_axes=(None, 0, 0))(params, batch["x"], batch["y"])
            norms = jnp.sqrt(sum(jnp.sum(leaf.reshape(len(leaf), -1) ** 2, 1) for leaf in jax.tree.leaves(each)))
            gradients = jax.tree.map(lambda leaf: jnp.tensordot(1 / (offset + norms), leaf, 1), each)
            state["optimizer"].update(state["model"], gradients)
            return state, {"loss": mse(state["model"](batch["x"]), batch["y"])}

        return {"model": model, "optimizer": optimizer}, step

    right = checked(original, lambda: port(1.0), batches, steps=3)
    assert right.verdict == "match", str(right)
    wrong = checked(original, lambda: port(2.0), batches, steps=3)
    assert wrong.verdict == "mismatch"
    assert not wrong.bugs


def penalized() -> Any:
    """Take a gradient penalty, with the arguments of `torch.autograd.grad` by keyword, as most scripts do."""
    model = TorchNet(outputs=1)
    optimizer = torch.optim.SGD(model.parameters(), 0.1)

    def step(_: Any, batch: Any) -> Any:
        x = batch["x"].requires_grad_()
        output = model(x)
        ones = torch.ones_like(output)
        (gradient,) = torch.autograd.grad(outputs=output, inputs=x, grad_outputs=ones, create_graph=True)
        loss = -output.mean() + 10 * ((gradient.norm(2, dim=1) - 1) ** 2).mean()
        optimizer.zero_grad()
        torch.autograd.backward(tensors=loss)
        optimizer.step()
        return {"loss": loss}

    return {"model": model, "optimizer": optimizer}, step


def flax_penalized() -> Any:
    model = FlaxNet(nnx.Rngs(0), outputs=1)
    optimizer = nnx.Optimizer(model, optax.sgd(0.1), wrt=nnx.Param)

    @nnx.jit
    def step(state: Any, batch: Any) -> Any:
        def loss_fn(model: FlaxNet) -> jax.Array:
            gradient = jax.grad(lambda x: model(x).sum())(batch["x"])
            return -model(batch["x"]).mean() + 10 * jnp.mean((jnp.linalg.norm(gradient, axis=1) - 1) ** 2)

        loss, gradients = nnx.value_and_grad(loss_fn)(state["model"])
        state["optimizer"].update(state["model"], gradients)
        return state, {"loss": loss}

    return {"model": model, "optimizer": optimizer}, step


def test_gradients_that_are_asked_for_by_keyword() -> None:
    report = checked(penalized, flax_penalized, drawn(x=(5,)), steps=3, quick=True)
    assert report.verdict == "match", str(report)
