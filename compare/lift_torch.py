"""The torch side of a step under control: float64 that is float64, and random numbers that are recorded or replayed.

Both are done beneath autograd, operation by operation, where all of torch comes by: what a module's C++ code
casts or draws, and the backward pass. `torch.overrides.TorchFunctionMode`, which is documented, sees neither;
`TorchDispatchMode` has no name outside `torch.utils._python_dispatch`, but is what torch's own documentation uses.
"""

import contextlib
import functools
import sys
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any, Self

import numpy as np

from compare.draws import Draw, NondeterministicError
from compare.rounded import BITS, restored

if TYPE_CHECKING:
    import torch


class ControlledRun:
    """A context for one step of the torch side, or a part of it: forward, loss, backward and update.

    With `lift`, float64 is asked for wherever a lower precision is: casts, factories, autocast, the default dtype,
    in the backward pass as well (complex64 becomes complex128). Parameters, buffers and inputs are the
    caller's to cast. With `replay`, no random number is drawn: each operation gives what it gave in the recorded run. The
    generators' states are not touched then; a recording run advances them as the model does without it. To
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
        replay: The draws of the recorded run. Without them, this run records.
        where: Tells which module runs now, for messages.

    Raises:
        NondeterministicError: From within, if an operation draws another kind or shape than it did in the recorded
            run, or draws more; on leaving, if it drew less.

    """

    def __init__(
        self, *, lift: bool = False, replay: Sequence[Draw] | None = None, where: Callable[[], str] | None = None
    ) -> None:
        self.lift = lift
        self.draws: list[Draw] = []
        """What was drawn, in order of execution."""
        self._replay = replay
        self._replayed = 0
        self._where = where
        self._notes: dict[str, None] = {}
        self._fused: dict[str, None] = {}
        self._stack = contextlib.ExitStack()

    @property
    def pinned(self) -> list[str]:
        """What could not be lifted, for a person to read."""
        return list(self._notes)

    @property
    def unrecorded(self) -> list[str]:
        """Random operations whose random numbers do not come out of them, for a person to read."""
        return list(self._fused)

    def __enter__(self) -> Self:
        import torch

        with contextlib.ExitStack() as stack:
            if self.lift:
                stack.callback(torch.set_default_dtype, torch.get_default_dtype())
                torch.set_default_dtype(torch.float64)
            if torch.cuda.is_available():
                # Attention that is one CUDA kernel keeps its mask to itself.
                stack.enter_context(torch.nn.attention.sdpa_kernel(torch.nn.attention.SDPBackend.MATH))
            if "torch._dynamo" in sys.modules:  # a compiled model runs as it is written
                stack.enter_context(torch.compiler.set_stance("force_eager"))
            stack.enter_context(_dispatcher()(self._operation))
            self._stack = stack.pop_all()
        return self

    def __exit__(self, kind: object, *args: object) -> None:
        self._stack.close()
        if kind is None and self._replay is not None and self._replayed < len(self._replay):
            left = self._replay[self._replayed]
            raise NondeterministicError(
                f"torch drew {len(self._replay)} times in the first run and {self._replayed} times in the second: "
                f"{left} is left over"
            )

    def _operation(self, operation: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """Run one operation of aten in place of torch."""
        import torch

        if self.lift:
            args, kwargs = self._lifted(operation, args, kwargs)
        if torch.Tag.nondeterministic_seeded not in operation.tags and _name(operation) not in _UNTAGGED:
            return operation(*args, **kwargs)
        call = _Call(operation, args, kwargs)
        if not call.draws():
            return operation(*args, **kwargs)
        if _name(operation) in _FUSED:
            self._fused[f"{call}{self._place()} keeps its random numbers to itself"] = None
            return operation(*args, **kwargs)
        if self._replay is not None:
            return call.give(self._next(call))
        output = operation(*args, **kwargs)
        self.draws.append(call.draw(output))
        return output

    def _next(self, call: "_Call") -> Draw:
        assert self._replay is not None
        if self._replayed == len(self._replay):
            raise NondeterministicError(
                f"torch drew {len(self._replay)} times in the first run, and once more in the second: {call}"
                f"{self._place()}"
            )
        draw = self._replay[self._replayed]
        if (call.kind, call.shape()) != (draw.kind, draw.value.shape):
            raise NondeterministicError(
                f"torch's draw {self._replayed} was {draw} in the first run, and is {call.kind} {call.shape()} in the "
                f"second{self._place()}"
            )
        self._replayed += 1
        return draw

    def _lifted(self, operation: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> tuple[Any, Any]:
        """Replace low precision in an operation's arguments."""
        import torch

        if operation is torch.ops.aten.lift_fresh.default:  # torch.tensor(...) has just made it
            return (self._constant(args[0]), *args[1:]), kwargs
        wide = _wide()
        parameters = operation._schema.arguments
        written = [
            kwargs.get(parameter.name, args[position] if position < len(args) else None)
            for position, parameter in enumerate(parameters)
            if parameter.alias_info is not None and parameter.alias_info.is_write
        ]
        # A low-precision tensor that is written to must stay the same tensor: what else goes in is cast to it. A view of
        # it must stay a view.
        kept = [tensor for tensor in written if isinstance(tensor, torch.Tensor) and tensor.dtype in wide]
        for tensor in kept:
            self._note(f"a tensor of shape {tuple(tensor.shape)}, {_dtype(tensor)}, that is written to{self._place()}")

        def walk(value: Any) -> Any:
            if isinstance(value, torch.Tensor):
                if kept:
                    narrow = value.dtype in wide.values() and not any(value is tensor for tensor in written)
                    return value.to(kept[0].dtype) if narrow and kept[0].is_floating_point() else value
                return value if operation.is_view or value.dtype not in wide else self._constant(value)
            if isinstance(value, torch.dtype):
                return value if kept else wide.get(value, value)
            if isinstance(value, list | tuple):
                return type(value)(map(walk, value))
            return value

        return tuple(map(walk, args)), {name: walk(value) for name, value in kwargs.items()}

    def _constant(self, tensor: "torch.Tensor") -> "torch.Tensor":
        """Lift a tensor that was rounded before this run could have a say."""
        wide = _wide()
        if tensor.dtype not in wide:
            return tensor
        lifted = tensor.to(wide[tensor.dtype])
        if _dtype(tensor) in BITS and tensor.numel():
            meant = restored(lifted.detach().cpu().numpy(), _dtype(tensor))
            if meant is not None:
                return lifted.new_tensor(meant)
        self._note(f"a constant of shape {tuple(tensor.shape)}, {_dtype(tensor)}{self._place()}")
        return lifted

    def _note(self, text: str) -> None:
        self._notes[text] = None

    def _place(self) -> str:
        return f", in {self._where()}" if self._where is not None and self._where() else ""


_UNTAGGED = frozenset({"random_", "binomial", "_sample_dirichlet"})
"""Random operations that torch has not tagged as such."""

_FUSED = frozenset({"_cudnn_rnn", "miopen_rnn"}) | {
    f"_scaled_dot_product_{kind}"
    for kind in (
        "flash_attention",
        "flash_attention_for_cpu",
        "efficient_attention",
        "cudnn_attention",
        "fused_attention_overrideable",
        "attention_math_for_mps",
    )
}
"""Operations that contain dropout and do not give its mask."""

_PARAMETERS = {"uniform": ("from", "to"), "normal": ("mean", "std"), "exponential": ("", "lambd")}
"""What the parameters of a distribution are called, where 0 and 1 are the standard ones."""

_KINDS = {
    "native_dropout": "bernoulli",
    "_fused_dropout": "bernoulli",
    "rand": "uniform",
    "rand_like": "uniform",
    "randn": "normal",
    "randn_like": "normal",
    "randint_like": "randint",
}
"""The kind of a draw, where it is not the operation's name."""


class _Call:
    """One call of a random operation."""

    def __init__(self, operation: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        parameters = operation._schema.arguments
        self.given = {p.name: p.default_value for p in parameters if p.has_default_value()}
        self.given |= {parameter.name: value for parameter, value in zip(parameters, args, strict=False)} | kwargs
        self.written = next((self.given[p.name] for p in parameters if p.alias_info and p.alias_info.is_write), None)
        self.operation = operation
        self.base = _name(operation).removesuffix("_")
        self.kind = _KINDS.get(self.base, self.base)

    def __str__(self) -> str:
        return f"{_name(self.operation)} {self.shape()}"

    def draws(self) -> bool:
        """Tell whether it draws at all: not so dropout in evaluation, or of nothing."""
        for name in ("train", "training"):
            if self.given.get(name) is False:
                return False
        return not any(self.given.get(name) == 0 for name in ("dropout_p", "dropout"))

    def shape(self) -> tuple[int, ...]:
        """What shape of random numbers it draws."""
        import torch

        given = self.given
        if "size" in given:
            return tuple(given["size"])
        if self.base == "randperm":
            return (given["n"],)
        if self.base == "multinomial":
            return (*given["self"].shape[:-1], given["num_samples"])
        if isinstance(self.written, torch.Tensor):
            return tuple(self.written.shape)
        return tuple(torch.broadcast_shapes(*(v.shape for v in given.values() if isinstance(v, torch.Tensor))))

    def draw(self, output: Any) -> Draw:
        """Read what it drew, after it ran."""
        import torch
        from torch.utils.module_tracker import ModuleTracker

        chance = self.given.get("p")
        probability = float(chance) if self.kind == "bernoulli" and isinstance(chance, int | float) else None
        tensor = output
        if self.base in ("native_dropout", "_fused_dropout"):
            tensor = output[1]
            probability = 1 - probability if self.base == "native_dropout" and probability is not None else probability
        elif self.base == "rrelu_with_noise":
            tensor = self.given["noise"]
        tensor = tensor.detach()
        if self.kind == "bernoulli":
            tensor = tensor != 0
        if self.base in _PARAMETERS:
            location, scale = self._parameters()
            if not (isinstance(location, float) and isinstance(scale, float) and (location, scale) == (0.0, 1.0)):
                tensor = torch.nan_to_num((tensor.double() - location) / scale)  # 0 / 0 where there is no variance
        value = (tensor.float() if tensor.dtype == torch.bfloat16 else tensor).cpu().numpy().copy()
        return Draw(self.kind, value, probability, ModuleTracker().is_bw)

    def _parameters(self) -> tuple[Any, Any]:
        """The location and the scale of the distribution: numbers, or tensors in float64."""
        import torch

        values = [self.given.get(name, standard) for name, standard in zip(_PARAMETERS[self.base], (0, 1), strict=True)]
        first, second = (value.double() if isinstance(value, torch.Tensor) else float(value) for value in values)
        if self.kind == "uniform":
            return first, second - first
        return (first, second) if self.kind == "normal" else (0.0, 1 / second)

    def give(self, draw: Draw) -> Any:
        """Do what the operation does, with random numbers that were drawn before."""
        import torch

        like = next((value for value in self.given.values() if isinstance(value, torch.Tensor)), None)
        device = self.given.get("device") or (like.device if like is not None else None)
        # A recorded array may be read again: torch gets its own copy.
        value = torch.tensor(draw.value, device=device)
        if self.base in ("native_dropout", "_fused_dropout"):
            x, p = self.given["input" if self.base == "native_dropout" else "self"], self.given["p"]
            keep = 1 - p if self.base == "native_dropout" else p
            kept = x * value * (1 / keep if keep else 0.0)
            return kept, value if self.base == "native_dropout" else value.to(torch.uint8)
        if self.base == "rrelu_with_noise":
            noise = self.given["noise"].copy_(value)
            return self.given["self"].mul_(noise) if self.written is self.given["self"] else self.given["self"] * noise
        if self.base in _PARAMETERS:
            location, scale = self._parameters()
            value = location + scale * value.double()
        if self.written is not None:
            return self.written.copy_(value)
        dtype = self.given.get("dtype")
        if not isinstance(dtype, torch.dtype):  # a default is given in a schema as a number
            dtype = value.dtype
            if draw.kind == "bernoulli" or value.is_floating_point():
                dtype = like.dtype if like is not None else torch.get_default_dtype()
        return value.to(dtype)


def _name(operation: Any) -> str:
    """The operation without its overload: "bernoulli_" of aten.bernoulli_.float."""
    return str(operation.name()).removeprefix("aten::").partition(".")[0]


def _dtype(tensor: "torch.Tensor") -> str:
    return str(tensor.dtype).removeprefix("torch.")


@functools.cache
def _wide() -> "dict[torch.dtype, torch.dtype]":
    """What each low precision becomes."""
    import torch

    low = (torch.float32, torch.bfloat16, torch.float16)
    return {dtype: torch.float64 for dtype in low} | {
        torch.complex64: torch.complex128,
        torch.complex32: torch.complex128,
    }


@functools.cache
def _dispatcher() -> Any:
    from torch.utils._python_dispatch import TorchDispatchMode

    class Dispatcher(TorchDispatchMode):
        """Hands each operation to a function."""

        def __init__(self, handle: Callable[..., Any]) -> None:
            super().__init__()
            self.handle = handle

        def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
            del types
            return self.handle(func, args, kwargs or {})

    return Dispatcher
