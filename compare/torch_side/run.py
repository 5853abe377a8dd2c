"""A training run of the torch side on a copy of the model, in one precision."""

import contextlib
import copy
from typing import TYPE_CHECKING, Any

import numpy as np

from compare.errors import InputError
from compare.numerics.distance import ULPS
from compare.step.batch import Batch, called, checked_loss, mapped
from compare.step.observation import Observation, Port, joined, to_numpy
from compare.torch_side.layers import kept_tensors
from compare.torch_side.record import Record
from compare.torch_side.side import Torch

if TYPE_CHECKING:
    import torch


class TorchRun:
    """A training run on a copy of the model, in one precision."""

    def __init__(self, side: Torch, dtype: str, device: str, overwritten: frozenset[Port] = frozenset()) -> None:
        import torch

        self.dtype = getattr(torch, dtype)
        self.lifted = dtype == "float64"
        self.device = device
        self.model = copy.deepcopy(side.model).to(device, self.dtype)
        self.loss = side.loss
        if isinstance(self.loss, torch.nn.Module):
            self.loss = copy.deepcopy(self.loss).to(device, self.dtype)
        self.overwritten = overwritten
        self._clips: bool | None = None
        """Whether the optimizer's step changes gradients in place, as a hook that clips them does; None if unknown."""
        self.parameters = dict(self.model.named_parameters())
        self.noise: np.random.Generator | None = None
        """What moves it, if anything does: see `perturb`."""
        self.optimizer: torch.optim.Optimizer | None = None
        if side.optimizer is not None:
            self.optimizer = side.optimizer(self.model.parameters())
            if not isinstance(self.optimizer, torch.optim.Optimizer):
                raise InputError(
                    "Torch(optimizer=...) must give a torch.optim.Optimizer, and gave a "
                    f"{type(self.optimizer).__name__}"
                )

    def forward(self, batch: Batch, record: "Record | None" = None) -> Any:
        """Run the model on a batch, and show its modules' inputs and outputs in `record`."""
        args, kwargs = called(batch.inputs, self.tensor)
        with record.of(self.model) if record is not None else contextlib.nullcontext():
            try:
                return self.model(*args, **kwargs)
            except (TypeError, ValueError, RuntimeError, IndexError, KeyError, AttributeError) as error:
                raise InputError(f"the torch model does not take the batch, {batch}: {error}") from error

    def step(self, batch: Batch, record: "Record | None" = None) -> Observation:
        """Take one step: forward, and as far as there is a loss and an optimizer, backward and update."""
        import torch

        seen = self.backward(batch, record)
        if self.optimizer is None:
            return joined(seen, self.update())
        if self._clips is not False:  # gradients are shown as they were before
            seen = seen._replace(gradients={name: gradient.clone() for name, gradient in seen.gradients.items()})
        given = {name: param.grad for name, param in self.parameters.items() if param.grad is not None}
        update = self.update()
        if self._clips is None:
            self._clips = any(not torch.equal(seen.gradients[name], gradient) for name, gradient in given.items())
        return joined(seen, update)

    def backward(self, batch: Batch, record: "Record | None" = None) -> Observation:
        """Take the first half of a step: forward, and backward if there is a loss."""
        import torch

        record = record or Record(self.overwritten)
        with torch.enable_grad():
            output = self.forward(batch, record)
            if self.loss is None:
                return Observation(forward=record.seen)
            loss = checked_loss("torch", self.loss, output, mapped(batch.target, self.tensor))
            self.model.zero_grad(set_to_none=True)
            loss.backward()
        if self.noise is not None:
            self._perturb_gradients(self.noise)
        gradients = {
            name: torch.zeros_like(param) if param.grad is None else param.grad
            for name, param in self.parameters.items()
            if param.requires_grad
        }
        return Observation(loss.detach(), gradients, forward=record.seen)

    def update(self) -> Observation:
        """Take the second half of a step, if there is an optimizer: the update. It may clip gradients in place."""
        import torch

        if self.optimizer is None:
            return Observation(buffers=self.buffers())
        before = {name: param.detach().clone() for name, param in self.parameters.items()}
        self.optimizer.step()
        self.model.zero_grad(set_to_none=True)  # what was shown is all that still holds them
        updates = {name: torch.sub(self.parameters[name].detach(), old, out=old) for name, old in before.items()}
        return Observation(
            updates=updates, parameters=self.parameters, optimizer=self.optimizer_state(), buffers=self.buffers()
        )

    def arrays(self) -> dict[str, np.ndarray]:
        """Copy parameters and buffers, by name."""
        return {name: np.array(to_numpy(tensor)) for name, tensor in kept_tensors(self.model).items()}

    def buffers(self) -> dict[str, "torch.Tensor"]:
        """Give what the model keeps beside its parameters, such as running statistics, by name."""
        return dict(self.model.named_buffers())

    def optimizer_state(self) -> dict[str, Any]:
        """Give the optimizer's state, named "slot/parameter"."""
        if self.optimizer is None:
            return {}
        return {
            f"{slot}/{name}": value
            for name, param in self.parameters.items()
            for slot, value in self.optimizer.state.get(param, {}).items()
        }

    def settings(self) -> dict[str, dict[str, Any]]:
        """Give the optimizer's settings for each parameter, by name."""
        groups = self.optimizer.param_groups if self.optimizer is not None else []
        names = {id(param): name for name, param in self.parameters.items()}
        return {
            names[id(param)]: {key: value for key, value in group.items() if key != "params"}
            for group in groups
            for param in group["params"]
            if id(param) in names
        }

    @property
    def learning_rate(self) -> float:
        """The first parameter group's; 0 without an optimizer."""
        return float(self.optimizer.param_groups[0].get("lr", 0)) if self.optimizer is not None else 0.0

    def perturb(self, seed: int) -> None:
        """Change parameters, and every gradient from here on, by a few units in the last place, to see what follows.

        So is what transcendental functions give, by the `ControlledRun` around a step. A gradient whose elements are
        zero in exact arithmetic has rounding of the size of the others in them, and an optimizer that divides by their
        size makes more of it.
        """
        import torch

        self.noise = np.random.default_rng(seed)  # not torch's: what torch draws is recorded, and replayed
        with torch.no_grad():
            for param in self.parameters.values():
                noise = self.tensor(self.noise.choice((-1.0, 1.0), tuple(param.shape)))  # none is small by accident
                param.mul_(1 + ULPS * torch.finfo(param.dtype).eps * noise)

    def _perturb_gradients(self, generator: np.random.Generator) -> None:
        """Move each gradient by as much of its norm as is fair rounding for it."""
        import torch

        for param in self.parameters.values():
            if (gradient := param.grad) is not None and not gradient.is_sparse:
                noise = self.tensor(generator.choice((-1.0, 1.0), tuple(gradient.shape)))
                noise *= gradient != 0  # what is exactly zero is no rounding: weights stay where a tie is
                size = ULPS * torch.finfo(gradient.dtype).eps * gradient.norm() / noise.norm().clamp(min=1)
                gradient.add_(size * noise)

    def scatter(self, seed: int) -> None:
        """Add noise of their own size to the parameters: what was initialised to zero then tells its elements apart."""
        import torch

        generator = torch.Generator().manual_seed(seed)
        with torch.no_grad():
            for param in self.parameters.values():
                noise = torch.randn(param.shape, generator=generator, dtype=param.dtype).to(param.device)
                param.add_(noise * (float(param.std(correction=0)) or 0.1))

    def tensor(self, array: Any) -> Any:
        """Copy an array: a tensor that shares its memory could change it in place."""
        import torch

        if not isinstance(array, np.ndarray | np.generic):
            return array
        # Cast by NumPy: a run that lifts would take a cast by torch for one of the model's.
        dtype = str(self.dtype).removeprefix("torch.") if array.dtype.kind == "f" else array.dtype
        return torch.from_numpy(np.array(array, dtype)).to(self.device)
