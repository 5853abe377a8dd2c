"""What a side draws from NumPy's and Python's global generators, such as `np.random.beta` and `random.random`.

A training script shuffles its examples so, or draws the weights of a mixture. Like torch's own random numbers, those of
the torch side are recorded in one run, and are given to the other runs. On the JAX side they replace what a key draws,
or what the same generators give there.
"""

import contextlib
import functools
import random
from collections.abc import Callable, Iterator, Sequence
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
            return Draw(drawn.kind, standard, tuple(map(_parameter, drawn.parameters)), host=True)

        found = drawn.location + drawn.scale * record(drawn.kind, anew).value
        return found.item() if np.ndim(found) == 0 else found

    return draw


def _parameter(value: Any) -> Any:
    return float(value) if np.ndim(value) == 0 else np.asarray(value, np.float64)


class Given:
    """Gives what NumPy and Python drew on the torch side to the same functions on the JAX side, while it is traced.

    Args:
        draws: Those of the step, without those of backward passes.

    """

    def __init__(self, draws: Sequence[Draw]) -> None:
        self._left = [number for number, draw in enumerate(draws) if draw.host]
        self._draws = draws
        self.taken: set[int] = set()
        """The numbers of the draws that were given."""

    def __call__(self, kind: str, draw: Callable[[], Draw]) -> Draw:
        """Give the next draw of a kind, or draw where there is none."""
        number = next((each for each in self._left if self._draws[each].kind == kind), None)
        if number is None:
            return draw()
        self._left.remove(number)
        self.taken.add(number)
        # A copy: JAX remembers an array by its identity, with the type that it has under `jax.enable_x64`.
        return self._draws[number]._replace(value=self._draws[number].value.copy())


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
        return record("randperm", lambda: Draw("randperm", np.asarray(draw()), host=True)).value

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
