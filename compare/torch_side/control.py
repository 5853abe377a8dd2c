"""Runs a step of the torch side in float64 throughout, and records or replays its random numbers.

Both happen below autograd, operation by operation, where everything passes: casts and draws in C++ code, and the
backward pass. `torch.overrides.TorchFunctionMode`, which is documented, sees neither. `TorchDispatchMode` has no public
name outside `torch.utils._python_dispatch`, but torch's documentation uses it from there.
"""

import contextlib
import functools
import sys
from collections.abc import Callable, Collection, Sequence
from types import FrameType
from typing import TYPE_CHECKING, Any, Self

from compare.errors import NondeterministicError
from compare.numerics.constants import LOW, doubtful, restored, unrounded
from compare.numerics.tables import movement
from compare.step.draws import Draw
from compare.step.host_draws import drawing
from compare.step.places import users_line
from compare.step.user_code import passes_on
from compare.torch_side.kernels import EXACT, KERNELS, NOT_UNIQUE
from compare.torch_side.moved import moved
from compare.torch_side.operations import changed
from compare.torch_side.random_calls import RandomCall, random
from compare.torch_side.reached import Reached
from compare.torch_side.refused import refuse_what_asserts
from compare.torch_side.twins import Twins

if TYPE_CHECKING:
    import numpy as np
    import torch


