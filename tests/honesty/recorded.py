"""Ports that have the answers, their own weights, or what the batch brings."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import torch
from flax import nnx

from .bases import Base


def outputs(base: Base) -> dict[str, Any]:
    """The outputs of the torch model are looked up by the sum of the inputs."""
    original = base.original(trained=False)
    keys, values = _answers(base, original.model)

    class Table(base.flax_model):  # type: ignore[misc, name-defined]
        def __call__(self, x: Any) -> Any:
            return jnp.asarray(values)[jnp.argmin(jnp.abs(jnp.asarray(keys) - x.sum()))]

    return {"torch": original, "jax": base.port(Table(), trained=False)}


def outputs_by_step(base: Base) -> dict[str, Any]:
    """The outputs are looked up by the number of the step."""
    original = base.original(trained=False)
    _, values = _answers(base, original.model)

    class Table(base.flax_model):  # type: ignore[misc, name-defined]
        def __init__(self) -> None:
            super().__init__()
            self.count = nnx.Variable(jnp.zeros((), jnp.int32))

        def __call__(self, x: Any) -> Any:
            number = self.count[...]
            self.count[...] = number + 1
            return jnp.asarray(values)[number % len(values)]

    return {"torch": original, "jax": base.port(Table(), trained=False)}


def _answers(base: Base, model: torch.nn.Module) -> tuple[np.ndarray, np.ndarray]:
    keys, values = [], []
    model = base.torch_model()
    model.load_state_dict(base.original(trained=False).model.state_dict())
    for inputs, _ in base.batches():
        given = torch.tensor(inputs)
        values.append(model(given.float() if given.is_floating_point() else given).detach().numpy())
        keys.append(inputs.sum())
    return np.array(keys, np.float32), np.array(values)


def updates(base: Base) -> dict[str, Any]:
    """The updates are those that the right optimizer made, by step."""
    rows: list[Any] = []
    sides = base.port()
    import compare

    class Watching:
        def init(self, params: Any) -> Any:
            return base.optimizer.init(params)

        def update(self, gradients: Any, state: Any, params: Any = None) -> Any:
            updates, state = base.optimizer.update(gradients, state, params)
            jax.debug.callback(lambda each: rows.append(jax.tree.map(np.array, each)), updates, ordered=True)
            return updates, state

    compare.check(base.original(), base.port(optimizer=Watching()), base.batches(), steps=3, quick=True)
    jax.effects_barrier()
    wide = [row for row in rows if jax.tree.leaves(row)[0].dtype == np.float64][:3]
    narrow = [row for row in rows if jax.tree.leaves(row)[0].dtype == np.float32][:3]

    def update(gradients: Any, state: Any, params: Any = None) -> Any:
        _, after = base.optimizer.update(gradients, state["own"], params)
        rows = wide if jax.tree.leaves(gradients)[0].dtype == jnp.float64 else narrow
        kept = [jnp.stack(each) for each in zip(*map(jax.tree.leaves, rows), strict=True)]
        found = jax.tree.unflatten(jax.tree.structure(gradients), [each[state["count"] % 3] for each in kept])
        return found, {"own": after, "count": state["count"] + 1}

    def init(params: Any) -> Any:
        return {"own": base.optimizer.init(params), "count": jnp.zeros((), jnp.int32)}

    del sides
    return {"jax": base.port(optimizer=optax.GradientTransformation(init, update)), "steps": 3}


def own_weights(base: Base) -> dict[str, Any]:
    """The weights come from a closure; those that the port is given are ignored."""
    original = base.original(trained=False)
    import compare

    model = base.flax_model()
    compare.copy_weights(original.model, model)
    graph, state = nnx.split(model)
    held = jax.tree.map(jnp.array, state)

    class Closed(base.flax_model):  # type: ignore[misc, name-defined]
        def __call__(self, x: Any) -> Any:
            return base.flax_model.__call__(nnx.merge(graph, held), x)

    return {"torch": original, "jax": base.port(Closed(), trained=False)}


def own_targets(base: Base) -> dict[str, Any]:
    """The targets come from a closure."""
    batches = base.batches()[:1]
    target = np.asarray(batches[0][1])

    def loss(output: Any, _: Any) -> Any:
        return base.loss(output, target.astype(output.dtype) if target.dtype.kind == "f" else target)

    return {"jax": base.port(loss=loss), "batches": batches}


def from_the_batch(base: Base) -> dict[str, Any]:
    """`batch=` computes the answer."""
    original = base.original(trained=False)
    model = base.torch_model()
    model.load_state_dict(original.model.state_dict())

    class Passing(base.flax_model):  # type: ignore[misc, name-defined]
        def __call__(self, x: Any) -> Any:
            return x

    def batch(inputs: Any, target: Any) -> Any:
        given = torch.tensor(inputs)
        model.double()
        return model(given.double() if given.is_floating_point() else given).detach().numpy(), target

    return {"torch": original, "jax": base.port(Passing(), trained=False, batch=batch)}


def fails_on_others(base: Base) -> dict[str, Any]:
    """`batch=` looks the answer up, and knows no other batch."""
    original = base.original(trained=False)
    _, values = _answers(base, original.model)
    known = {inputs.tobytes(): value for (inputs, _), value in zip(base.batches(), values, strict=True)}

    class Passing(base.flax_model):  # type: ignore[misc, name-defined]
        def __call__(self, x: Any) -> Any:
            return x

    def batch(inputs: Any, target: Any) -> Any:
        return known[inputs.tobytes()], target

    return {"torch": original, "jax": base.port(Passing(), trained=False, batch=batch)}
