"""Runs a step of the torch side again with one of its functions computing something else: a counterfactual.

`torch.overrides.TorchFunctionMode` sees every function of torch that a program calls, itself or in a module of
`torch.nn`: `torch.nn.LayerNorm` calls `layer_norm(input, normalized_shape, weight, bias, eps)`.
"""

import contextlib
import copy
import functools
import inspect
import sys
from collections.abc import Callable, Container, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from types import FrameType
from typing import TYPE_CHECKING, Any, NamedTuple, Protocol

import numpy as np

from compare import bugs
from compare.diagnosis.on_cpu import arguments_on_cpu, computed_on_cpu
from compare.diagnosis.signatures import bound, name_of, signature_of
from compare.errors import InputError, NotApplicable, Signal
from compare.step.batch import with_one_reversed
from compare.step.draws import Draw
from compare.step.observation import Observation, Port, to_numpy
from compare.step.user_code import passes_on, site_of
from compare.torch_side.record import Record, without_numbers

if TYPE_CHECKING:
    import torch


@dataclass
class Call:
    """One call of a function of torch."""

    name: str
    """As torch documents it, without underscores: "layer_norm", "relu"."""
    function: Callable[..., Any]
    args: tuple[Any, ...]
    kwargs: dict[str, Any]
    signature: inspect.Signature
    module: str = ""
    """The path of the module that makes the call; "" for the model itself, or the loss."""
    within: "Rewrite | None" = None
    """What happens in place of the function, if something else does."""
    site: tuple[int, int] = (0, 0)
    """Identifies the user's expression that makes it, for a call that is listed."""
    takes_targets: Callable[[], bool] = lambda: False
    """Whether its second argument comes from the batch's targets, example by example: see `Rerun.taking_targets`."""

    @property
    def arguments(self) -> dict[str, Any]:
        """All arguments by name, with their defaults."""
        bound = self.signature.bind(*self.args, **self.kwargs)
        bound.apply_defaults()
        return bound.arguments

    def __getitem__(self, argument: str) -> Any:
        return self.arguments[argument]

    def __contains__(self, argument: str) -> bool:
        return argument in self.signature.parameters

    @property
    def input(self) -> "torch.Tensor":
        """The first argument."""
        return next(iter(self.arguments.values()))

    @property
    def in_place(self) -> bool:
        """Whether it overwrites its first argument: `add_`, `+=`."""
        name = self.function.__name__
        return name in ("__iadd__", "__imul__") or (name.endswith("_") and not name.endswith("__"))

    @passes_on
    def run(self, **changed: Any) -> Any:
        """Call the function, with some arguments changed."""
        positions = dict(zip(self.signature.parameters, range(len(self.args)), strict=False))
        args, kwargs = list(self.args), dict(self.kwargs)
        for name, value in changed.items():
            # By position if it was given so: the names in torch's description of a builtin may not be keywords.
            if name in positions:
                args[positions[name]] = value
            else:
                kwargs[name] = value
        if self.within is not None:
            return self.within(replace(self, args=tuple(args), kwargs=kwargs, within=None))
        with Record.working(keeping=False):  # it is the program's call, and what a rewrite computes of it is not
            return self.function(*args, **kwargs)

    def on(self, tensor: Any) -> Any:
        """Call the function with another first argument."""
        return self.run(**{next(iter(self.signature.parameters)): tensor})


Rewrite = Callable[[Call], Any]
"""What a call gives instead."""


def _rewritten(rewrite: Rewrite, call: "Call") -> Any:
    """Run a rewrite. An error that torch raises means that it does not apply; others are bugs of this package."""
    try:
        return computed_on_cpu(
            lambda args, kwargs: rewrite(replace(call, args=args, kwargs=kwargs)), call.args, call.kwargs, call.name
        )
    except (RuntimeError, ValueError, IndexError, TypeError, NotImplementedError) as error:
        raise NotApplicable(f"{call.name}: {error}") from error
    except (KeyError, AttributeError, ArithmeticError, AssertionError) as error:
        bugs.report(f"another {call.name}", error)
        raise NotApplicable(f"{call.name}: {error}") from error


