"""Cell 2 of the notebook: tensors, the backward pass by hand."""

import torch

from torchnet.trajectory import Problem, Step, Trajectory, positive, tensor


def start(problem: Problem, *, dtype: torch.dtype = torch.float32, device: str = "cpu") -> tuple[torch.Tensor, ...]:
    """Return the arguments of `step`: copies of `x`, `y`, `w1` and `w2`."""
    return tuple(tensor(a, dtype, device) for a in (problem.x, problem.y, problem.w1, problem.w2))


def step(x: torch.Tensor, y: torch.Tensor, w1: torch.Tensor, w2: torch.Tensor, learning_rate: float = 1e-6) -> Step:
    """One step of gradient descent, which updates `w1` and `w2` in place."""
    # Forward pass: compute predicted y
    h = x.mm(w1)
    h_relu = h.clamp(min=0)
    y_pred = h_relu.mm(w2)

    # Compute loss
    loss = (y_pred - y).pow(2).sum()

    # Backprop to compute gradients of w1 and w2 with respect to loss
    grad_y_pred = 2.0 * (y_pred - y)
    grad_w2 = h_relu.t().mm(grad_y_pred)
    grad_h_relu = grad_y_pred.mm(w2.t())
    grad_h = grad_h_relu.clone()
    grad_h[h < 0] = 0
    grad_w1 = x.t().mm(grad_h)

    # Update weights using gradient descent
    w1 -= learning_rate * grad_w1
    w2 -= learning_rate * grad_w2

    return Step(loss, {"w1": grad_w1, "w2": grad_w2}, {"w1": w1, "w2": w2})


def train(
    problem: Problem,
    steps: int = 100,
    *,
    learning_rate: float = 1e-6,
    dtype: torch.dtype = torch.float32,
    device: str = "cpu",
) -> Trajectory:
    """Run `steps` steps from the problem's weights. Raises ValueError if `steps` is not positive."""
    x, y, w1, w2 = start(problem, dtype=dtype, device=device)
    losses = [step(x, y, w1, w2, learning_rate).loss for _ in range(positive(steps))]
    return Trajectory(torch.stack(losses), {"w1": w1, "w2": w2})
