"""The notebook's problem as NumPy arrays: what is fitted, and the weights that both sides start from."""

from dataclasses import dataclass
from typing import Any

import numpy as np

from compare.errors import InputError

SHAPE = (64, 1000, 100, 10)
"""The notebook's `N, D_in, H, D_out`."""


@dataclass(frozen=True)
class Problem:
    """Data and initial weights in the notebook's orientation. They are validated when they are created.

    Args:
        x: Inputs of shape `(N, D_in)`, float32 or float64, as all of these.
        y: Targets of shape `(N, D_out)`.
        w1: Weights of the first layer, `(D_in, H)`, so that `h = x @ w1 + b1`.
        w2: Weights of the second layer, `(H, D_out)`.
        b1: Bias of the first layer, `(H,)`, or None for the variants without biases.
        b2: Bias of the second layer, `(D_out,)`, or None.

    Raises:
        InputError: For a wrong shape or dtype, or a value that is not finite, naming the array.

    """

    x: np.ndarray
    y: np.ndarray
    w1: np.ndarray
    w2: np.ndarray
    b1: np.ndarray | None = None
    b2: np.ndarray | None = None

    def __post_init__(self) -> None:
        arrays = {name: value for name, value in vars(self).items() if value is not None}
        for name, array in arrays.items():
            _check_values(name, array)
        if (self.b1 is None) != (self.b2 is None):
            raise InputError("b1 and b2 go together: give both biases or neither")
        sizes: dict[str, tuple[int, str]] = {}
        for name, dimensions in _DIMENSIONS.items():
            if name not in arrays:
                continue
            shape = arrays[name].shape
            if len(shape) != len(dimensions):
                raise InputError(f"{name} has shape {shape}, but should be ({', '.join(dimensions)})")
            for size, dimension in zip(shape, dimensions, strict=True):
                expected, by = sizes.setdefault(dimension, (size, name))
                if size != expected:
                    raise InputError(
                        f"{name} has shape {shape}, but should be ({', '.join(dimensions)}) "
                        f"with {dimension}={expected}, as {by} has it"
                    )

    def astype(self, dtype: str) -> "Problem":
        """Copy it, with every array cast to `dtype`, "float32" or "float64"."""
        return Problem(**{name: array.astype(dtype) for name, array in vars(self).items() if array is not None})


_DIMENSIONS = {
    "x": ("N", "D_in"),
    "y": ("N", "D_out"),
    "w1": ("D_in", "H"),
    "b1": ("H",),
    "w2": ("H", "D_out"),
    "b2": ("D_out",),
}


def _check_values(name: str, array: Any) -> None:
    if not isinstance(array, np.ndarray):
        raise InputError(f"{name} is a {type(array).__name__}, but should be a NumPy array")
    if array.dtype not in (np.float32, np.float64):
        raise InputError(f"{name} has dtype {array.dtype}, but should be float32 or float64")
    if array.size == 0:
        raise InputError(f"{name} has shape {array.shape}: it is empty")
    if not np.isfinite(array).all():
        where = tuple(int(i) for i in np.argwhere(~np.isfinite(array))[0])
        raise InputError(f"{name}{list(where)} is {array[where]}: the data and weights must be finite")


def draw(seed: int, *, biases: bool, shape: tuple[int, int, int, int] = SHAPE) -> Problem:
    """Draw the notebook's data and weights, float32, from one seed.

    Without biases, everything is standard normal, as in cells 1 to 3. With them, the weights and biases have the
    distribution of `torch.nn.Linear`, uniform between ±1/√fan_in, as in cells 4 and 5.

    Args:
        seed: A whole number, not negative.
        biases: Whether there are biases.
        shape: `(N, D_in, H, D_out)`.

    Raises:
        InputError: If `seed` is not a whole number, or is negative.

    """
    if not isinstance(seed, int) or isinstance(seed, bool) or seed < 0:
        raise InputError(f"seed must be a whole number that is not negative, not {seed!r}")
    N, D_in, H, D_out = shape
    rng = np.random.default_rng(seed)

    def normal(*size: int) -> np.ndarray:
        return rng.standard_normal(size, dtype=np.float32)

    def uniform(fan_in: int, *size: int) -> np.ndarray:
        return rng.uniform(-(fan_in**-0.5), fan_in**-0.5, size).astype(np.float32)

    x, y = normal(N, D_in), normal(N, D_out)
    if not biases:
        return Problem(x, y, normal(D_in, H), normal(H, D_out))
    return Problem(x, y, uniform(D_in, D_in, H), uniform(H, H, D_out), uniform(D_in, H), uniform(H, D_out))
