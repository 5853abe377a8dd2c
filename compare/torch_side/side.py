"""The torch side: any `torch.nn.Module`, its loss and its optimizer."""

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from compare.errors import InputError

if TYPE_CHECKING:
    import torch


@dataclass(frozen=True)
class Torch:
    """One side of a comparison: a PyTorch model and how it is trained. The objects are not changed.

    Args:
        model: Any module, in the mode (`train()` or `eval()`) in which to compare it. It is run in float32 and in
            float64, whatever its dtype.
        loss: `loss(output, target)` takes the model's output and the batch's target as tensors, and returns a scalar
            tensor, of shape `()`. Without a loss, only the forward pass is compared.
        optimizer: A function that takes the parameters and returns a `torch.optim.Optimizer`. Without an optimizer,
            the forward pass, the loss and the gradients are compared.

    Raises:
        InputError: If an argument is of another kind, or there is an optimizer but no loss.

    """

    model: "torch.nn.Module"
    loss: Callable[[Any, Any], Any] | None = None
    optimizer: "Callable[[Iterable[torch.nn.Parameter]], torch.optim.Optimizer] | None" = None

    def __post_init__(self) -> None:
        import torch

        if not isinstance(self.model, torch.nn.Module):
            advice = ". A function can be the forward of a module of your own" if callable(self.model) else ""
            raise InputError(f"Torch(model=...) must be a torch.nn.Module, not a {type(self.model).__name__}{advice}")
        _check_model(self.model)
        for what in ("loss", "optimizer"):
            given = getattr(self, what)
            if given is not None and not callable(given) and not isinstance(given, torch.optim.Optimizer):
                raise InputError(f"Torch({what}=...) must be a function, not {given!r:.60}")
        if isinstance(self.optimizer, torch.optim.Optimizer):
            raise InputError(
                "Torch(optimizer=...) must be a function that takes parameters and returns an optimizer, "
                "because each run has its own parameters: lambda params: "
                f"torch.optim.{type(self.optimizer).__name__}(params, ...)"
            )
        if self.optimizer is not None and self.loss is None:
            raise InputError("Torch(optimizer=...) needs a loss to compute gradients: Torch(loss=...)")


def _check_model(model: "torch.nn.Module") -> None:
    """Raise InputError for a model of which no run can be started."""
    import torch

    if any(isinstance(module, torch.jit.ScriptModule) for module in model.modules()):
        raise InputError(
            "Torch(model=...) is compiled by torch.jit, which hides what it computes. Give the module as it was before "
            "torch.jit.script or torch.jit.trace"
        )
    for name, tensor in (*model.named_parameters(), *model.named_buffers()):
        if torch.nn.parameter.is_lazy(tensor):
            raise InputError(
                f"{name} of the torch model has no shape yet, like the parameters of a lazy module. Call the "
                "model on a batch first"
            )
        if tensor.is_meta:
            raise InputError(
                f"{name} of the torch model is on the device meta and has no values. Make the model on the CPU, or "
                "load its weights"
            )
