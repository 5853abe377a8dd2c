"""Real data that comes with scikit-learn, in small batches."""

import importlib
from typing import Any

import numpy as np

import compare

datasets: Any = importlib.import_module("sklearn.datasets")  # untyped

Batches = list[tuple[np.ndarray, np.ndarray]]
Pair = tuple[compare.Torch, compare.Flax | compare.Jax, Batches]
"""The arguments of `compare.check`."""

BATCHES = 5
"""Fewer than the steps of a test, so that batches come round again."""


def digits(batch: int = 16) -> Batches:
    """Handwritten digits: images of shape (batch, 1, 8, 8) from 0 to 1, and which digit each is, (batch,)."""
    loaded = datasets.load_digits()
    return _split((loaded.images[:, None] / 16).astype(np.float32), loaded.target, batch)


def wine(batch: int = 16) -> Batches:
    """Wines: 13 standardised measurements, (batch, 13), and which of 3 cultivars each is, (batch,)."""
    loaded = datasets.load_wine()
    order = np.random.default_rng(0).permutation(len(loaded.target))  # they come sorted by class
    return _split(_standardised(loaded.data)[order], loaded.target[order], batch)


def diabetes(batch: int = 16) -> Batches:
    """Patients: 10 standardised measurements, (batch, 10), and how the disease went on, (batch, 1), standardised."""
    loaded = datasets.load_diabetes()
    return _split(_standardised(loaded.data), _standardised(loaded.target[:, None]), batch)


def text(batch: int = 8, length: int = 12) -> tuple[Batches, int]:
    """Sentences about the digits: characters as numbers and the characters that follow, each of shape (batch, length).

    The second part of the result is how many characters there are.
    """
    characters, numbers = np.unique(list(datasets.load_digits().DESCR.lower()), return_inverse=True)
    rows = numbers[: batch * BATCHES * (length + 1)].reshape(-1, length + 1)
    return _split(rows[:, :-1], rows[:, 1:], batch), len(characters)


def _standardised(table: np.ndarray) -> np.ndarray:
    return ((table - table.mean(0)) / table.std(0)).astype(np.float32)


def _split(inputs: np.ndarray, targets: np.ndarray, batch: int) -> Batches:
    return [(inputs[i * batch : (i + 1) * batch], targets[i * batch : (i + 1) * batch]) for i in range(BATCHES)]
