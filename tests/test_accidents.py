"""What fits by accident is no cause, and what follows from a fault is no second one."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import torch
from flax import nnx
from programs.common import FlaxNet, TorchNet, drawn
from test_program_kinds import checked
from torch.nn import functional

import compare


def trained(kind: Any, loss_of: Any) -> Any:
    """Make the usual step of a port."""
    model = kind(nnx.Rngs(0))
    optimizer = nnx.Optimizer(model, optax.sgd(0.1), wrt=nnx.Param)

    @nnx.jit
    def step(state: Any, batch: Any) -> Any:
        loss, gradients = nnx.value_and_grad(lambda model: loss_of(model, batch))(state["model"])
        state["optimizer"].update(state["model"], gradients)
        return state, {"loss": loss}

    return {"model": model, "optimizer": optimizer}, step


def original(kind: Any, loss_of: Any) -> Any:
    """Make the usual step of torch."""
    model = kind()
    optimizer = torch.optim.SGD(model.parameters(), 0.1)

    def step(_: Any, batch: Any) -> Any:
        loss = loss_of(model, batch)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        return {"loss": loss}

    return {"model": model, "optimizer": optimizer}, step


def hinge() -> Any:
    """Take the nearest of the negatives."""

    def loss_of(model: Any, batch: Any) -> torch.Tensor:
        anchor, positive, negative = (model(batch[name]) for name in ("a", "p", "n"))
        near = torch.cdist(anchor, negative).masked_fill(torch.eye(12) > 0, 1e9).min(1).values
        return functional.relu((anchor - positive).norm(dim=1) - near + 1).mean()

    return original(TorchNet, loss_of)


def flax_hinge() -> Any:
    def loss_of(model: Any, batch: Any) -> jax.Array:
        anchor, positive, negative = (model(batch[name]) for name in ("a", "p", "n"))
        distances = jnp.linalg.norm(anchor[:, None] - negative[None], axis=-1)
        near = jnp.where(jnp.eye(12) > 0, 1e9, distances).mean(1)
        return jax.nn.relu(jnp.linalg.norm(anchor - positive, axis=1) - near + 1).mean()

    return trained(FlaxNet, loss_of)


def test_of_a_loss_of_zero_it_is_said_that_it_is_zero() -> None:
    """Exponents of the outputs, a reciprocal and more would make it zero as well."""
    report = checked(hinge, flax_hinge, drawn(a=(5,), p=(5,), n=(5,)), steps=3)
    assert report.divergence is not None
    assert report.divergence.cause is not None
    assert report.divergence.cause.name == "zero"


def sharpness_aware() -> Any:
    """Move all weights along the gradient, divided by the norm of all gradients, and update with what is there."""
    model = TorchNet()
    optimizer = torch.optim.SGD(model.parameters(), 0.1)

    def step(_: Any, batch: Any) -> Any:
        loss = functional.mse_loss(model(batch["x"]), batch["y"])
        optimizer.zero_grad()
        loss.backward()
        with torch.no_grad():
            norm = torch.norm(torch.stack([each.grad.norm() for each in model.parameters() if each.grad is not None]))
            moves = [0.05 * each.grad / (norm + 1e-12) for each in model.parameters() if each.grad is not None]
            for each, move in zip(model.parameters(), moves, strict=True):
                each.add_(move)
        optimizer.zero_grad()
        functional.mse_loss(model(batch["x"]), batch["y"]).backward()
        with torch.no_grad():
            for each, move in zip(model.parameters(), moves, strict=True):
                each.sub_(move)
        optimizer.step()
        return {"loss": loss}

    return {"model": model, "optimizer": optimizer}, step


def flax_sharpness_aware() -> Any:
    """Divide each gradient by its own norm."""
    model = FlaxNet(nnx.Rngs(0))
    optimizer = nnx.Optimizer(model, optax.sgd(0.1), wrt=nnx.Param)

    @nnx.jit
    def step(state: Any, batch: Any) -> Any:
        graph, params = nnx.split(state["model"])

        def loss_of(params: Any) -> jax.Array:
            return jnp.mean((nnx.merge(graph, params)(batch["x"]) - batch["y"]) ** 2)

        loss, gradients = jax.value_and_grad(loss_of)(params)
        moves = jax.tree.map(lambda each: 0.05 * each / (jnp.linalg.norm(each) + 1e-12), gradients)
        state["optimizer"].update(state["model"], jax.grad(loss_of)(jax.tree.map(jnp.add, params, moves)))
        return state, {"loss": loss}

    return {"model": model, "optimizer": optimizer}, step


def test_two_changes_that_explain_one_layer_are_no_cause() -> None:
    report = checked(sharpness_aware, flax_sharpness_aware, drawn(x=(5,), y=(3,)), steps=3)
    assert report.verdict == "mismatch"
    assert report.divergence is not None
    assert report.divergence.cause is None, report.divergence.cause


def queue() -> Any:
    model, kept, position = torch.nn.Linear(5, 3), torch.randn(24, 3), torch.zeros((), dtype=torch.long)
    optimizer = torch.optim.SGD(model.parameters(), 0.1)

    def step(state: Any, batch: Any) -> Any:
        output = model(batch["x"])
        loss = ((output @ state["queue"].T) ** 2).mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        begin = int(state["position"])
        state["queue"][begin : begin + 12] = output.detach()
        state["position"].copy_((state["position"] + 12) % 24)
        return {"loss": loss}

    return {"model": model, "optimizer": optimizer, "queue": kept, "position": position}, step


def flax_queue() -> Any:
    """Leave the position in the queue as it is."""
    model = nnx.Linear(5, 3, rngs=nnx.Rngs(0))
    optimizer = nnx.Optimizer(model, optax.sgd(0.1), wrt=nnx.Param)

    @nnx.jit
    def step(state: Any, batch: Any) -> Any:
        def loss_of(model: Any) -> Any:
            output = model(batch["x"])
            return jnp.mean((output @ state["queue"].T) ** 2), output

        (loss, output), gradients = nnx.value_and_grad(loss_of, has_aux=True)(state["model"])
        state["optimizer"].update(state["model"], gradients)
        kept = jax.lax.dynamic_update_slice_in_dim(state["queue"], output, state["position"], 0)
        return {**state, "queue": kept}, {"loss": loss}

    made = {"queue": jnp.zeros((24, 3)), "position": jnp.zeros((), jnp.int32)}
    return {"model": model, "optimizer": optimizer, **made}, step


def test_what_is_written_at_a_wrong_position_follows_from_the_position() -> None:
    report = checked(queue, flax_queue, drawn(x=(5,)), steps=3)
    assert report.divergence is not None
    assert (report.divergence.stage, report.divergence.torch) == ("state", "position")
    assert not report.others


class Cosine(torch.nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.weight = torch.nn.Parameter(torch.randn(3, 5))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        cosine = functional.normalize(x) @ functional.normalize(self.weight).T
        return torch.where(cosine**2 < 1, 1 - cosine**2, 1.0).sqrt()


class FlaxCosine(nnx.Module):
    def __init__(self, rngs: nnx.Rngs) -> None:
        self.weight = nnx.Param(jax.random.normal(rngs(), (3, 5)))

    def __call__(self, x: jax.Array) -> jax.Array:
        weight = self.weight[...]
        x = x / jnp.linalg.norm(x, axis=1, keepdims=True)
        cosine = x @ (weight / jnp.linalg.norm(weight, axis=0, keepdims=True)).T
        return jnp.where(cosine**2 < 1, jnp.sqrt(1 - cosine**2), 1.0)


def test_what_is_not_finite_behind_another_fault_is_no_second_one() -> None:
    """Rows that are not normalized have products beyond 1, where the square root has no number."""

    def loss_of(model: Any, batch: Any) -> Any:
        return ((model(batch["x"]) - batch["y"]) ** 2).mean()

    report = checked(
        lambda: original(Cosine, loss_of), lambda: trained(FlaxCosine, loss_of), drawn(x=(5,), y=(3,)), steps=2
    )
    assert report.divergence is not None
    assert report.divergence.cause is not None
    assert report.divergence.cause.name == "another axis"
    assert not report.others
    assert np.isfinite(report.divergence.error64)


def test_a_symmetric_loss_with_one_direction_may_lack_a_term() -> None:
    """Without the transpose, both terms are the same, so that it may be the term that the port leaves out."""

    def both(logits: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
        return (functional.cross_entropy(logits, labels) + functional.cross_entropy(logits.T, labels)) / 2

    def one(logits: jax.Array, labels: jax.Array) -> jax.Array:
        return optax.softmax_cross_entropy_with_integer_labels(logits, labels).mean()

    rng = np.random.default_rng(0)
    batches = [(rng.normal(size=(7, 4)), np.arange(7)) for _ in range(3)]
    linear = nnx.Linear(4, 7, rngs=nnx.Rngs(0))
    report = compare.check(compare.Torch(torch.nn.Linear(4, 7), both), compare.Flax(linear, one), batches)
    assert report.divergence is not None
    assert report.divergence.cause is not None
    assert "leaves out T" in report.divergence.cause.explanation
    assert "or has twice one term in place of the sum" in report.divergence.cause.explanation
    assert report.divergence.cause.fix.endswith("; or add the other term")


def test_a_mask_of_pairs_without_its_diagonal_is_told() -> None:
    def in_torch(output: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
        scores = (output @ output.T).masked_fill(labels[:, None] == labels[None], -1e9)
        return torch.logsumexp(scores, 1).mean()

    def port(output: jax.Array, labels: jax.Array) -> jax.Array:
        same = (labels[:, None] == labels[None]) & ~jnp.eye(len(labels), dtype=bool)
        return jax.nn.logsumexp(jnp.where(same, -1e9, output @ output.T), axis=1).mean()

    rng = np.random.default_rng(0)
    batches = [(rng.normal(size=(7, 4)), rng.integers(0, 3, 7)) for _ in range(3)]
    linear = nnx.Linear(4, 5, rngs=nnx.Rngs(0))
    report = compare.check(compare.Torch(torch.nn.Linear(4, 5), in_torch), compare.Flax(linear, port), batches)
    assert report.divergence is not None
    assert report.divergence.cause is not None
    assert "the mask False on its diagonal in masked_fill" in report.divergence.cause.explanation
