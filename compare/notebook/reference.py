"""The notebook's programs in NumPy, with every gradient and Adam by hand: the third opinion.

Cell 1 is the first half of `step`; cells 3, 4 and 5 differ from it in the table `VARIANTS`. When torch and JAX
disagree, the one that is far from this in float64 is the one that is wrong.
"""

from typing import NamedTuple

import numpy as np

from compare.notebook.problem import Problem

Arrays = dict[str, np.ndarray]


class Variant(NamedTuple):
    """In what a cell differs from cell 1."""

    learning_rate: float = 1e-6
    passes_at_zero: bool = True
    """Whether the gradient passes where `h == 0`: `clamp` lets it, `torch.nn.ReLU` does not."""
    adam: bool = False


VARIANTS = {
    "manual": Variant(),
    "autograd": Variant(),
    "module": Variant(1e-4, passes_at_zero=False),
    "adam": Variant(1e-4, passes_at_zero=False, adam=True),
}


class Step(NamedTuple):
    """Everything that one step computes; the weights and the optimizer state are those after the update."""

    loss: np.floating
    gradients: Arrays
    weights: Arrays
    optimizer: dict[str, Arrays]


class Trajectory(NamedTuple):
    """A whole training run: losses of shape `(steps,)`, each before its step's update, and the final weights."""

    losses: np.ndarray
    weights: Arrays


def start(problem: Problem, dtype: type[np.floating] = np.float64) -> tuple[np.ndarray, np.ndarray, Arrays]:
    """Return the arguments of `step`: copies of `x`, `y` and the weights."""
    weights = {name: getattr(problem, name) for name in ("w1", "b1", "w2", "b2")}
    copies = {name: np.array(weight, dtype) for name, weight in weights.items() if weight is not None}
    return np.array(problem.x, dtype), np.array(problem.y, dtype), copies


def step(
    x: np.ndarray,
    y: np.ndarray,
    weights: Arrays,
    optimizer: dict[str, Arrays] | None = None,
    variant: Variant = VARIANTS["manual"],
) -> Step:
    """One step of the cell that `variant` describes, in the dtype of its arguments; nothing is changed in place."""
    w1, w2 = weights["w1"], weights["w2"]
    biased = "b1" in weights

    # Forward pass: compute predicted y
    h = x.dot(w1) + weights["b1"] if biased else x.dot(w1)
    h_relu = np.maximum(h, 0)
    y_pred = h_relu.dot(w2) + weights["b2"] if biased else h_relu.dot(w2)

    # Compute loss
    loss = np.square(y_pred - y).sum()

    # Backprop to compute gradients of the weights with respect to loss
    grad_y_pred = 2.0 * (y_pred - y)
    grad_h = grad_y_pred.dot(w2.T)
    grad_h[h < 0 if variant.passes_at_zero else h <= 0] = 0
    gradients = {"w1": x.T.dot(grad_h), "w2": h_relu.T.dot(grad_y_pred)}
    if biased:
        gradients |= {"b1": grad_h.sum(0), "b2": grad_y_pred.sum(0)}

    # Update weights
    if variant.adam:
        optimizer = {name: _moments(gradient, (optimizer or {}).get(name)) for name, gradient in gradients.items()}
        directions = {name: _adam(moments) for name, moments in optimizer.items()}
    else:
        optimizer, directions = {}, gradients
    updated = {name: weight - variant.learning_rate * directions[name] for name, weight in weights.items()}
    return Step(loss, {name: gradients[name] for name in weights}, updated, optimizer)


def _moments(gradient: np.ndarray, before: Arrays | None) -> Arrays:
    """Adam's moving averages: Kingma and Ba (2015), algorithm 1, with b1 = 0.9 and b2 = 0.999."""
    m, v, t = (before["exp_avg"], before["exp_avg_sq"], before["step"]) if before else (0.0, 0.0, np.zeros(()))
    return {
        "exp_avg": 0.9 * m + (1 - 0.9) * gradient,
        "exp_avg_sq": 0.999 * v + (1 - 0.999) * np.square(gradient),
        "step": t + 1,
    }


def _adam(moments: Arrays) -> np.ndarray:
    """Adam's direction: `m_hat / (sqrt(v_hat) + eps)`, with eps = 1e-8 outside the root, as in the paper and torch."""
    t = float(moments["step"])
    m_hat = moments["exp_avg"] / (1 - 0.9**t)
    v_hat = moments["exp_avg_sq"] / (1 - 0.999**t)
    direction: np.ndarray = m_hat / (np.sqrt(v_hat) + 1e-8)
    return direction


def train(
    problem: Problem,
    steps: int = 100,
    *,
    variant: Variant = VARIANTS["manual"],
    dtype: type[np.floating] = np.float64,
) -> Trajectory:
    """Run `steps` steps from the problem's weights."""
    x, y, weights = start(problem, dtype)
    losses, optimizer = [], None
    for _ in range(steps):
        loss, _gradients, weights, optimizer = step(x, y, weights, optimizer, variant)
        losses.append(loss)
    return Trajectory(np.array(losses), weights)
