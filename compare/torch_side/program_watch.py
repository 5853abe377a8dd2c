"""Watches the optimizers of a torch program while a step runs: their gradients, and the order of all events."""

import contextlib
import functools
import inspect
from collections.abc import Iterator, Mapping
from typing import Any, Protocol
from unittest import mock

from compare.errors import InputError
from compare.step.observation import FIRST_UPDATE, Event
from compare.step.stage import Stage
from compare.torch_side.record import Record, has_no_numbers


class Watched(Protocol):
    """A run whose optimizers are watched."""

    frozen: frozenset[str]
    """The parameters that are not trained at first."""

    @property
    def optimizers(self) -> Mapping[str, Any]:
        """The optimizers of the state, by path."""

    def name_of(self, parameter: Any) -> str:
        """Return the path of a tensor that an optimizer trains."""

    def trained_tensors(self) -> list[Any]:
        """Return the tensors that are trained."""


class Watch:
    """What optimizers are given and do within one step, in order.

    A step may run its models and optimizers in any order: a critic is updated before the actor's forward pass, which
    goes through it. So modules, gradients and updates are ranked as they happen, and the first difference is the first
    that was computed.
    """

    def __init__(self, run: Watched, record: Record) -> None:
        self.run, self.record = run, record
        self.gradients: dict[str, Any] = {}
        self.accumulated: dict[str, Any] = {}
        """Those that something has changed after the backward pass."""
        self._latest: dict[Any, Any] = {}
        """The gradient of each parameter after the backward pass."""
        self._looked: set[int] = set()
        """The optimizers whose gradients have been seen since their last step."""
        self._events: list[Event] = []
        self._backward: list[tuple[int, Any]] = []
        """What was differentiated, with the number of events before it."""
        self._stepping = 0
        """How many optimizers are stepping, one within the other."""
        self._first_update: tuple[int, int] | None = None
        """The number of events before the first update, and that of the next operation that autograd sees."""

    @contextlib.contextmanager
    def watching(self) -> Iterator[None]:
        """Watch while this lasts."""
        from torch.optim.optimizer import register_optimizer_step_post_hook, register_optimizer_step_pre_hook

        with contextlib.ExitStack() as stack:
            # What an optimizer calls is not the program's. Adam calls more at its first step than at later ones, which
            # must not change the numbers of the program's calls. These hooks run before and after all others.
            stack.callback(register_optimizer_step_pre_hook(self._begins).remove)
            stack.callback(register_optimizer_step_post_hook(self._ends).remove)
            for optimizer in self.run.optimizers.values():
                stack.callback(optimizer.register_step_pre_hook(self._given).remove)
                stack.callback(optimizer.register_step_post_hook(self._updated).remove)
                for group in optimizer.param_groups:
                    for parameter in filter(lambda each: each.requires_grad, group["params"]):
                        stack.callback(parameter.register_post_accumulate_grad_hook(self._keep).remove)
            if not self.run.optimizers:
                # A state that is kept with its graph, such as an LSTM's, is no parameter.
                for parameter in filter(lambda each: each.is_leaf, self.run.trained_tensors()):
                    stack.callback(parameter.register_post_accumulate_grad_hook(self._used).remove)
            stack.enter_context(self._differentiating())
            yield

    @contextlib.contextmanager
    def _differentiating(self) -> Iterator[None]:
        """Note what is differentiated. `torch.Tensor.backward` calls `torch.autograd.backward`."""
        import torch

        def noting(original: Any) -> Any:
            first = next(iter(inspect.signature(original).parameters))

            @functools.wraps(original)
            def noted(*args: Any, **kwargs: Any) -> Any:
                self._seen()
                of = args[0] if args else kwargs.get(first)
                for tensor in (of,) if isinstance(of, torch.Tensor) else tuple(of or ()):
                    if isinstance(tensor, torch.Tensor) and tensor.numel() == 1 and not has_no_numbers(tensor):
                        self._backward.append((len(self._events), tensor.detach().clone()))
                return original(*args, **kwargs)

            return noted

        with contextlib.ExitStack() as stack:
            for name in ("backward", "grad"):
                stack.enter_context(mock.patch.object(torch.autograd, name, noting(getattr(torch.autograd, name))))
            yield

    def _begins(self, optimizer: Any, args: Any, kwargs: Any) -> None:
        if not self.run.optimizers:
            raise InputError(
                f"the torch state holds no torch.optim.Optimizer, and the step uses one, {type(optimizer).__name__}: "
                'add it to the state that build() returns, as {"model": model, "optimizer": optimizer}'
            )
        if _closure(args, kwargs) is None:
            self._stepping += 1
            Record.keeping = True

    def _ends(self, _: Any, args: Any, kwargs: Any) -> None:
        if _closure(args, kwargs) is None:
            self._stepping -= 1
            Record.keeping = self._stepping > 0

    def _given(self, optimizer: Any, args: Any, kwargs: Any) -> tuple[Any, Any] | None:
        """Keep the gradients that an optimizer is given; those of a second time within the step under a number.

        With a closure, the gradients are made while the optimizer steps, each time that it calls it, as LBFGS does.
        """

        def watched(given: Any) -> Any:
            def closure() -> Any:
                loss = given()
                self._look_at(optimizer)
                return loss

            return closure if callable(given) else given

        if _closure(args, kwargs) is None:
            self._look_at(optimizer)
            return None
        closures = {name: watched(value) if name == "closure" else value for name, value in kwargs.items()}
        return (args[0], *map(watched, args[1:])), closures

    def _look_at(self, optimizer: Any) -> None:
        import torch

        self._looked.add(id(optimizer))
        self._seen()
        for group in optimizer.param_groups:
            for parameter in group["params"]:
                name, gradient = self.run.name_of(parameter), parameter.grad
                if name in self.run.frozen:  # the JAX side may compute its gradient, and use it for nothing
                    continue
                name, before = numbered(name, self.gradients), self._latest.pop(parameter, None)
                # What the user drops before the optimizer is stepped is no gradient of zero: the port may drop it in
                # its optimizer. What the optimizers make of it is compared.
                if gradient is None and before is not None:
                    continue
                self.gradients[name] = torch.zeros_like(parameter) if gradient is None else gradient.detach().clone()
                self._events.append((Stage.GRADIENT, name))
                # Clipping, unscaling and decay by hand happen between the backward pass and here. JAX does some of it
                # inside of the optimizer, so that both are kept: see `compare.comparison.readings`.
                if before is not None and not torch.equal(before.to_dense(), gradient.to_dense()):  # some are sparse
                    self.accumulated[name] = before

    def _keep(self, parameter: Any) -> None:
        self._latest[parameter] = parameter.grad.detach().clone()

    def _used(self, parameter: Any) -> None:
        """Keep a gradient that no optimizer is given: a step that updates by hand uses what backward passes leave."""
        name = self.run.name_of(parameter)
        if name not in self.gradients:
            self._seen()
            self._events.append((Stage.GRADIENT, name))
        self.gradients[name] = parameter.grad.detach().clone()

    def _updated(self, optimizer: Any, args: Any, kwargs: Any) -> None:
        del args, kwargs
        if id(optimizer) not in self._looked:
            self._look_at(optimizer)
        self._looked.discard(id(optimizer))
        self._first_update = self._first_update or (len(self._events), _next_operation())
        for group in optimizer.param_groups:
            self._events += [(Stage.UPDATE, self.run.name_of(parameter)) for parameter in group["params"]]

    def _seen(self) -> None:
        """Note which modules have run by now."""
        # A module is ranked when the next gradient or update is seen, which is late enough: within a forward pass the
        # record keeps the order.
        known = {event for event in self._events if event[0] == Stage.FORWARD}
        self._events += [(Stage.FORWARD, port) for port in self.record.seen if (Stage.FORWARD, port) not in known]

    def order(self, shown: Mapping[str, Any]) -> dict[Event, float]:
        """Rank what the step shows, in the order in which it was computed.

        Args:
            shown: What the step gives, by name. A value that was differentiated was computed before that, and one that
                autograd made before the first update before this.

        """
        import torch

        self._seen()
        ranks: dict[Event, float] = {}
        for rank, event in enumerate(self._events):
            # What a step does to a parameter is done after the last of its updates.
            ranks[event] = rank if event[0] == Stage.UPDATE else ranks.get(event, rank)
        if self._first_update:
            ranks[FIRST_UPDATE] = self._first_update[0]
        for name, given in shown.items():
            stage, value = Stage.LOSS if name == "loss" else Stage.SHOWN, torch.as_tensor(given).detach()
            node = getattr(given, "grad_fn", None)
            if self._first_update and node is not None and node._sequence_nr() < self._first_update[1]:
                ranks[stage, name] = self._first_update[0] - 0.5
            for rank, tensor in self._backward:
                # By value, as a step shows `loss.item()` or a detached copy as often as the tensor itself.
                if value.numel() == 1 and float(value) == float(tensor):
                    ranks[stage, name] = min(ranks.get((stage, name), rank), rank - 0.5)
        return ranks


def _next_operation() -> int:
    """Give the number of the next operation that autograd sees: it counts them."""
    import torch

    with torch.enable_grad():
        return int(torch.ones((), requires_grad=True).clone().grad_fn._sequence_nr())  # type: ignore[union-attr]


def _closure(args: Any, kwargs: Any) -> Any:
    """Return the closure that an optimizer's step is given, if it is; the first argument is the optimizer."""
    return kwargs.get("closure") or next(filter(callable, args[1:]), None)


def numbered(name: str, seen: Mapping[str, Any]) -> str:
    """Name the gradient of a parameter: "fc1.weight", and "fc1.weight#2" the second time within a step."""
    number = 1
    while (name if number == 1 else f"{name}#{number}") in seen:
        number += 1
    return name if number == 1 else f"{name}#{number}"
