"""Records a step of the torch side as a graph, or runs it with some of its operations edited.

torch.fx and torch.export would not do: they trace symbolically, and lose branches that depend on values, operations in
place and hooks. Here the program runs as it is, and what it calls is written down.
"""

import contextlib
import functools
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path as FilePath
from types import FrameType
from typing import TYPE_CHECKING, Any

from compare.diagnosis.on_cpu import computed_on_cpu, mapped_arguments
from compare.diagnosis.rewriting import Rerun
from compare.diagnosis.structure.decompositions import DECOMPOSITIONS, LOSSES
from compare.diagnosis.structure.graph import FAILURES, Compute, Graph, Node, Operation, Ref, on_cpu, tensors
from compare.errors import NotApplicable
from compare.step.observation import Observation, Port
from compare.torch_side.record import Record, leaves, without_numbers

if TYPE_CHECKING:
    import torch


@dataclass
class Recorded:
    """A step as a graph."""

    graph: Graph
    ports: dict[Port, int]
    """Which value each input and output of a module is."""
    parameters: dict[int, str]
    """The names of those values that are parameters or buffers at the end of the step."""
    names: dict[int, str]
    """The same, with the values from before the step has updated them."""
    given: dict[int, str]
    """The names of bare tensors, and of what the batch has."""
    roots: list[int]
    """What the step differentiates, in order."""
    seen: Observation


def recorded(rerun: Rerun, *, written_out: bool = False) -> Recorded:
    """Run the step once, and record it, with losses as one operation or `written_out`."""
    tape = Tape(rerun.overwritten, {}, written_out=written_out)
    seen = rerun.step(tape, tape.recording(rerun.model))
    tensors_by_name = dict(rerun.model.named_parameters()) | dict(rerun.model.named_buffers())
    names, read = (
        {known[id(t)]: name for name, t in tensors_by_name.items() if id(t) in known}
        for known in (tape.numbers, tape.first)
    )
    given = {tape.first[identity]: name for identity, name in tape.given.items() if identity in tape.first}
    return Recorded(tape.graph, tape.ports, names, {**read, **names}, given, tape.roots, seen)


Operations = Mapping[tuple[int, str], Compute]
"""What is computed in the place of operations, by their numbers and names."""


