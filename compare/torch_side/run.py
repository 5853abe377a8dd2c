"""A training run of the torch side on a copy of the model, in one precision."""

import contextlib
import copy
import functools
import inspect
from types import FrameType
from typing import TYPE_CHECKING, Any, Self

import numpy as np

from compare.errors import InputError
from compare.numerics.distance import ULPS
from compare.step.batch import Batch, called, check_call, checked_loss, described_call, mapped
from compare.step.observation import Observation, Port, joined
from compare.step.user_code import call_user_code, on_another_device
from compare.torch_side.common_run import CommonRun
from compare.torch_side.copies import Copies, in_plain_containers
from compare.torch_side.layers import is_statistic, kept_tensors
from compare.torch_side.rates import rate_of
from compare.torch_side.record import Record, leaves
from compare.torch_side.side import Torch

if TYPE_CHECKING:
    from collections.abc import Callable

    import torch


class TorchRun(CommonRun):
    """A training run on a copy of the model, in one precision.

    A gradient whose elements are zero in exact arithmetic has rounding of the size of the others in them, and an
    optimizer that divides by their size makes more of it: every gradient of a run that is moved is moved as well.
    """

    def __init__(self, side: Torch, dtype: str, device: str, overwritten: frozenset[Port] = frozenset()) -> None:
        import torch

        super().__init__(dtype, device, overwritten)
        copies = Copies(*(each for each in (side.model, side.loss) if isinstance(each, torch.nn.Module)))
        self._unhooked = copies.unhooked
        self.model, *losses = (_cast(module, device, self.dtype) for module in copies.modules)
        for module in in_plain_containers(self.model):
            _cast(module, device, self.dtype)
        self.loss = losses[0] if losses else copies.of(side.loss, "Torch(loss=...)")
        self.parameters = dict(self.model.named_parameters())
        self.optimizer: torch.optim.Optimizer | None = None
        if side.optimizer is not None:
            self.optimizer = self._made(copies.of(side.optimizer, "Torch(optimizer=...)"))
        self._restore: Callable[[], None] | None = None

    def _made(self, optimizer: "Callable[[list[torch.nn.Parameter]], torch.optim.Optimizer]") -> Any:
        """Make the optimizer, of this run's parameters: a list, which a function may go through several times."""
        import torch

        parameters = list(self.model.parameters())
        call = "the function Torch(optimizer=...)"
        check_call(call, optimizer, (parameters,), {}, "It is called with the list of the model's parameters")
        made = call_user_code(call, functools.partial(optimizer, parameters))
        if not isinstance(made, torch.optim.Optimizer):
            raise InputError(
                f"Torch(optimizer=...) must return a torch.optim.Optimizer, but returned a {type(made).__name__}"
            )
        known = {id(parameter) for parameter in parameters}
        foreign = [each for group in made.param_groups for each in group["params"] if id(each) not in known]
        if foreign:
            self._refuse_loss(foreign)
            raise InputError(
                "Torch(optimizer=...) returned an optimizer of parameters that are not the model's. Each run "
                "trains a copy of the model: use the parameters that are passed to the function, lambda "
                f"params: torch.optim.{type(made).__name__}(params, ...)"
            )
        closure = inspect.signature(made.step).parameters.get("closure")
        if closure is not None and closure.default is closure.empty:
            raise InputError(
                f"the torch optimizer {type(made).__name__} takes a closure, to compute the loss again within a step: "
                "only optimizers that make one update from one gradient can be compared"
            )
        return made

    def _refuse_loss(self, trained: "list[torch.nn.Parameter]") -> None:
        """Refuse a loss whose parameters are trained: the JAX side's optimizer has none but the model's."""
        import torch

        named = dict(self.loss.named_parameters()) if isinstance(self.loss, torch.nn.Module) else {}
        of_loss = [f"{name} {tuple(each.shape)}" for name, each in named.items() if any(each is one for one in trained)]
        if of_loss:
            raise InputError(
                f"Torch(loss={type(self.loss).__name__}(...)) has parameters of its own that the optimizer "
                f"trains, {', '.join(of_loss)}: the JAX side has no place for them. Make them part of both "
                "models, return them with the models' outputs, and let the loss take them from there"
            )

    def forward(self, batch: Batch, record: "Record | None" = None) -> Any:
        """Run the model on a batch, and show its modules' inputs and outputs in `record`."""
        args, kwargs = called(batch.inputs, self.tensor)
        call = "the torch model"
        check_call(call, self.model.forward, args, kwargs)
        with record.of(self.model) if record is not None else contextlib.nullcontext():
            output = call_user_code(
                call,
                functools.partial(self.model, *args, **kwargs),
                given=described_call(args, kwargs),
                inside=lambda: record.running if record is not None else "",
                advice=on_another_device,
            )
        if record is not None:
            self.note(record)
        return output

    def step(self, batch: Batch, record: "Record | None" = None) -> Observation:
        """Take one step: forward, and as far as there is a loss and an optimizer, backward and update."""
        seen = self.backward(batch, record)
        if self.optimizer is not None:  # a hook of its step may clip gradients in place, at this step or a later one
            seen = seen._replace(gradients={name: gradient.clone() for name, gradient in seen.gradients.items()})
        return joined(seen, self.update())

    @property
    def optimizers(self) -> "dict[str, torch.optim.Optimizer]":
        """Its optimizer, without a name; nothing where there is none."""
        return {} if self.optimizer is None else {"": self.optimizer}

    @property
    def shows_values(self) -> bool:
        """Whether all that it differentiates is compared as well."""
        return True

    def makes(self, frame: FrameType) -> bool:
        """Tell whether the call of torch that a frame makes is the program's own: all are, without the update."""
        del frame
        return True

    def restorer(self) -> "Callable[[], None]":
        """Return the function that puts back what a step without its update changes: the model's buffers."""
        import torch

        if self._restore is not None:
            return self._restore
        start = {name: tensor.detach().clone() for name, tensor in self.model.state_dict().items()}

        def restore() -> None:
            with torch.no_grad():
                for name, tensor in self.model.state_dict(keep_vars=True).items():
                    tensor.copy_(start[name])

        return restore

    def starting_here(self) -> "Self":
        """Return the same run, whose `restorer` puts back what it holds now, whatever has run since."""
        other = copy.copy(self)
        other._restore = self.restorer()
        return other

    def without_update(self, *, loss: bool = True) -> "Self":
        """Give a run of the same model that makes no update, and without `loss` no backward pass either."""
        other = copy.copy(self)
        other.optimizer = None
        other.loss = self.loss if loss else None
        return other

    def backward(self, batch: Batch, record: "Record | None" = None) -> Observation:
        """Take the first half of a step: forward, and backward if there is a loss."""
        import torch

        record = record or Record(self.overwritten)
        with torch.enable_grad():
            output = self.forward(batch, record)
            if self.loss is None:
                return Observation(forward=record.seen)
            loss = checked_loss("torch", self.loss, output, mapped(batch.target, self.tensor))
            if not loss.requires_grad:
                raise InputError(
                    "the torch loss depends on no parameter that is trained: all are frozen (requires_grad=False), or "
                    "it is detached, as by .item(), .detach() or torch.no_grad()"
                )
            self.model.zero_grad(set_to_none=True)
            call_user_code("the torch model's backward pass", loss.backward)
        if self.noise is not None:
            self._perturb_gradients(self.noise)
        gradients = {
            name: torch.zeros_like(param) if param.grad is None else _dense(self._unhooked.get(id(param), param.grad))
            for name, param in self.parameters.items()
            if param.requires_grad
        }
        # Not detach(), which would count as a call of the user's where calls are listed.
        return Observation(loss.data, gradients, forward=record.seen)

    def read_by_loss(self, batch: Batch) -> set[str]:
        """Name the outputs of the model that the loss reads: those that it has a gradient by."""
        import torch

        with torch.enable_grad():
            output = self.forward(batch)
            # Cut off from the model: attention weights have a gradient by way of the logits that are made of them.
            tensors = [(name, each) for name, each in leaves(output) if each.is_floating_point() or each.is_complex()]
            cut = {id(each): each.detach().requires_grad_() for _, each in tensors}
            given = {name: cut[id(each)] for name, each in tensors}
            try:
                output = copy.deepcopy(output, dict(cut))  # with these in the place of the model's, in any container
            except RuntimeError:  # torch copies no other tensor of a graph, as a distribution among the outputs has
                return set(given)
            loss = checked_loss("torch", self.loss, output, mapped(batch.target, self.tensor))
            gradients = torch.autograd.grad(loss, list(given.values()), allow_unused=True) if loss.requires_grad else []
        return {name for name, each in zip(given, gradients, strict=False) if each is not None and bool(each.any())}

    def evaluate(self, batch: Batch) -> Observation:
        """Run forward, and the loss if there is one, without a gradient."""
        import torch

        record = Record(self.overwritten)
        with torch.enable_grad():  # without, some modules take another way
            output = self.forward(batch, record)
            loss = None
            if self.loss is not None:
                loss = checked_loss("torch", self.loss, output, mapped(batch.target, self.tensor)).data
        return Observation(loss, forward=record.seen, buffers=self.buffers())

    def update(self) -> Observation:
        """Take the second half of a step, if there is an optimizer: the update. It may clip gradients in place."""
        import torch

        if self.optimizer is None:
            return Observation(buffers=self.buffers())
        before = {name: param.detach().clone() for name, param in self.parameters.items()}
        call_user_code("the torch optimizer's step", self.optimizer.step)
        self.model.zero_grad(set_to_none=True)  # what was shown is all that still holds them
        updates = {name: torch.sub(self.parameters[name].detach(), old, out=old) for name, old in before.items()}
        return Observation(
            updates=updates, parameters=self.parameters, optimizer=self.optimizer_state(), buffers=self.buffers()
        )

    def kept(self) -> "dict[str, torch.Tensor]":
        """Give parameters and buffers, by name."""
        return kept_tensors(self.model)

    def weights(self) -> "list[torch.Tensor]":
        """Give the parameters."""
        return list(self.parameters.values())

    def scattered(self) -> "dict[str, torch.Tensor]":
        """Return what `spread` moves: the parameters, and what norms keep, whose first values are zero and one.

        From zero, a running mean that follows the batch at another rate differs by a mere factor.
        """
        kept = {name: each for name, each in self.model.named_buffers() if is_statistic(name)}
        return {**super().scattered(), **kept}

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
            names[id(param)]: {key: value for key, value in group.items() if key not in ("params", "param_names")}
            for group in groups
            for param in group["params"]
            if id(param) in names
        }

    @property
    def learning_rate(self) -> float:
        """The first parameter group's; 0 without an optimizer."""
        return rate_of(self.optimizer.param_groups[0]) if self.optimizer is not None else 0.0

    def loss_buffers(self) -> "dict[str, torch.Tensor]":
        """Return the buffers of a loss that is a module, such as its class weights; no buffer has a partner in JAX."""
        import torch

        return dict(self.loss.named_buffers()) if isinstance(self.loss, torch.nn.Module) else {}

    def _perturb_gradients(self, generator: np.random.Generator) -> None:
        """Move each gradient by as much of its norm as is fair rounding for it."""
        import torch

        for param in self.parameters.values():
            if (gradient := param.grad) is not None and not gradient.is_sparse:
                noise = self.tensor(generator.choice((-1.0, 1.0), tuple(gradient.shape)))
                # ULPS units of the whole gradient's norm, spread over its elements: rounding of a sum over the batch
                # is absolute, of the size of the largest terms, and not relative to what is left of each element
                # after cancellation.
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


def _dense(gradient: "torch.Tensor") -> "torch.Tensor":
    """Give a gradient with all its rows: that of a sparse embedding has those that were looked up."""
    return gradient.to_dense() if gradient.is_sparse else gradient


def _cast(module: "torch.nn.Module", device: str, dtype: "torch.dtype") -> "torch.nn.Module":
    """Cast all that a module holds, in place; `Module.to` would make complex buffers real."""
    import torch

    kept = [
        (part, name, buffer)
        for part in module.modules()
        for name, buffer in part.named_buffers(recurse=False)
        if buffer.is_complex()
    ]
    for part, name, _ in kept:
        setattr(part, name, None)
    module.to(device, dtype)
    for part, name, buffer in kept:
        setattr(part, name, buffer.to(device, torch.complex128 if dtype == torch.float64 else torch.complex64))
    return module
