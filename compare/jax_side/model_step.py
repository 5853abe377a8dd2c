"""The training step that `compare.Flax` and `compare.Jax` are short for: forward, loss, backward and update."""

import functools
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import numpy as np

from compare.jax_side.labels import Label, labelled, leaves
from compare.jax_side.levels import of_parameters, without_level
from compare.jax_side.mode import with_mode
from compare.jax_side.program_state import Leaf, Role
from compare.jax_side.record import JaxRecord, names
from compare.jax_side.side import Flax, Jax
from compare.jax_side.static import with_values
from compare.step.batch import check_call, checked_loss, described_call
from compare.step.user_code import call_user_code, passes_on

OUTPUT = "output"
"""The name under which a step shows what the model gives."""

_ADVICE = "Adapt the batch with batch= if this side needs another layout or other names"


class ModelState(NamedTuple):
    """The state of such a training."""

    params: Any
    """What is differentiated and updated: a pytree of the user's own structure."""
    buffers: Any
    rngs: Any
    optimizer: Any = ()
    """What the optimizer remembers."""


class ModelStep:
    """The step of one side in one precision, and its state as arrays by name.

    Args:
        side: The model, its loss and its optimizer.
        dtype: "float32" or "float64".
        training: The mode of the model.
        keep_modes: Whether each module keeps its own mode.

    """

    def __init__(self, side: Flax | Jax, dtype: str, *, training: bool, keep_modes: bool) -> None:
        self.side, self.training = side, training
        functional = side.functional(dtype, training=training, keep_modes=keep_modes)
        params, buffers, rngs, self._apply, self._called, self._collections = functional
        self.state = ModelState(params, buffers, rngs)
        self.optimizer: Any = side.optimizer
        """The side's, or the same for the parameters alone where it is made for all variables."""
        self.param_names = names(params)
        self.buffer_names = names(buffers, collections=self._collections)
        self.replaying: Callable[..., Any] | None = None
        """What makes a function use torch's random numbers, while a step is traced that is to use them."""
        self.record = JaxRecord()
        """Of the latest trace, also where it ended in an error."""

    def initialized(self, params: Any) -> Any:
        """Return what the optimizer remembers before its first step; nothing without an optimizer."""
        import jax

        if self.optimizer is None:
            return ()
        if self._collections and self.optimizer is self.side.optimizer:
            self.optimizer = of_parameters(self.optimizer, params)
        # From these parameters: an optimizer may keep a copy of them, as optax.lookahead and contrib.schedule_free do.
        init = functools.partial(self.optimizer.init, params)
        # A step overwrites it: it must share no memory with the parameters, or within itself.
        return jax.device_put(call_user_code(f"the {self.side.name} optimizer's init", init), may_alias=False)

    def names_of(self, state: Any) -> list[str]:
        """Name what the optimizer remembers."""
        found = names(state)
        return found if self.optimizer is self.side.optimizer else [*map(without_level, found)]

    def leaves(self, state: ModelState) -> list[Leaf]:
        """List the arrays of a state."""
        import jax

        def role(array: Any) -> Role:
            return Role.WEIGHTS if _floating(array) else Role.OTHER

        params, buffers = map(jax.tree.leaves, state[:2])
        return [
            *(Leaf(n, role(x)) for n, x in zip(self.param_names, params, strict=True)),
            *(Leaf(n, role(x), buffer=True) for n, x in zip(self.buffer_names, buffers, strict=True)),
            *(Leaf(n, Role.OTHER) for n in names(state.rngs)),
            *(Leaf(n, Role.OPTIMIZER) for n in self.names_of(state.optimizer)),
        ]

    def take_apart(self, state: ModelState) -> list[Any]:
        """Return the arrays of a state, in the order of `leaves`."""
        import jax

        return jax.tree.leaves(state)

    def put_together(self, arrays: Sequence[Any]) -> ModelState:
        """Make a state of its arrays."""
        import jax

        state: ModelState = jax.tree.unflatten(jax.tree.structure(self.state), list(arrays))
        return state

    def model(self, state: ModelState, inputs: Any) -> tuple[Any, ModelState]:
        """Run the model; give its output and the state after it."""
        import jax

        record, after = self.record, list[Any]()
        record.begin(self.param_names, jax.tree.leaves(state.params))

        @passes_on
        def applied(*args: Any, **kwargs: Any) -> Any:
            output, *after[:] = self._apply(state.params, state.buffers, state.rngs, args, kwargs)
            return output

        args, kwargs = with_values(inputs)
        call = f"the {self.side.name} model"
        check_call(call, self._called, args, with_mode(self._called, args, kwargs, self.training), _ADVICE)
        output = call_user_code(
            call,
            functools.partial(record.call, "", "", applied, args, kwargs, _module(self.side), takes=self._called),
            given=described_call(args, kwargs),
            inside=lambda: record.running,
            advice=lambda error: _ADVICE if isinstance(error, TypeError | ValueError) else "",
        )
        buffers, rngs = after
        return output, state._replace(buffers=buffers, rngs=rngs)

    def with_loss(self, state: ModelState, batch: Any) -> tuple[Any, tuple[ModelState, dict[str, Any]]]:
        """Run the model and the loss; give the loss, None if there is none, the state after it and what it shows."""
        inputs, target = batch
        output, after = self.model(state, inputs)
        # What is drawn for an output that no loss reads is drawn all the same.
        shown = {OUTPUT: [array for _, array in leaves(output)]}
        if self.side.loss is None:
            return None, (after, shown)
        loss = checked_loss(self.side.name, self.side.loss, output, with_values(target))
        return loss, (after, {**shown, "loss": loss})

    def __call__(self, state: ModelState, batch: Any) -> tuple[ModelState, dict[str, Any]]:
        """Take one step, and show the loss, the gradients and the updates, as far as there are any."""
        import optax

        after, shown = self.differentiated(state, batch)
        if self.optimizer is None:
            return after, shown
        gradients = self._named(shown["gradients"])
        updates, optimizer = self.updates(gradients, shown["loss"], state.optimizer, state.params)
        apply = functools.partial(optax.apply_updates, state.params, updates)
        params = call_user_code(f"applying the updates of the {self.side.name} optimizer", apply)
        return after._replace(params=params, optimizer=optimizer), {**shown, "updates": updates}

    def differentiated(self, state: ModelState, batch: Any) -> tuple[ModelState, dict[str, Any]]:
        """Run the model and the loss, and show its gradients, without an update."""
        import jax

        if self.side.loss is None:
            return self.evaluated(state, batch)
        compute = jax.value_and_grad(self._loss_of(state, batch), has_aux=True)
        (_, (after, shown)), gradients = compute(state.params)
        return after._replace(params=state.params), {**shown, "gradients": gradients}

    def evaluated(self, state: ModelState, batch: Any) -> tuple[ModelState, dict[str, Any]]:
        """Run the model and the loss, without a gradient."""
        found: tuple[ModelState, dict[str, Any]] = self._loss_of(state, batch)(state.params)[1]
        return found

    def _loss_of(self, state: ModelState, batch: Any) -> Callable[[Any], Any]:
        return self._replayed(lambda params: self.with_loss(state._replace(params=params), batch))

    def forward(self, state: ModelState, batch: Any) -> tuple[ModelState, dict[str, Any]]:
        """Run the model alone."""

        def of_model(params: Any) -> Any:
            output, after = self.model(state._replace(params=params), batch[0])
            return after, {OUTPUT: [array for _, array in leaves(output)]}

        found: tuple[ModelState, dict[str, Any]] = self._replayed(of_model)(state.params)
        return found

    def _replayed(self, function: Callable[[Any], Any]) -> Callable[[Any], Any]:
        """Make a function of the parameters use torch's random numbers, if the step is to use them.

        It is differentiated after that, so that custom derivatives of what is run again are those of the user's code.
        """
        return self.replaying(function) if self.replaying else function

    def updates(self, gradients: Any, loss: Any, state: Any, params: Any) -> tuple[Any, Any]:
        """Call the optimizer, with the loss too if it takes that, as `optax.contrib.reduce_on_plateau` does."""
        import optax

        optimizer: Any = self.optimizer
        more = (
            {"value": loss, "grad": gradients} if isinstance(optimizer, optax.GradientTransformationExtraArgs) else {}
        )
        update = functools.partial(optimizer.update, gradients, state, params, **more)
        return call_user_code(f"the {self.side.name} optimizer's update", update)

    def _named(self, gradients: Any) -> Any:
        """Name each gradient that the optimizer is given, so that others can be put in its place."""
        import jax

        def name(path: str, gradient: Any) -> Any:
            layer, _, leaf = path.rpartition("/")
            return labelled(gradient, Label("gradient", "", layer, leaf))

        leaves, structure = jax.tree.flatten(gradients)
        return jax.tree.unflatten(structure, list(map(name, self.param_names, leaves)))


def _module(side: Flax | Jax) -> Any:
    """Return the outermost module; None for a function."""
    model = side.model if isinstance(side, Flax) else None
    return model[0] if isinstance(model, tuple) else model


def _floating(array: Any) -> bool:
    import jax.numpy as jnp

    return hasattr(array, "dtype") and bool(jnp.issubdtype(array.dtype, np.inexact))
