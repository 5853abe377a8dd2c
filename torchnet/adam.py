"""Cell 5 of the notebook: a model from torch.nn, updated by torch.optim.Adam."""

from collections.abc import Callable, Iterable

import torch

from torchnet.module import final_weights, network
from torchnet.trajectory import Problem, Step, Trajectory, positive, tensor

MakeOptimizer = Callable[[Iterable[torch.nn.Parameter]], torch.optim.Optimizer]


def adam(params: Iterable[torch.nn.Parameter]) -> torch.optim.Optimizer:
    """Make the notebook's optimizer."""
    return torch.optim.Adam(params, lr=1e-4)


def start(
    problem: Problem,
    *,
    optimizer: MakeOptimizer = adam,
    dtype: torch.dtype = torch.float32,
    device: str = "cpu",
) -> tuple[torch.Tensor, torch.Tensor, torch.nn.Sequential, torch.optim.Optimizer]:
    """Return the arguments of `step`: copies of `x` and `y`, the model and its optimizer."""
    model = network(problem, dtype=dtype, device=device)
    x, y = tensor(problem.x, dtype, device), tensor(problem.y, dtype, device)
    return x, y, model, optimizer(model.parameters())


def step(x: torch.Tensor, y: torch.Tensor, model: torch.nn.Sequential, optimizer: torch.optim.Optimizer) -> Step:
    """One step of the optimizer, which updates the model in place."""
    loss_fn = torch.nn.MSELoss(reduction="sum")

    # Forward pass: compute predicted y by passing x to the model
    y_pred = model(x)

    # Compute loss
    loss = loss_fn(y_pred, y)

    # Before the backward pass, use the optimizer object to zero all of the gradients
    optimizer.zero_grad()

    # Backward pass: compute gradient of the loss with respect to model parameters
    loss.backward()

    # Calling the step function on an optimizer makes an update to its parameters
    optimizer.step()

    params = dict(model.named_parameters())
    gradients = {name: param.grad for name, param in params.items() if param.grad is not None}
    return Step(loss.detach(), gradients, params, {name: optimizer.state[param] for name, param in params.items()})


def train(
    problem: Problem,
    steps: int = 100,
    *,
    optimizer: MakeOptimizer = adam,
    dtype: torch.dtype = torch.float32,
    device: str = "cpu",
) -> Trajectory:
    """Run `steps` steps from the problem's weights. Raises ValueError if `steps` is not positive."""
    x, y, model, made = start(problem, optimizer=optimizer, dtype=dtype, device=device)
    losses = [step(x, y, model, made).loss for _ in range(positive(steps))]
    return Trajectory(torch.stack(losses), final_weights(model))
