"""Orders that the torch side draws from NumPy's and Python's global generators: `np.random.shuffle` and its like.

A training script shuffles its examples so. Like torch's own random numbers, they are recorded in one run, and are given
to the other runs, where JAX shuffles with a key.
"""

import contextlib
import random
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np

KIND = "randperm"
"""The kind of such a draw: that of `torch.randperm`."""


@contextlib.contextmanager
def shuffling(order: Callable[[int, Callable[[], np.ndarray]], np.ndarray]) -> Iterator[None]:
    """Let `order` say in which order things are put while this lasts.

    Args:
        order: Given how many things there are, and what draws an order as the user's code would.

    """
    from unittest import mock

    generator: Any = np.random
    draw_numpy, draw_python = generator.permutation, random.shuffle

    def drawn(count: int) -> np.ndarray:
        return order(count, lambda: draw_numpy(count))

    def permutation(x: Any) -> np.ndarray:
        if isinstance(x, int | np.integer):
            return drawn(int(x))
        return np.asarray(x)[drawn(len(x))]

    def shuffle(x: Any) -> None:
        order_of_x = drawn(len(x))
        x[:] = x[order_of_x] if isinstance(x, np.ndarray) else [x[i] for i in order_of_x]

    def shuffle_list(x: Any) -> None:
        def draw() -> np.ndarray:
            indices = list(range(len(x)))
            draw_python(indices)
            return np.array(indices)

        x[:] = [x[i] for i in order(len(x), draw)]

    with (
        mock.patch.object(np.random, "permutation", permutation),
        mock.patch.object(np.random, "shuffle", shuffle),
        mock.patch.object(random, "shuffle", shuffle_list),
    ):
        yield
