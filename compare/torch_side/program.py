"""A torch training as its user wrote it: a state, and a step that changes it in place."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from compare.errors import InputError


@dataclass(frozen=True)
class TorchProgram:
    """One side of a comparison: a PyTorch training step, with everything that it changes.

    Args:
        build: A function that sets up the training and returns `(state, step)`. It is called again for each run, with
            the same seeds. The state is a dict, nested as you like, of modules, optimizers, schedulers, gradient
            scalers and tensors. `step(state, batch)` changes them in place, and returns a dict of named values to
            compare; "loss", a scalar, is the trajectory. The batch's arrays are passed as tensors, floating-point ones
            in the precision of the run.

    Raises:
        InputError: If `build` cannot be called.

    """

    build: Callable[[], tuple[Mapping[str, Any], Callable[[Any, Any], Mapping[str, Any]]]]

    name = "torch"

    def __post_init__(self) -> None:
        if not callable(self.build) or hasattr(self.build, "state_dict"):  # a module can be called too
            raise InputError(
                "TorchProgram(build) takes a function without arguments that returns (state, step), not "
                f"a {type(self.build).__name__}"
            )
