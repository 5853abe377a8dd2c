"""The operations of a step of the torch side as a graph whose values are known."""

import functools
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any, NamedTuple

from compare.diagnosis.on_cpu import arguments_on_cpu, stays
from compare.errors import InputError, Signal

if TYPE_CHECKING:
    import torch


FAILURES = (
    *(RuntimeError, TypeError, ValueError, LookupError, AttributeError, AssertionError, ArithmeticError),
    *(Signal, InputError),
)
"""What an edit raises that is impossible where it is tried: the search goes on with the next."""


class Ref(NamedTuple):
    """A value of the graph, where an operation has a tensor among its arguments."""

    number: int


Path = tuple[Any, ...]
"""Where in an operation's arguments a tensor is: ("args", 0) or ("args", 0, 2) for the third of a list."""


@dataclass(frozen=True)
class Node:
    """One operation: the call of a function of torch."""

    number: int
    """In order of execution."""
    name: str
    """As torch documents it, without underscores: "layer_norm", "relu", "add"."""
    function: Callable[..., Any]
    """It changes none of its arguments."""
    args: tuple[Any, ...]
    kwargs: dict[str, Any]
    outputs: tuple[int, ...]
    """The values that it gives."""
    module: str = ""
    """The path of the module that makes the call; "" for the model itself, or the loss."""
    line: str = ""
    """The user's: "model.py:12"."""
    site: tuple[int, ...] = ()
    """Identifies the call in the user's code: what is called in a loop, or in a function called twice, has one."""
    frozen: bool = False
    """Whether it gives the same whatever goes in: it draws random numbers."""
    stopped: bool = False
    """Whether torch computes it without gradients."""

    @functools.cached_property  # the search asks for it a hundred thousand times
    def inputs(self) -> list[tuple[Path, int]]:
        """The tensors among its arguments: where each is, and which value it is."""
        found: list[tuple[Path, int]] = []

        def walk(path: Path, item: Any) -> None:
            if isinstance(item, Ref):
                found.append((path, item.number))
            elif isinstance(item, Mapping):
                for key, value in item.items():
                    walk((*path, key), value)
            elif isinstance(item, tuple | list):
                for position, value in enumerate(item):
                    walk((*path, position), value)

        walk(("args",), self.args)
        walk(("kwargs",), self.kwargs)
        return found

    @functools.cached_property
    def flat(self) -> bool:
        """Whether all tensors among its arguments are arguments themselves, and not in lists."""
        return all(len(path) == FLAT and path[0] == "args" for path, _ in self.inputs)


FLAT = 2
"""The length of the path of an argument."""


def on_cpu(node: Node) -> Node:
    """Give the same operation for values on the CPU."""
    args, kwargs = arguments_on_cpu(node.args, node.name), arguments_on_cpu(node.kwargs, node.name)
    return replace(node, function=stays if node.name == "cuda" else node.function, args=args, kwargs=kwargs)


@dataclass(frozen=True)
class Operation:
    """An operation at the time when it is computed: what an edit sees."""

    node: Node
    args: tuple[Any, ...]
    kwargs: dict[str, Any]
    value: "Callable[[int], torch.Tensor]"
    """Gives any value that there is by then."""

    def run(self) -> Any:
        """Compute it as it is."""
        return self.node.function(*self.args, **self.kwargs)

    def at(self, path: Path) -> Any:
        """Give an argument."""
        item: Any = {"args": self.args, "kwargs": self.kwargs}
        for key in path:
            item = item[key]
        return item

    def of(self, node: Node) -> "Operation":
        """Give another operation, as it would be computed now."""
        return Operation(node, _resolved(node.args, self.value), _resolved(node.kwargs, self.value), self.value)

    def having(self, path: Path, argument: Any) -> "Operation":
        """Give the same operation with another argument."""

        def put(item: Any, rest: Path) -> Any:
            if not rest:
                return argument
            if isinstance(item, Mapping):
                return {**item, rest[0]: put(item[rest[0]], rest[1:])}
            return type(item)(put(each, rest[1:]) if n == rest[0] else each for n, each in enumerate(item))

        changed = put({"args": self.args, "kwargs": self.kwargs}, path)
        return replace(self, args=changed["args"], kwargs=changed["kwargs"])


Compute = Callable[[Operation], Any]
"""What an edit computes in the place of an operation."""


