"""Cell 3 of the notebook: autograd for the backward pass, the update by hand."""

import torch

from torchnet.trajectory import Problem, Step, Trajectory, positive, tensor


def start(problem: Problem, *, dtype: torch.dtype = torch.float32, device: str = "cpu") -> tuple[torch.Tensor, ...]:
    """Return the arguments of `step`: copies of `x`, `y`, `w1` and `w2`, the weights with gradients."""
    x, y, w1, w2 = (tensor(a, dtype, device) for a in (problem.x, problem.y, problem.w1, problem.w2))
    return x, y, w1.requires_grad_(), w2.requires_grad_()


def step(x: torch.Tensor, y: torch.Tensor, w1: torch.Tensor, w2: torch.Tensor, learning_rate: float = 1e-6) -> Step:
    """One step of gradient descent, which updates `w1` and `w2` in place."""
    # Forward pass: compute predicted y using operations on tensors
    y_pred = x.mm(w1).clamp(min=0).mm(w2)

    # Compute and return loss
    loss = (y_pred - y).pow(2).sum()

    # Use autograd to compute the backward pass
    loss.backward()
    assert w1.grad is not None
    assert w2.grad is not None
    gradients = {"w1": w1.grad, "w2": w2.grad}

    # Update weights using gradient descent
    with torch.no_grad():
        w1 -= learning_rate * w1.grad
        w2 -= learning_rate * w2.grad

    # Zero the gradients after updating weights; the notebook's grad.zero_() would also zero the ones we return
    w1.grad = w2.grad = None

    return Step(loss.detach(), gradients, {"w1": w1.detach(), "w2": w2.detach()})


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
    return Trajectory(torch.stack(losses), {"w1": w1.detach(), "w2": w2.detach()})
