"""Ports whose difference hides: behind a guard or a tie, in what is accepted or left out, in what `batch=` does."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import torch
from flax import nnx
from jax.experimental import io_callback

import compare

from .bases import Base
from .foreign import wrapped


def nan_guard(base: Base) -> dict[str, Any]:
    """The port turns what is not finite into numbers, and torch does not."""
    return {"jax": base.port(wrapped(base, jnp.nan_to_num))}


def true_mask(base: Base) -> dict[str, Any]:
    """A mask that is true for all that any batch brings."""
    return {"jax": base.port(wrapped(base, lambda x: jnp.where(jnp.abs(x) < 1e4, x, 0.0)))}


def clamp(base: Base) -> dict[str, Any]:
    """The port clips what it gives, at bounds that are not reached."""
    return {"jax": base.port(wrapped(base, lambda x: jnp.clip(x, -50, 50)))}


def torch_clamp(base: Base) -> dict[str, Any]:
    """Torch clips, and the port does not."""

    class Clamped(base.torch_model):  # type: ignore[misc, name-defined]
        def forward(self, x: Any) -> Any:
            return super().forward(x).clamp(-50, 50)

    return {"torch": base.original(model=Clamped())}


def torch_clamp_twin(base: Base) -> dict[str, Any]:
    """The honest twin."""
    return {**torch_clamp(base), **clamp(base)}


def relu6(base: Base) -> dict[str, Any]:
    """A ReLU that ends at 6, where nothing is as large."""

    class Six(base.flax_model):  # type: ignore[misc, name-defined]
        def __call__(self, x: Any) -> Any:
            h = self.norm(self.conv(jnp.moveaxis(x, 1, -1)))
            return self.fc(nnx.relu6(h).mean((1, 2)))

    return {"jax": base.port(Six())}


def padding_row(base: Base) -> dict[str, Any]:
    """Torch trains no row of padding, the port trains it, and no batch has any padding."""

    class Padded(base.torch_model):  # type: ignore[misc, name-defined]
        def __init__(self) -> None:
            super().__init__()
            self.embed = torch.nn.Embedding(9, 6, padding_idx=0)

    batches = [(1 + x % 8, y) for x, y in base.batches()]
    plain = lambda params: torch.optim.SGD(params, 0.1)  # noqa: E731 - as scripts have it
    return {
        "torch": base.original(model=Padded(), optimizer=plain),
        "jax": base.port(optimizer=optax.sgd(0.1)),
        "batches": batches,
    }


def class_weights(base: Base) -> dict[str, Any]:
    """Torch weighs a class that no batch has."""
    return {
        "torch": base.original(loss=torch.nn.CrossEntropyLoss(weight=torch.tensor([1.0, 1.0, 3.0]))),
        "batches": [(x, y % 2) for x, y in base.batches()],
    }


def right_value(base: Base) -> dict[str, Any]:
    """A loss of the right value with the gradient of another."""

    def loss(output: Any, target: Any) -> Any:
        right, wrong = base.loss(output, target), 2 * base.loss(output, target)
        return jax.lax.stop_gradient(right) + wrong - jax.lax.stop_gradient(wrong)

    return {"jax": base.port(loss=loss)}


def right_gradient(base: Base) -> dict[str, Any]:
    """A loss of another value with the right gradient."""

    def loss(output: Any, target: Any) -> Any:
        right = base.loss(output, target)
        return right + jax.lax.stop_gradient(0.1 * right)

    return {"jax": base.port(loss=loss)}


class TorchTwice(torch.nn.Module):
    def __init__(self, *, tied: bool) -> None:
        super().__init__()
        self.one, self.two = torch.nn.Linear(6, 6), torch.nn.Linear(6, 6)
        self.two.load_state_dict(self.one.state_dict())
        if tied:
            self.two.weight, self.two.bias = self.one.weight, self.one.bias

    def forward(self, x: torch.Tensor) -> Any:
        return self.two(torch.tanh(self.one(x)))


class FlaxTwice(nnx.Module):
    def __init__(self, *, tied: bool) -> None:
        self.one, self.two = nnx.Linear(6, 6, rngs=nnx.Rngs(0)), nnx.Linear(6, 6, rngs=nnx.Rngs(1))
        if tied:
            self.two.kernel, self.two.bias = self.one.kernel, self.one.bias

    def __call__(self, x: Any) -> Any:
        return self.two(jnp.tanh(self.one(x)))


def _twice(base: Base, torch_tied: bool, flax_tied: bool, trained: bool) -> dict[str, Any]:
    rng = np.random.default_rng(3)
    batches = [(rng.normal(size=(5, 6)), rng.normal(size=(5, 6))) for _ in range(2)]
    sides = {
        "torch": base.original(model=TorchTwice(tied=torch_tied), trained=trained),
        "jax": base.port(FlaxTwice(tied=flax_tied), trained=trained),
    }
    return {**sides, "batches": batches}


def tied(base: Base) -> dict[str, Any]:
    """Two layers that start equal in torch are one in the port."""
    return _twice(base, torch_tied=False, flax_tied=True, trained=False)


def untied(base: Base) -> dict[str, Any]:
    """One layer of torch's is two in the port, which start equal."""
    return _twice(base, torch_tied=True, flax_tied=False, trained=True)