@dataclass
class Graph:
    """Operations in order of execution, and what each gave."""

    nodes: list[Node] = field(default_factory=list)
    values: "list[torch.Tensor]" = field(default_factory=list)
    made_by: dict[int, int] = field(default_factory=dict)
    """The number of the operation that gave a value; none for what the step starts from."""
    since: list[int] = field(default_factory=list)
    """How many operations had been computed when each value was first met."""
    written_out: bool = False
    """Whether losses are several operations in it, and not one."""

    def add(self, tensor: "torch.Tensor", made_by: int | None = None) -> int:
        """Add a value, and give its number."""
        self.values.append(tensor)
        self.since.append(len(self.nodes))
        if made_by is not None:
            self.made_by[len(self.values) - 1] = made_by
        return len(self.values) - 1

    def on_cpu(self) -> "Graph":
        """Give the same graph with all values on the CPU: see `compare.diagnosis.on_cpu`."""
        if all(value.device.type == "cpu" for value in self.values):
            return self
        copies: dict[Any, torch.Tensor] = {}
        for value in self.values:  # names of one memory stay so
            copies.setdefault(memory(value), value.cpu())
        values = [copies[memory(value)] for value in self.values]
        return replace(self, nodes=[on_cpu(node) for node in self.nodes], values=values)

    def cone(self, end: int, cut: Iterable[int]) -> list[Node]:
        """List the operations that a value comes from, as far back as the values of `cut`, which are given."""
        cut, found, left = set(cut), dict[int, Node](), [end]
        while left:
            value = left.pop()
            maker = self.made_by.get(value)
            if maker is None or maker in found or value in cut:
                continue
            found[maker] = self.nodes[maker]
            left += [number for _, number in self.nodes[maker].inputs]
        return [found[number] for number in sorted(found)]

    def evaluate(
        self,
        nodes: Sequence[Node],
        edits: Mapping[int, Compute],
        end: int,
        moved: "Mapping[int, torch.Tensor] | None" = None,
    ) -> "torch.Tensor":
        """Compute a value again with some operations edited.

        Args:
            nodes: Those that it comes from.
            edits: What is computed in the place of operations, by number.
            end: The value.
            moved: Values that are to be others from the start.

        """
        fresh = self.changed(nodes, edits, moved or {})
        return fresh[end] if end in fresh else self.values[end]

    def changed(
        self, nodes: Sequence[Node], edits: Mapping[int, Compute], moved: "Mapping[int, torch.Tensor]"
    ) -> "dict[int, torch.Tensor]":
        """Compute what changes with some operations edited: the arguments are those of `evaluate`."""
        import torch

        # As in the step that was recorded: `torch.where(mask, 0.3, 0.7)` makes tensors of the default dtype.
        default = torch.get_default_dtype()
        torch.set_default_dtype(torch.float64)
        try:
            return self._changed(nodes, edits, moved)
        finally:
            torch.set_default_dtype(default)

    def _changed(
        self, nodes: Sequence[Node], edits: Mapping[int, Compute], moved: "Mapping[int, torch.Tensor]"
    ) -> "dict[int, torch.Tensor]":
        fresh: dict[int, torch.Tensor] = dict(moved)

        def value(number: int) -> "torch.Tensor":
            return fresh[number] if number in fresh else self.values[number]

        for node in nodes:
            edit = edits.get(node.number)
            # Only what depends on an edit is computed again, and what draws random numbers keeps them: most edits
            # cost a few operations, whatever the size of the model.
            if edit is None and (node.frozen or not any(number in fresh for _, number in node.inputs)):
                continue
            if node.flat:  # as nearly all are
                args = tuple([value(arg.number) if type(arg) is Ref else arg for arg in node.args])
                kwargs = node.kwargs
            else:
                args, kwargs = _resolved(node.args, value), _resolved(node.kwargs, value)
            given = edit(Operation(node, args, kwargs, value)) if edit else node.function(*args, **kwargs)
            for number, tensor in zip(node.outputs, tensors(given), strict=False):
                if number not in moved:
                    fresh[number] = tensor
        return fresh


def memory(tensor: Any) -> tuple[Any, ...]:
    """Identify the numbers that a tensor refers to: two names of one memory with equal strides are the same."""
    return tensor.data_ptr(), tensor.dtype, tuple(tensor.shape), tensor.stride()


def _resolved(item: Any, value: "Callable[[int], torch.Tensor]") -> Any:
    if isinstance(item, Ref):
        return value(item.number)
    if isinstance(item, dict):
        return {key: _resolved(each, value) for key, each in item.items()} if item else item
    if isinstance(item, tuple | list):
        return type(item)(_resolved(each, value) for each in item)
    return item


def tensors(given: Any) -> "list[torch.Tensor]":
    """List the tensors that an operation gives."""
    if hasattr(given, "detach"):
        return [given]
    if isinstance(given, tuple | list):
        return [tensor for each in given for tensor in tensors(each)]
    return []
