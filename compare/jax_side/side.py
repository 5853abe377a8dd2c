"""The JAX side: a Flax module, of nnx or of Linen, or any pure function over a pytree."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from compare.errors import InputError
from compare.jax_side import functional
from compare.jax_side.functional import Functional
from compare.jax_side.layers import linen_layers, nnx_layers, pytree_layers
from compare.step.made import note
from compare.weights.layers import Layer

if TYPE_CHECKING:
    import optax

Adapt = Callable[[Any], Any]


@dataclass(frozen=True)
class Flax:
    """One side of a comparison: a Flax model and how it is trained. The objects are not changed.

    Args:
        model: An `nnx.Module`, or a pair `(linen_module, variables)`. It is run in float32 and in float64, in the
            torch model's mode and with the torch model's weights.
        loss: `loss(output, target)` takes the model's output and the batch's target, and returns an array of shape
            `()`. It is compiled with the model.
        optimizer: An `optax.GradientTransformation`. Either both sides have a loss or neither has one; the same holds
            for the optimizer.
        batch: A function that adapts a batch to this side, called as `batch((inputs, target))` or `batch(inputs,
            target)`. It returns a pair, for example in NHWC instead of NCHW, or with other argument names.

    Raises:
        InputError: If an argument is of another kind, or there is an optimizer but no loss.

    """

    model: Any
    loss: Callable[[Any, Any], Any] | None = None
    optimizer: "optax.GradientTransformation | None" = None
    batch: Callable[..., Any] | None = None

    name = "flax"

    def __post_init__(self) -> None:
        note(self)
        from flax import linen, nnx

        pair = isinstance(self.model, tuple) and len(self.model) == 2
        if not isinstance(self.model, nnx.Module) and not (pair and isinstance(self.model[0], linen.Module)):
            raise InputError(
                f"Flax(model=...) must be an nnx.Module or a pair (linen_module, variables), not {_kind(self.model)}"
            )
        if pair and not isinstance(self.model[1], Mapping):
            raise InputError(
                "Flax(model=(linen_module, variables)): variables must be the dict that module.init(...) returns, not "
                f"{_kind(self.model[1])}"
            )
        if isinstance(self.model, nnx.Module):
            _check_values(self.model)
        if pair and "params" not in self.model[1]:
            raise InputError(
                'Flax(model=(linen_module, variables)): variables have no "params", only '
                f"{', '.join(self.model[1]) or 'nothing'}. Give what module.init(...) returns"
            )
        _check_optimizer(self)

    def layers(self) -> list[Layer]:
        """List the modules that hold weights."""
        from flax import nnx

        if isinstance(self.model, nnx.Module):
            return nnx_layers(self.model)
        return linen_layers(self.model[1], self.model[0])

    def functional(self, dtype: str, *, training: bool, keep_modes: bool = False) -> Functional:
        """Make a pure function of a copy of the model, in the given mode, or with each module in its own."""
        from flax import nnx

        if isinstance(self.model, nnx.Module):
            return functional.of_nnx(self.model, dtype, training, keep_modes=keep_modes)
        return functional.of_linen(self.model, dtype, training)


@dataclass(frozen=True)
class Jax:
    """One side of a comparison: a pure function over any pytree of parameters (Equinox, Haiku, plain `jnp`).

    Args:
        apply: `apply(params, *inputs)` returns the output; inputs that are a dict are passed by name. It is compiled.
            With a `state` it is `apply(params, state, *inputs)`, and returns a pair of the output and the new state.
        params: Any pytree of arrays of any shape. Leaves that are not floating-point arrays are not changed. The
            values of the others do not matter, because they are replaced by the torch model's.
        loss: `loss(output, target)` returns an array of shape `()`.
        optimizer: An `optax.GradientTransformation`.
        batch: Adapts a batch to this side, as for `Flax`.
        state: State that the model keeps from step to step and does not train, such as running statistics: any pytree
            of arrays, or an `eqx.nn.State`. Its arrays start from the values of torch's buffers, and are compared with
            them after each step.

    Raises:
        InputError: If an argument is of another kind, or there is an optimizer but no loss.

    """

    apply: Callable[..., Any]
    params: Any
    loss: Callable[[Any, Any], Any] | None = None
    optimizer: "optax.GradientTransformation | None" = None
    batch: Callable[..., Any] | None = None
    state: Any = None

    name = "jax"

    def __post_init__(self) -> None:
        note(self)
        if not callable(self.apply):
            raise InputError(f"Jax(apply=...) must be a function of (params, *inputs), not {_kind(self.apply)}")
        _check_optimizer(self)

    def layers(self) -> list[Layer]:
        """List the parts of the pytree that hold weights."""
        return pytree_layers(self.params, self.state)

    def functional(self, dtype: str, *, training: bool, keep_modes: bool = False) -> Functional:
        """Make it a function of its floating-point arrays alone, in the given mode."""
        del keep_modes  # modules of nnx have modes of their own
        return functional.of_pytree(self.apply, self.params, dtype, training, self.state)


def _kind(value: Any) -> str:
    return f"a {type(value).__name__}"


def _check_values(model: Any) -> None:
    """Raise InputError for an nnx module without values."""
    import jax
    from flax import nnx

    for path, leaf in nnx.to_flat_state(nnx.state(model)):
        if any(isinstance(value, jax.ShapeDtypeStruct) for value in jax.tree.leaves(leaf)):
            raise InputError(
                f"Flax(model=...) is abstract: {'/'.join(map(str, path))} has no values, as in what nnx.eval_shape "
                "returns. Make the module without it"
            )


def _check_optimizer(side: Flax | Jax) -> None:
    what = f"{type(side).__name__}(optimizer=...)"
    if side.optimizer is None:
        return
    if not (hasattr(side.optimizer, "init") and hasattr(side.optimizer, "update")):
        raise InputError(f"{what} must be an optax.GradientTransformation, not {_kind(side.optimizer)}")
    if side.loss is None:
        raise InputError(f"{what} needs a loss to compute gradients: {type(side).__name__}(loss=...)")