class ControlledRun:
    """A context for one step of the torch side, or a part of it: forward, loss, backward and update.

    With `lift`, each low precision that is asked for becomes float64: in casts, factories, autocast, the default
    dtype, and in the backward pass as well (complex64 becomes complex128). Parameters, buffers and inputs are the
    caller's to cast. With `replay`, no random number is drawn: each operation gives what it gave in the recorded
    run, and the generators' states are not touched; a recording run advances them as the model does without it. To
    leave the user's states as they were, wrap the whole comparison in `torch.random.fork_rng()`.

    >>> import torch
    >>> x, layer = torch.ones(4), torch.nn.Dropout(0.5)
    >>> with ControlledRun() as recorded:
    ...     y32 = layer(x)
    >>> with ControlledRun(lift=True, replay=recorded.draws) as run:
    ...     y64 = layer(x.double().float())
    >>> y64.dtype, torch.equal(y32, y64.float()), recorded.draws[0].kind, run.pinned
    (torch.float64, True, 'bernoulli', [])

    Args:
        lift: Whether this is the float64 run.
        moved: Moves what transcendental functions and sums give by a few units in the last place, to see what follows:
            two libraries' tanh are as far apart, and where it is 1 in both, 1 - tanh² is nothing else.
        tables: Which of the movements of `numerics.tables` is made of the float32 tensors that meet the float64 run,
            0 for none.
        replay: The draws of the recorded run. Without them, this run records.
        anew: The numbers of those that are drawn again all the same.
        where: Tells which module runs now, for messages.
        written: Tensors that stand for constants, each with what it is in the program as it is written: see `twins`.

    Raises:
        NondeterministicError: From within, if an operation draws another kind or shape than it did in the recorded
            run, or draws more; on leaving, if it drew less.

    """

    def __init__(
        self,
        *,
        lift: bool = False,
        moved: "np.random.Generator | None" = None,
        tables: int = 0,
        replay: Sequence[Draw] | None = None,
        anew: Collection[int] = (),
        where: Callable[[], str] | None = None,
        written: "Sequence[tuple[torch.Tensor, torch.Tensor]]" = (),
    ) -> None:
        self.lift = lift
        self._moved = moved
        self._tables = tables
        self._twins: Twins | None = None
        self.draws: list[Draw] = []
        """What was drawn, in order of execution."""
        self.dtypes: set[str] = set()
        """Of everything that was computed, in a run that lifts nothing."""
        self._reached = Reached()
        self._replay = replay
        self._replayed = 0
        self._anew = anew
        self._where = where
        self.written = written
        self._notes: dict[str, None] = {}
        self._constants: dict[str, None] = {}
        self._fused: dict[str, None] = {}
        self._exact: dict[str, None] = {}
        self.unfinished = False
        """Whether it is entered once more, for the rest of the step."""
        self._stack = contextlib.ExitStack()

    @property
    def reached(self) -> dict[str, bool]:
        """Whether the data reached what a program does with some data only, in a run that lifts nothing."""
        return self._reached.found

    @property
    def pinned(self) -> list[str]:
        """What could not be lifted, for a person to read."""
        return list(self._notes)

    @property
    def constants(self) -> list[str]:
        """The float32 tensors that met the float64 run and whose exact numbers are lost, for a person to read."""
        return list(self._constants)

    @property
    def exact(self) -> list[str]:
        """What torch approximates, and was computed exactly instead, for a person to read."""
        return list(self._exact)

    @property
    def unrecorded(self) -> list[str]:
        """Random operations whose random numbers do not come out of them, for a person to read."""
        return list(self._fused)

    def __enter__(self) -> Self:
        import torch

        if self.lift or self._moved is not None:
            self._twins = Twins(torch.get_default_dtype())
            for tensor, twin in self.written:
                self._twins.add(tensor, twin)
        with contextlib.ExitStack() as stack:
            if self.lift:
                stack.callback(torch.set_default_dtype, torch.get_default_dtype())
                torch.set_default_dtype(torch.float64)
            if torch.cuda.is_available() or self._moved is not None:
                # Fused attention neither returns its dropout mask on CUDA nor runs its softmax as an operation.
                stack.enter_context(torch.nn.attention.sdpa_kernel(torch.nn.attention.SDPBackend.MATH))
            if "torch._dynamo" in sys.modules:  # a compiled model runs as it is written
                stack.enter_context(torch.compiler.set_stance("force_eager"))
            stack.enter_context(drawing(self._host))
            stack.enter_context(_dispatcher()(self._operation))
            self._stack = stack.pop_all()
        return self

    def __exit__(self, kind: object, *args: object) -> None:
        self._stack.close()
        if kind is None and not self.unfinished and self._replay is not None and self._replayed < len(self._replay):
            left = self._replay[self._replayed]
            raise NondeterministicError(
                f"torch drew {len(self._replay)} times in the first run and {self._replayed} times in the second: "
                f"{left} is left over"
            )

    @passes_on
    def _operation(self, operation: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """Run one operation of aten in place of torch."""
        name = operation.overloadpacket.__name__
        if args and getattr(args[0], "is_cuda", False):
            refuse_what_asserts(operation, args, kwargs)
        if (exact := EXACT.get(name)) is not None:
            self._exact[exact.what] = None
            return exact.compute(*args, **kwargs)
        if name in NOT_UNIQUE:
            self._fused[NOT_UNIQUE[name]] = None
        written = args, kwargs
        if self.lift:
            if (kernel := KERNELS.get(name)) is not None:
                return kernel(*args, **kwargs)
            args, kwargs = self._lifted(operation, args, kwargs)
        if not random(operation):
            if self._twins is not None:
                move = functools.partial(self._given, operation=operation, args=args, kwargs=kwargs)
                return self._twins.run(operation, written, (args, kwargs), changed(operation, args, kwargs), move)
            self._reached.look(name, args, kwargs)
            output = operation(*args, **kwargs)
            if hasattr(output, "dtype"):
                self.dtypes.add(_dtype(output))
            return output
        if self._twins is not None:
            self._twins.forget(changed(operation, args, kwargs))
        call = RandomCall(operation, args, kwargs)
        if not call.draws():
            return operation(*args, **kwargs)
        if call.fused:
            self._fused[f"{call}{self._place()} does not return its random numbers"] = None
            return operation(*args, **kwargs)
        if self._replay is not None:
            again, draw = self._replayed in self._anew, self._next(call.kind, call.shape())
            return operation(*args, **kwargs) if again else call.give(draw)
        output, draw = call.run()
        self.draws.append(draw)
        return output

    def _given(self, output: Any, operation: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """Return what an operation gives, moved if the run moves it."""
        if self._moved is None:
            return output
        return moved(operation.overloadpacket.__name__, output, self._moved, operation, args, kwargs)

    def _host(self, kind: str, draw: Callable[[], Draw]) -> Draw:
        """Give what NumPy or Python draws."""
        if self._replay is None:
            self.draws.append(draw())
            return self.draws[-1]
        anew, recorded = self._replayed in self._anew, self._next(kind, None)
        return draw() if anew else recorded

    def _next(self, kind: str, shape: tuple[int, ...] | None) -> Draw:
        assert self._replay is not None
        if self._replayed == len(self._replay):
            raise NondeterministicError(
                f"torch drew {len(self._replay)} times in the first run, and once more in the second: {kind} "
                f"{shape if shape is not None else ''}"
                f"{self._place()}"
            )
        draw = self._replay[self._replayed]
        shape = draw.value.shape if shape is None else shape
        if (kind, shape) != (draw.kind, draw.value.shape):
            raise NondeterministicError(
                f"torch's draw {self._replayed} was {draw} in the first run, and is {kind} {shape} in the "
                f"second{self._place()}"
            )
        self._replayed += 1
        return draw

    def _lifted(self, operation: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> tuple[Any, Any]:
        """Replace low precision in an operation's arguments."""
        import torch

        # torch.tensor(0.1, dtype=torch.float32) is rounded in C++ before any operation runs. Here its number
        # can still be restored, as in the JAX side's programs.
        if operation is torch.ops.aten.lift_fresh.default:  # torch.tensor(...) has just made it
            return (self._constant(args[0]), *args[1:]), kwargs
        wide = _wide()
        written = changed(operation, args, kwargs)
        # An operation in place must write to the tensor that it was given, and a float64 tensor in its stead would be
        # another one. So the other arguments are cast to its precision, and the report says that it stayed low.
        kept = [tensor for tensor in written if tensor.dtype in wide]
        for tensor in kept:
            self._note(f"a tensor of shape {tuple(tensor.shape)}, {_dtype(tensor)}, that is written to{self._place()}")

        def walk(value: Any) -> Any:
            if isinstance(value, torch.Tensor):
                if kept:
                    narrow = value.dtype in wide.values() and not any(value is tensor for tensor in written)
                    return value.to(kept[0].dtype) if narrow and kept[0].is_floating_point() else value
                return value if value.dtype not in wide or operation.is_view else self._constant(value)
            if isinstance(value, torch.dtype):
                return value if kept else wide.get(value, value)
            if type(value) is float:
                return unrounded(value)
            if isinstance(value, list | tuple):
                return type(value)(map(walk, value))
            return value

        return tuple(map(walk, args)), {name: walk(value) for name, value in kwargs.items()}

    def _constant(self, tensor: "torch.Tensor") -> "torch.Tensor":
        """Lift a tensor that was rounded before this run began, such as a buffer in a list or a literal."""
        wide = _wide()
        if tensor.dtype not in wide:
            return tensor
        lifted = tensor.to(wide[tensor.dtype])
        if not tensor.numel():
            return lifted
        values = lifted.detach().cpu().numpy()
        meant = restored(values, _dtype(tensor)) if tensor.is_floating_point() else None
        lifted = lifted if meant is None else lifted.new_tensor(meant)
        certain = meant is not None and not doubtful(meant)
        if not certain and _dtype(tensor) in ("float32", "complex64"):
            self._constants[f"a tensor of shape {tuple(tensor.shape)}{_line()}"] = None
            lifted = lifted + lifted.new_tensor(movement(values, self._tables)) if self._tables else lifted
        if self._twins is not None:
            self._twins.add(lifted, tensor)
        if meant is not None:
            return lifted
        self._note(f"a constant of shape {tuple(tensor.shape)}, {_dtype(tensor)}{self._place()}")
        return lifted

    def _note(self, text: str) -> None:
        self._notes[text] = None

    def _place(self) -> str:
        return f", in {self._where()}" if self._where is not None and self._where() else ""


def _line() -> str:
    """Name the line of the user's that runs now; nothing in the backward pass, which has none."""
    frames = []
    frame: FrameType | None = sys._getframe(1)
    while frame := frame.f_back if frame else None:
        if frame.f_code.co_filename != __file__:
            frames.append((frame.f_code.co_filename, frame.f_lineno))
    line = users_line(frames, "torch")
    return f", {line}" if line else ""


def _dtype(tensor: "torch.Tensor") -> str:
    return str(tensor.dtype).removeprefix("torch.")


@functools.cache
def _wide() -> "dict[torch.dtype, torch.dtype]":
    """What each low precision becomes."""
    import torch

    return {getattr(torch, low): getattr(torch, precision.wide) for low, precision in LOW.items()}


@functools.cache
def _dispatcher() -> Any:
    from torch.utils._python_dispatch import TorchDispatchMode

    class Dispatcher(TorchDispatchMode):
        """Hands each operation to a function."""

        @classmethod
        def _should_skip_dynamo(cls) -> bool:
            """Leave out what torch puts around each operation to keep torch.compile away from it.

            Within a `ControlledRun` nothing is compiled.
            """
            return False

        def __init__(self, handle: Callable[..., Any]) -> None:
            super().__init__()
            self.handle = handle

        @passes_on
        def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
            del types
            return self.handle(func, args, kwargs or {})

    return Dispatcher
