"""Cell 4 of the notebook: a model from torch.nn, the update by hand."""

import torch

from torchnet.trajectory import Problem, Step, Trajectory, positive, tensor


def network(problem: Problem, *, dtype: torch.dtype = torch.float32, device: str = "cpu") -> torch.nn.Sequential:
    """Build the notebook's model around the problem's weights: `torch.nn.Linear` keeps them as `(out, in)`."""
    D_in, H = problem.w1.shape
    model = torch.nn.Sequential(
        torch.nn.Linear(D_in, H),
        torch.nn.ReLU(),
        torch.nn.Linear(H, problem.w2.shape[1]),
    ).to(device, dtype)
    weights = {"0.weight": problem.w1.T, "0.bias": problem.b1, "2.weight": problem.w2.T, "2.bias": problem.b2}
    model.load_state_dict({name: tensor(array, dtype, device) for name, array in weights.items()})
    return model


def final_weights(model: torch.nn.Sequential) -> dict[str, torch.Tensor]:
    """Return the model's weights with the problem's names and orientation."""
    weights = {name: weight.detach() for name, weight in model.named_parameters()}
    return {
        "w1": weights["0.weight"].T,
        "b1": weights["0.bias"],
        "w2": weights["2.weight"].T,
        "b2": weights["2.bias"],
    }


def start(
    problem: Problem, *, dtype: torch.dtype = torch.float32, device: str = "cpu"
) -> tuple[torch.Tensor, torch.Tensor, torch.nn.Sequential]:
    """Return the arguments of `step`: copies of `x` and `y`, and the model."""
    x, y = tensor(problem.x, dtype, device), tensor(problem.y, dtype, device)
    return x, y, network(problem, dtype=dtype, device=device)


def step(x: torch.Tensor, y: torch.Tensor, model: torch.nn.Sequential, learning_rate: float = 1e-4) -> Step:
    """One step of gradient descent, which updates the model in place."""
    loss_fn = torch.nn.MSELoss(reduction="sum")

    # Forward pass: compute predicted y by passing x to the model
    y_pred = model(x)

    # Compute loss
    loss = loss_fn(y_pred, y)

    # Zero the gradients before running the backward pass
    model.zero_grad()

    # Backward pass: compute gradient of the loss with respect to all the learnable parameters of the model
    loss.backward()

    # Update the weights using gradient descent
    with torch.no_grad():
        for param in model.parameters():
            param -= learning_rate * param.grad  # type: ignore[operator, misc]  # backward has just set it

    gradients = {name: param.grad for name, param in model.named_parameters() if param.grad is not None}
    return Step(loss.detach(), gradients, dict(model.named_parameters()))


def train(
    problem: Problem,
    steps: int = 100,
    *,
    learning_rate: float = 1e-4,
    dtype: torch.dtype = torch.float32,
    device: str = "cpu",
) -> Trajectory:
    """Run `steps` steps from the problem's weights. Raises ValueError if `steps` is not positive."""
    x, y, model = start(problem, dtype=dtype, device=device)
    losses = [step(x, y, model, learning_rate).loss for _ in range(positive(steps))]
    return Trajectory(torch.stack(losses), final_weights(model))