class Tape(Record):
    """What has been computed so far: operations, values, and which of these modules took and gave."""

    def __init__(self, overwritten: frozenset[Port], edits: Operations, *, written_out: bool = False) -> None:
        super().__init__(overwritten)
        self.edits = edits
        self.graph = Graph(written_out=written_out)
        self.decompositions = DECOMPOSITIONS | LOSSES if written_out else DECOMPOSITIONS
        self.numbers: dict[int, int] = {}
        """The value that each tensor is, by its identity."""
        self.first: dict[int, int] = {}
        """The value that each tensor was when it was first read, likewise."""
        self.live: list[torch.Tensor] = []
        """The tensors themselves, by value: kept, so that no other one gets their identity."""
        self.overwritten_values: dict[int, torch.Tensor] = {}
        """Those that an operation in place has overwritten, as they were: an edit may read them."""
        self.ports: dict[Port, int] = {}
        self.roots: list[int] = []
        self.open = True
        self.inside: list[str] = []
        self.within: set[str] = set()

    @contextlib.contextmanager
    def recording(self, model: "torch.nn.Module") -> Iterator[None]:
        """Record while this lasts; the tensors of the model are there from the start, whenever they are read."""
        from torch.optim.optimizer import register_optimizer_step_pre_hook

        def updated(optimizer: Any, *_: Any) -> None:
            was_open, self.open = self.open, False  # as in `_keep`
            self.overwritten_by(parameter for group in optimizer.param_groups for parameter in group["params"])
            self.open = was_open

        for tensor in (*model.parameters(), *model.buffers()):
            self.number(tensor)
        handle = register_optimizer_step_pre_hook(updated)
        try:
            with _mode()(self):
                yield
        finally:
            handle.remove()

    def overwritten_by(self, parameters: "Iterable[torch.Tensor]") -> None:
        """Copy the values that share memory with parameters that are about to be updated: these become new values."""
        memory = {parameter.untyped_storage().data_ptr() for parameter in parameters}
        for number, value in enumerate(self.graph.values):
            if value.untyped_storage().data_ptr() in memory:
                self.graph.values[number] = value.clone()
                self.numbers.pop(id(self.live[number]), None)

    def _keep(self, path: str, call: int, kind: str, tree: Any) -> None:
        if kind == "input":
            self.inside.append(path)
        elif self.inside:
            self.inside.pop()
        was_open, self.open = self.open, False  # what the record itself calls is not the program's
        super()._keep(path, call, kind, tree)
        for leaf, tensor in leaves(tree):
            self.ports[Port(path, call, kind, leaf)] = self.number(tensor)
        self.open = was_open

    def number(self, tensor: "torch.Tensor", made_by: int | None = None) -> int:
        """Return the number of a tensor's value: a new one if an operation has just made it, or if it is unknown."""
        known = self.numbers.get(id(tensor))
        if known is not None and made_by is None:
            return known
        self.live.append(tensor)
        self.numbers[id(tensor)] = self.graph.add(tensor.detach(), made_by)
        if made_by is None:
            self.first.setdefault(id(tensor), self.numbers[id(tensor)])
        return self.numbers[id(tensor)]

    def value(self, number: int) -> "torch.Tensor":
        """Give a value by its number, on the CPU."""
        return self.overwritten_values.get(number, self.live[number]).cpu()

    def saved(self, tensor: "torch.Tensor") -> None:
        """Copy the values that share a tensor's memory, which is about to be overwritten."""
        # All views of one storage change with it. The graph must keep the values that earlier operations have
        # read.
        memory = tensor.untyped_storage().data_ptr()
        for number, value in enumerate(self.graph.values):
            if value.untyped_storage().data_ptr() == memory:
                self.graph.values[number] = value.clone()
                if self.edits:
                    self.overwritten_values[number] = self.live[number].clone()  # with its gradient
                # A view of overwritten memory is a new value from now on. The tensor itself is the operation's output.
                if self.live[number] is not tensor:
                    self.numbers.pop(id(self.live[number]), None)

    def compute(self, function: Callable[..., Any], name: str, args: Any, kwargs: Any) -> Any:
        """Compute one operation, and record it."""
        # A tape with other edits may see this one's calls: it is to count the program's alone.
        with Record.working(keeping=True):
            return self._computed(function, name, args, kwargs)

    def _computed(self, function: Callable[..., Any], name: str, args: Any, kwargs: Any) -> Any:
        import torch

        def own() -> Any:
            with Record.working(keeping=False):
                return function(*args, **kwargs)

        overwrites = _overwrites(function, args, kwargs)
        number = len(self.graph.nodes)

        def known(item: Any) -> Any:
            return Ref(self.number(item)) if hasattr(item, "detach") else item

        references = mapped_arguments(args, known), mapped_arguments(kwargs, known)
        pure = _on_copy(function) if overwrites else function
        module = self.inside[-1] if self.inside else ""
        node = Node(number, name, pure, *references, (), module, *_call_site())
        edit = self.edits.get((number, name))
        target = args[0] if overwrites else None
        if target is not None:
            self.saved(target)
        if edit is None:
            given = own()
        else:
            if target is None and name not in _STATEFUL:
                own()  # so that it is counted
            given = _applied(edit, Operation(on_cpu(node), args, kwargs, self.value))
            if target is not None:
                given = target.copy_(given)
        made = [target] if target is not None else tensors(given)
        if not made:
            return given
        self.graph.nodes.append(node)
        # contiguous() of a contiguous tensor returns its argument. The result is a value of its own all the same, so
        # that the graph does not depend on strides.
        outputs = tuple(self.number(tensor, number) for tensor in made)
        random = name in _RANDOM or (name == "dropout" and "dropout" in self.within)
        kept = random or function is torch.autograd.grad  # no values alone can be differentiated again
        self.graph.nodes[-1] = replace(node, outputs=outputs, frozen=kept, stopped=not torch.is_grad_enabled())
        return given


def _applied(edit: Compute, operation: Operation) -> Any:
    try:
        return computed_on_cpu(
            lambda args, kwargs: edit(replace(operation, args=args, kwargs=kwargs)),
            operation.args,
            operation.kwargs,
            operation.node.name,
        )
    except FAILURES as error:
        raise NotApplicable(str(error)) from error


_STATEFUL = {"batch_norm", "instance_norm"}
"""Functions that update running statistics."""

_RANDOM = {"bernoulli", "rand", "randn", "randint", "rand_like", "randn_like", "normal", "uniform", "randperm"}
_RANDOM |= {"dropout1d", "dropout2d", "dropout3d", "alpha_dropout", "feature_dropout", "rrelu"}


