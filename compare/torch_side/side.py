"""The torch side: any `torch.nn.Module`, its loss and its optimizer."""

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from compare.errors import InputError

if TYPE_CHECKING:
    import torch


@dataclass(frozen=True)
class Torch:
    """One side of a comparison: a PyTorch model and how it is trained. None of them is changed.

    Args:
        model: Any module, in the mode (`train()` or `eval()`) in which it is to be compared. It is run in float32 and
            in float64, whatever its dtype.
        loss: `loss(output, target)` takes what the model gives and the batch's target as tensors, and gives a scalar
            tensor, of shape `()`. Without one, only the forward pass is compared.
        optimizer: Takes the parameters and gives a `torch.optim.Optimizer`. Without one, forward pass, loss and
            gradients are compared.

    Raises:
        InputError: If an argument is of another kind, or there is an optimizer but no loss.

    """

    model: "torch.nn.Module"
    loss: Callable[[Any, Any], Any] | None = None
    optimizer: "Callable[[Iterable[torch.nn.Parameter]], torch.optim.Optimizer] | None" = None

    def __post_init__(self) -> None:
        import torch

        if not isinstance(self.model, torch.nn.Module):
            raise InputError(f"Torch(model=...) must be a torch.nn.Module, not a {type(self.model).__name__}")
        if isinstance(self.optimizer, torch.optim.Optimizer):
            raise InputError(
                "Torch(optimizer=...) must be a function that takes parameters and gives an optimizer, since each run "
                f"has parameters of its own: lambda params: torch.optim.{type(self.optimizer).__name__}(params, ...)"
            )
        if self.optimizer is not None and self.loss is None:
            raise InputError("Torch(optimizer=...) needs a loss, whose gradients it follows: Torch(loss=...)")
