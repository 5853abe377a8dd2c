"""What the torch side draws from NumPy's and Python's global generators, such as `np.random.beta` and `random.random`.

A training script shuffles its examples so, or draws the weights of a mixture. Like torch's own random numbers, they are
recorded in one run, and are given to the other runs, where JAX draws with a key.
"""

import contextlib
import functools
import random
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import numpy as np

from compare.step.draws import Draw

Recorder = Callable[[str, Callable[[], Draw]], Draw]
"""Given a draw's kind and what makes it, gives it, or the one that was recorded."""


class _Drawn(NamedTuple):
    """What a call draws: `location + scale * standard`, of a standard form that has these parameters."""

    kind: str
    location: Any = 0.0
    scale: Any = 1.0
    parameters: tuple[Any, ...] = ()


# The signatures are those of NumPy and Python. The size does not matter: it shows in what is drawn.
_NUMPY: dict[str, Callable[..., _Drawn]] = {
    "rand": lambda *size: _Drawn("uniform"),
    "random": lambda size=None: _Drawn("uniform"),
    "random_sample": lambda size=None: _Drawn("uniform"),
    "uniform": lambda low=0.0, high=1.0, size=None: _Drawn("uniform", low, high - low),
    "randn": lambda *size: _Drawn("normal"),
    "standard_normal": lambda size=None: _Drawn("normal"),
    "normal": lambda loc=0.0, scale=1.0, size=None: _Drawn("normal", loc, scale),
    "exponential": lambda scale=1.0, size=None: _Drawn("exponential", 0.0, scale),
    "beta": lambda a, b, size=None: _Drawn("beta", parameters=(a, b)),
    "gamma": lambda shape, scale=1.0, size=None: _Drawn("gamma", 0.0, scale, (shape,)),
    "dirichlet": lambda alpha, size=None: _Drawn("dirichlet", parameters=(alpha,)),
    "poisson": lambda lam=1.0, size=None: _Drawn("poisson", parameters=(lam,)),
    "randint": lambda low, high=None, size=None, dtype=int: _integers(low, high),
}
_PYTHON: dict[str, Callable[..., _Drawn]] = {
    "random": lambda: _Drawn("uniform"),
    "uniform": lambda a, b: _Drawn("uniform", a, b - a),
    "gauss": lambda mu=0.0, sigma=1.0: _Drawn("normal", mu, sigma),
    "normalvariate": lambda mu=0.0, sigma=1.0: _Drawn("normal", mu, sigma),
    "betavariate": lambda alpha, beta: _Drawn("beta", parameters=(alpha, beta)),
    "randint": lambda a, b: _integers(a, b + 1),
}


def _integers(low: int, high: int | None) -> _Drawn:
    low, high = (0, low) if high is None else (low, high)
    return _Drawn("randint", low, 1, (high - low,))


def _drawing(original: Callable[..., Any], means: Callable[..., _Drawn], record: Recorder) -> Callable[..., Any]:
    """Let a function of a generator record what it draws, or give what was recorded."""

    @functools.wraps(original)
    def draw(*args: Any, **kwargs: Any) -> Any:
        drawn = means(*args, **kwargs)

        def anew() -> Draw:
            standard = (np.asarray(original(*args, **kwargs)) - drawn.location) / drawn.scale
            standard = standard.astype(np.int64) if drawn.kind == "randint" else standard
            return Draw(drawn.kind, standard, tuple(map(_parameter, drawn.parameters)))

        found = drawn.location + drawn.scale * record(drawn.kind, anew).value
        return found.item() if np.ndim(found) == 0 else found

    return draw


def _parameter(value: Any) -> Any:
    return float(value) if np.ndim(value) == 0 else np.asarray(value, np.float64)


@contextlib.contextmanager
def drawing(record: Recorder) -> Iterator[None]:
    """Record what NumPy's and Python's global generators draw while this lasts, or give what was recorded."""
    from unittest import mock

    generator: Any = np.random
    with contextlib.ExitStack() as stack:
        for module, functions in ((generator, _NUMPY), (random, _PYTHON)):
            for name, means in functions.items():
                replaced = _drawing(getattr(module, name), means, record)
                stack.enter_context(mock.patch.object(module, name, replaced))
        stack.enter_context(_shuffling(generator.permutation, random.shuffle, record))
        yield


@contextlib.contextmanager
def _shuffling(
    draw_numpy: Callable[[int], Any], draw_python: Callable[[Any], None], record: Recorder
) -> Iterator[None]:
    """Record in which order NumPy and Python put things."""
    from unittest import mock

    def order(draw: Callable[[], Any]) -> np.ndarray:
        # The kind of `torch.randperm`.
        return record("randperm", lambda: Draw("randperm", np.asarray(draw()))).value

    def permutation(x: Any) -> np.ndarray:
        if isinstance(x, int | np.integer):
            return order(lambda: draw_numpy(int(x)))
        return np.asarray(x)[order(lambda: draw_numpy(len(x)))]

    def shuffle(x: Any) -> None:
        order_of_x = order(lambda: draw_numpy(len(x)))
        x[:] = x[order_of_x] if isinstance(x, np.ndarray) else [x[i] for i in order_of_x]

    def shuffle_list(x: Any) -> None:
        def draw() -> list[int]:
            indices = list(range(len(x)))
            draw_python(indices)
            return indices

        x[:] = [x[i] for i in order(draw)]

    with (
        mock.patch.object(np.random, "permutation", permutation),
        mock.patch.object(np.random, "shuffle", shuffle),
        mock.patch.object(random, "shuffle", shuffle_list),
    ):
        yield