def _overwrites(function: Any, args: Any, kwargs: Any) -> bool:
    """Return whether a function changes its first argument."""
    name = getattr(function, "__name__", "")
    if not args or not hasattr(args[0], "detach"):
        return False
    if kwargs.get("inplace") or kwargs.get("out") is not None:
        return True
    if name.startswith("__"):
        return (name.startswith("__i") and name not in ("__index__", "__int__", "__invert__")) or name == "__setitem__"
    return name.endswith("_")


def _on_copy(function: Callable[..., Any]) -> Callable[..., Any]:
    def pure(first: Any, *args: Any, **kwargs: Any) -> Any:
        copy = first.clone()
        function(copy, *args, **kwargs)
        return copy

    return pure


_NAMES = {"iadd": "add", "radd": "add", "imul": "mul", "rmul": "mul", "isub": "sub", "itruediv": "div"} | {
    "truediv": "div",
    "true_divide": "div",
    "divide": "div",
    "rtruediv": "rdiv",
    "multiply": "mul",
    "subtract": "sub",
    "concat": "cat",
    "concatenate": "cat",
    "ipow": "pow",
}
"""One name for what several functions do."""


def name_of(function: Any) -> str:
    """Name a function of torch as its documentation does."""
    name = getattr(function, "__name__", "")
    if name == "__get__":  # of an attribute: x.T
        return getattr(getattr(function, "__self__", None), "__name__", "")
    return _NAMES.get(name.strip("_"), name.strip("_"))


_HERE = str(FilePath(__file__).parents[2])


@functools.cache
def _is_users(file: str) -> bool:
    import torch

    return not file.startswith((_HERE, str(FilePath(torch.__file__).parent), contextlib.__file__, "<"))


def _call_site() -> tuple[str, tuple[int, ...]]:
    """Say which line of the user's is being run, "model.py:12", and identify the call within it."""
    frame: FrameType | None = sys._getframe(2)
    site: list[int] = []
    while frame is not None:
        file = frame.f_code.co_filename
        # f_lasti is the position in the bytecode, which distinguishes two calls in one line.
        site += [id(frame.f_code), frame.f_lasti]
        if _is_users(file):
            return f"{FilePath(file).name}:{frame.f_lineno}", tuple(site)
        frame = frame.f_back
    return "", ()


_NEITHER = {"backward", "requires_grad_", "__set__", "register_hook", "retain_grad", "zero_"}
_ATTRIBUTES = {"T", "mT", "H", "mH", "real", "imag"}


@functools.cache
def _mode() -> Any:
    from torch.overrides import TorchFunctionMode

    class Recording(TorchFunctionMode):
        """Hands every function of torch that the step calls to a tape."""

        def __init__(self, tape: Tape) -> None:
            super().__init__()
            self.tape = tape

        def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
            del types
            kwargs = kwargs or {}
            name, tape = name_of(func), self.tape
            attribute = getattr(func, "__name__", "") == "__get__" and name not in _ATTRIBUTES
            # What autograd calls in the backward pass belongs to no line of the user's.
            if name == "backward" and tape.open:
                tape.open = False
                tape.roots += [tape.number(root) for root in tensors(args[0])]
                try:
                    return func(*args, **kwargs)
                finally:
                    tape.open = True
            if not tape.open or Record.keeping or attribute or getattr(func, "__name__", "") in _NEITHER:
                return func(*args, **kwargs)
            if without_numbers(args, kwargs):
                return func(*args, **kwargs)
            if name in tape.decompositions and name not in tape.within:
                with self._decomposing(name):
                    given = self._decomposed(func, name, args, kwargs)
                if given is not NotImplemented:
                    return given
            if name == "iter":  # q, k, v = x
                return iter(tape.compute(type(args[0]).unbind, "unbind", args, kwargs))
            return tape.compute(func, name, args, kwargs)

        @contextlib.contextmanager
        def _decomposing(self, name: str) -> Iterator[None]:
            self.tape.within.add(name)
            try:
                # A mode is off within its own handler. Entered again, it sees the operations of the decomposition.
                with self:
                    yield
            finally:
                self.tape.within.discard(name)

        def _decomposed(self, function: Any, name: str, args: Any, kwargs: Any) -> Any:
            """Compute a function as several operations; NotImplemented where it cannot be."""
            import inspect

            if name == "multi_head_attention_forward":
                bound = inspect.signature(function).bind(*args, **kwargs)
                bound.apply_defaults()
                args, kwargs = (), bound.arguments
            try:
                return self.tape.decompositions[name](*args, **kwargs)
            except TypeError:  # arguments that it does not know
                return NotImplemented

    return Recording