def tied_twin(base: Base) -> dict[str, Any]:
    """The honest twin."""
    return _twice(base, torch_tied=False, flax_tied=False, trained=False)


def untied_twin(base: Base) -> dict[str, Any]:
    """The honest twin."""
    return _twice(base, torch_tied=True, flax_tied=True, trained=True)


def unpaired(base: Base) -> dict[str, Any]:
    """The last layer is left out by weights=, and its right numbers are written into the port."""
    original = base.original(trained=False)
    model: Any = base.flax_model()
    compare.copy_weights(original.model, model)
    kernel, bias = np.asarray(model.fc2.kernel[...]), np.asarray(model.fc2.bias[...])

    class Last(nnx.Module):
        def __call__(self, x: Any) -> Any:
            return x @ jnp.asarray(kernel, x.dtype) + jnp.asarray(bias, x.dtype)

    model.fc2 = Last()
    return {"torch": original, "jax": base.port(model, trained=False), "weights": {r"fc2\..*": None}}


def accepted(base: Base) -> dict[str, Any]:
    """Everything that differs is accepted."""
    halved = base.port(wrapped(base, lambda x: x / 2))
    stages = ("forward", "loss", "gradient", "update", "parameters", "buffers")
    return {"jax": halved, "accept": {f"{stage}: *": "known" for stage in stages}}


def only_forward(base: Base) -> dict[str, Any]:
    """Another loss and another optimizer, of which stages= asks nothing."""
    halved = base.port(loss=lambda output, target: base.loss(output, target) / 2, optimizer=optax.sgd(1.0))
    return {"jax": halved, "stages": "forward"}


def counting_batch(base: Base) -> dict[str, Any]:
    """`batch=` gives other batches after its first calls."""
    calls: list[int] = []

    def batch(inputs: Any, target: Any) -> Any:
        calls.append(1)
        return (inputs, target) if len(calls) < 200 else (inputs[::-1], target)

    return {"jax": base.port(batch=batch)}


def refreshed_closure(base: Base) -> dict[str, Any]:
    """`batch=` puts torch's answer where the model finds it while it is traced."""
    original = base.original(trained=False)
    model = base.torch_model()
    model.load_state_dict(original.model.state_dict())
    held: dict[str, Any] = {}

    class Holding(base.flax_model):  # type: ignore[misc, name-defined]
        def __call__(self, x: Any) -> Any:
            y = base.flax_model.__call__(self, x)
            return jnp.asarray(held["answer"], y.dtype) + 0 * y if held["answer"].shape == y.shape else y

    def batch(inputs: Any, target: Any) -> Any:
        given = torch.tensor(inputs)
        held["answer"] = model(given.float() if given.is_floating_point() else given).detach().numpy()
        return inputs, target

    return {"torch": original, "jax": base.port(Holding(), trained=False, batch=batch), "batches": base.batches()[:1]}


def table_in_buffers(base: Base) -> dict[str, Any]:
    """Torch's answers stand in buffers of the port, a column each."""
    original = base.original(trained=False)
    model = base.torch_model()
    model.load_state_dict(original.model.state_dict())
    keys, values = [], []
    for inputs, _ in base.batches():
        given = torch.tensor(inputs)
        values.append(model(given.float() if given.is_floating_point() else given).detach().numpy())
        keys.append(float(inputs.sum()))
    table = np.array(values)

    class Spread(base.flax_model):  # type: ignore[misc, name-defined]
        def __init__(self) -> None:
            super().__init__()
            self.keys = nnx.Variable(jnp.asarray(keys, jnp.float32))
            for column in range(table.shape[-1]):
                setattr(self, f"scale{column}", nnx.Variable(jnp.asarray(table[..., column])))

        def __call__(self, x: Any) -> Any:
            row = jnp.argmin(jnp.abs(self.keys[...] - x.sum()))
            return jnp.stack([getattr(self, f"scale{column}")[...][row] for column in range(table.shape[-1])], -1)

    return {"torch": original, "jax": base.port(Spread(), trained=False)}


def ordered_update(base: Base) -> dict[str, Any]:
    """An io_callback in the optimizer."""

    def update(updates: Any, state: Any, params: Any = None) -> Any:
        updates, state = base.optimizer.update(updates, state, params)
        through = lambda x: io_callback(np.asarray, jax.ShapeDtypeStruct(x.shape, x.dtype), x)  # noqa: E731
        return jax.tree.map(through, updates), state

    return {"jax": base.port(optimizer=optax.GradientTransformation(base.optimizer.init, update))}


def epsilon(base: Base) -> dict[str, Any]:
    """A norm that has another epsilon in float32."""

    class Other(base.flax_model):  # type: ignore[misc, name-defined]
        def __call__(self, x: Any) -> Any:
            h = self.fc1(x)
            small = 1e-5 if h.dtype == jnp.float64 else 1.2e-5
            h = (h - h.mean(-1, keepdims=True)) / jnp.sqrt(h.var(-1, keepdims=True) + small)
            return self.fc2(jnp.tanh(h * self.norm.scale[...] + self.norm.bias[...]))

    return {"jax": base.port(Other())}
