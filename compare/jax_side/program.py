"""A JAX training as its user wrote it: a state, and a step that returns the next state."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from compare.errors import InputError
from compare.step.batch import kinds_of
from compare.step.user_code import call_user_code, check_takes


@dataclass(frozen=True)
class JaxProgram:
    """One side of a comparison: a JAX training step, with everything that it changes.

    Args:
        build: A function that sets up the training and returns `(state, step)`. It is called again for each run. The
            state is any pytree, with nnx modules, `nnx.Optimizer`, Linen's `TrainState`, Equinox modules or plain
            arrays in it. `step(state, batch)` returns `(state, shown)`. It may be compiled or not, and may change nnx
            modules of the state in place. `shown` is a dict of named values to compare; "loss", a scalar, is the
            trajectory. The modules, averages of weights, plain arrays and buffers of the state start from the torch
            side's values, according to the map of the weights. Optimizers start in the state in which `build` creates
            them.
        batch: Adapts a batch to this side: a function that takes a batch and returns one, such as from NCHW to NHWC.

    Raises:
        InputError: If `build` or `batch` cannot be called.

    """

    build: Callable[[], tuple[Any, Callable[[Any, Any], tuple[Any, Any]]]]
    batch: Callable[[Any], Any] | None = None

    name = "jax"

    def __post_init__(self) -> None:
        if not callable(self.build):
            raise InputError(
                "JaxProgram(build) takes a function without arguments that returns (state, step), not "
                f"a {type(self.build).__name__}"
            )
        if self.batch is not None and not callable(self.batch):
            raise InputError(f"JaxProgram(batch=...) must be a function of a batch, not a {type(self.batch).__name__}")


def built(side: JaxProgram) -> tuple[Any, Any]:
    """Build a program: its state and its step."""
    built = call_user_code("JaxProgram(build)", side.build)
    if not (isinstance(built, tuple) and len(built) == 2 and callable(built[1])):
        raise InputError(
            "JaxProgram(build): build() must return (state, step), a pytree and a function of (state, batch), "
            f"but returned {kinds_of(built)}"
        )
    check_takes("JaxProgram(build)", built[1])
    return built


def checked_step(given: Any) -> tuple[Any, Any]:
    """Check what a step gives: the next state and what it shows."""
    if not (isinstance(given, tuple) and len(given) == 2 and isinstance(given[1], Mapping)):
        raise InputError(
            "the JAX step must return (state, shown), the next state and a dict of values to compare, such as "
            f"{{'loss': loss}}, but returned {kinds_of(given)}"
        )
    return given


def shown_gradients(shown: Any, weights: Sequence[str]) -> dict[str, Any]:
    """Name the gradients that a step shows: a pytree like the parameters', which are found by their paths.

    Args:
        shown: The pytree; None if there is none.
        weights: The names of the weights in the state.

    """
    import jax

    found = {}
    for path, gradient in jax.tree_util.tree_flatten_with_path(shown)[0]:
        inner = jax.tree_util.keystr(path, simple=True, separator="/").removesuffix("/value")
        fitting = [inner] if inner in weights else [name for name in weights if name.endswith(f"/{inner}")]
        if len(fitting) != 1:
            which = " or ".join(fitting) or "no array of the state"
            raise InputError(
                f"the JAX step returns a gradient {inner!r}, which is that of {which}. Return gradients "
                'under the paths of the state: {"gradients": {"model": grads}}'
            )
        found[fitting[0]] = gradient
    return found