class Window(NamedTuple):
    """A part of a step: from when the first port has been seen until the second has."""

    start: Port | None = None
    """None for the start of the step."""
    end: Port | None = None
    """None for its end."""


class _Reached(Signal):
    """The end of the window."""


class Repeatable(Protocol):
    """The part of a step that may be run again: of a model without its optimizer, or a step of a program."""

    model: "torch.nn.Module"
    parameters: "dict[str, torch.nn.Parameter]"
    overwritten: frozenset[Port]

    def without_update(self, *, loss: bool = True) -> "Repeatable":
        """Give what is to be run again: without `loss`, the forward pass alone where that can be."""

    def restorer(self) -> Callable[[], None]:
        """Return the function that puts back what running it changes."""

    def buffers(self) -> "dict[str, torch.Tensor]":
        """Give the buffers, by name."""

    def around(self) -> contextlib.AbstractContextManager[Any]:
        """Give what is in force while it runs."""

    def controlled(self, replay: Sequence[Draw] | None) -> contextlib.AbstractContextManager[Any]:
        """Return what controls a step."""

    def step(self, batch: Any, record: Record) -> Observation:
        """Run it."""

    @property
    def shows_values(self) -> bool:
        """Whether all that it differentiates is compared as well: then a gradient that differs first is no value."""

    def makes(self, frame: FrameType) -> bool:
        """Tell whether the call of torch that a frame makes is the program's own."""


class Rerun:
    """A step of the torch side in float64, to be run as often as wanted, from the same state.

    Args:
        run: Where the step starts from. It must have no optimizer.
        batch: The step's.
        draws: Its random numbers.
        window: In which calls are listed and rewritten. Nothing runs after its end.
        known: The names of the functions whose calls are listed and rewritten.

    """

    def __init__(
        self, run: Repeatable, batch: Any, draws: Sequence[Draw], window: Window, known: Container[str]
    ) -> None:
        self._known = known
        self._run, self._batch, self._draws, self._window = run, batch, draws, window
        self._restore = run.restorer()

    def to_the_end(self, *, from_start: bool = False) -> "Rerun":
        """Give the same step, which runs on behind the end of the window: its calls keep their numbers.

        With `from_start`, those before the window are numbered too.
        """
        other = copy.copy(self)
        other._window = Window(None if from_start else self._window.start)
        return other

    def averages_all(self, path: str) -> bool:
        """Tell whether a norm averages the statistics of all batches alike, as torch does with `momentum=None`."""
        return getattr(self._run.model.get_submodule(path), "momentum", 0.0) is None

    def calls(self) -> list[Call]:
        """List the calls in the window, in order of execution: with arguments on the CPU, where rewrites run."""
        found: list[Call] = []
        targets = functools.cache(self.taking_targets)

        def listed(call: Call) -> Any:
            args, kwargs = (arguments_on_cpu(each, call.name, lambda x: x.cpu()) for each in (call.args, call.kwargs))
            # Without a name no convention applies to it; the other calls keep their numbers.
            name = call.name if self._run.makes(sys._getframe(1)) else ""
            takes = functools.partial(lambda number: number in targets(), len(found))
            site = site_of(sys._getframe(1))
            found.append(replace(call, name=name, args=args, kwargs=kwargs, site=site, takes_targets=takes))
            return call.run()

        self._observe(lambda number: listed)
        return found

    def taking_targets(self) -> frozenset[int]:
        """Number the calls whose second argument comes from the batch's targets: in reverse order where they are.

        The order of anything else, such as a table of the model's, is none of the batch's.
        """
        now, found = self._seconds(), set[int]()
        for batch in with_one_reversed(self._batch):
            other = copy.copy(self)
            other._batch = batch
            for number, then in other._seconds().items():
                own = now.get(number)
                if own is not None and own.shape == then.shape and np.allclose(then, own[::-1], rtol=1e-9, atol=0):
                    found.add(number)
        return frozenset(found)

    def _seconds(self) -> dict[int, np.ndarray]:
        """Give the second arguments of calls that may be targets, by the number of the call; none if the step fails."""
        found: dict[int, np.ndarray] = {}

        def kept(number: int, call: Call) -> Any:
            for second in [*call.arguments.values()][1:2]:
                if not getattr(second, "requires_grad", True) and second.ndim:
                    found[number] = np.array(to_numpy(second))
            return call.run()

        try:
            self._observe(lambda number: functools.partial(kept, number))
        except (Signal, InputError):
            return {}
        return found

    def __call__(self, rewrites: Mapping[int, Rewrite]) -> Observation:
        """Run the step with some of the calls in the window, by number, giving something else."""
        return self._observe(rewrites.get)

    def _observe(self, rewrites: Callable[[int], Rewrite | None]) -> Observation:
        self._restore()
        with self._run.around(), rewriting(self._window, self.overwritten, rewrites, self._known) as record:
            try:
                return self._step(record)
            except _Reached:
                return Observation(buffers=self._run.buffers(), forward=record.seen)

    @property
    def shows_values(self) -> bool:
        """Whether a gradient that differs first differs in no value that it comes from."""
        return self._run.shows_values

    @property
    def batch(self) -> Any:
        """The step's."""
        return self._batch

    @property
    def overwritten(self) -> frozenset[Port]:
        """What the model changes in place after a module took or gave it."""
        return self._run.overwritten

    @property
    def parameters(self) -> "dict[str, torch.nn.Parameter]":
        """The model's, by name."""
        return self._run.parameters

    @property
    def model(self) -> "torch.nn.Module":
        """The copy that is run."""
        return self._run.model

    def step(self, record: Record, mode: contextlib.AbstractContextManager[Any] | None = None) -> Observation:
        """Run the step from where it starts, as it is or under a mode that sees its calls, and no other."""
        self._restore()
        with self._run.around(), mode or contextlib.nullcontext():
            return self._step(record)

    def _step(self, record: Record) -> Observation:
        with self._run.controlled(self._draws):
            return self._run.step(self._batch, record)


@contextlib.contextmanager
def rewriting(
    window: Window, overwritten: frozenset[Port], rewrites: Callable[[int], Rewrite | None], known: Container[str]
) -> "Iterator[Record]":
    """Let calls give something else, by their number within the step that this lasts; it is to be recorded here."""
    record = _Windowed(window, overwritten)
    with _mode()(record, rewrites, known):
        yield record


class _Windowed(Record):
    """A record that knows whether the window is open."""

    def __init__(self, window: Window, overwritten: frozenset[Port]) -> None:
        super().__init__(overwritten)
        self.window = window
        self.open = window.start is None
        self.inside: list[str] = []

    def _keep(self, path: str, call: int, kind: str, tree: Any) -> None:
        if kind == "input":
            self.inside.append(path)
        elif self.inside:
            self.inside.pop()
        super()._keep(path, call, kind, tree)
        if self.window.start in self.seen:
            self.open = True
        if self.window.end is not None and self.window.end in self.seen:
            raise _Reached


@functools.cache
def _mode() -> Any:
    from torch.overrides import TorchFunctionMode

    class Rewriting(TorchFunctionMode):
        """Passes the calls in the window to their rewrites."""

        def __init__(self, record: _Windowed, rewrites: Callable[[int], Rewrite | None], known: Container[str]) -> None:
            super().__init__()
            self.record, self.rewrites, self.known = record, rewrites, known
            self.number = 0

        @passes_on
        def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
            del types
            kwargs = kwargs or {}
            meant = self.record.open and not Record.keeping and name_of(func) in self.known
            signature = signature_of(func) if meant and not without_numbers(args, kwargs) else None
            if signature is None:
                return func(*args, **kwargs)
            place = self.record.inside[-1] if self.record.inside else ""
            call = Call(name_of(func), func, args, kwargs, bound(signature, args, kwargs), place)
            rewrite = self.rewrites(self.number)
            self.number += 1
            with Record.working(keeping=True):
                given = call.run() if rewrite is None else _rewritten(rewrite, call)
            # relu_(x) must change x, whatever is computed instead: other names refer to the same tensor.
            if call.in_place and given is not args[0]:
                return args[0].copy_(given)
            return given

    return Rewriting
