"""An edit, which is one change of the graph that the JAX side may have made, and the context in which it is made."""

import enum
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING

from compare.diagnosis.structure.graph import Compute, Graph, Node, Path, Ref, memory
from compare.jax_side.from_data import FromData
from compare.step.observation import Port, ordinal
from compare.verdict.fix import Code

if TYPE_CHECKING:
    import torch


class Kind(enum.StrEnum):
    """What a structural cause is called."""

    LEFT_OUT = "operation left out"
    ADDED = "operation added"
    TWICE = "operation applied twice"
    MOVED = "operations in another order"
    EXCHANGED = "another operation"
    OPERAND = "another operand"
    REDUCTION = "another reduction"
    AXIS = "another axis"
    MASK = "another mask"
    TABLE = "another table"
    NUMBERS = "other numbers"
    PARTS = "parts in another order"
    LAYOUT = "another layout"
    SLICE = "another slice"
    RESAMPLING = "another resampling"
    SCALE = "another scale"
    PRE_NORM = "pre-norm for post-norm"
    POST_NORM = "post-norm for pre-norm"
    STOPPED = "stopped gradient"


UNKNOWN = "the input"
"""The name of a value that the step is given and no module has."""

OF_THE_MODEL = frozenset({Kind.PRE_NORM, Kind.POST_NORM})
"""Causes that are proved by what the whole model gives: nothing else that differs in its forward pass is a fault."""


@dataclass(frozen=True)
class Edit:
    """One change."""

    kind: Kind
    at: tuple[tuple[int, Compute], ...]
    """What is computed in the place of operations, by number."""
    does: str
    """What the JAX side does, as a clause: "leaves out relu (model.py:12)"."""
    fix: str
    odd: bool = False
    """Whether nobody would write it like this: among edits that compute the same, another one is preferred."""
    fixed: bool = False
    """Whether it says that the JAX side has a number in the place of what torch computes."""
    factor: bool = False
    """Whether it multiplies or divides by a number."""
    order: bool = False
    """Whether it moves entries along an axis."""
    nudged: "Edit | None" = None
    """The same with a number that is a little larger, where it has one."""
    code: Code | None = None
    """The fix as a value, where one expression is it."""
    again: "Callable[[Context], Edit | None] | None" = None
    """Makes the same edit at another step, where it holds numbers of this one's."""

    taken: "tuple[Path, int] | None" = None
    """Which argument of the operation, or () for none of them, and which other value it takes into the operation."""
    origin: "tuple[Generator, int, int] | None" = None
    """What has listed it, as which of its edits, for which operation: the same of another call is found by it."""

    def moved(self, number: int, other: int) -> "Edit":
        """Return the same edit with another number for one of its operations."""
        return replace(self, at=tuple((other if each == number else each, compute) for each, compute in self.at))


def of_compared(node: Node, edit: Edit) -> list[int]:
    """List what an operation compares or rounds, if an edit puts another operand there: that is a change before it."""
    compared = edit.kind == Kind.OPERAND and node.name in COMPARISONS | ROUNDING
    return [number for _, number in node.inputs] if compared else []


DIFFERENT = 4
"""Numbers that a tensor must have, all different, for an edit of it to be proved."""


def few_numbers(tensor: "torch.Tensor") -> bool:
    """Return whether a tensor has fewer different numbers than prove an edit, as a mask has."""
    # Masks repeat themselves: a part is enough.
    return len(tensor.detach().flatten()[:1000].unique()) < DIFFERENT


def is_mask(tensor: "torch.Tensor") -> bool:
    """Return whether a tensor has so few different numbers that many functions give the same of it."""
    if not tensor.is_floating_point() and str(tensor.dtype) != "torch.bool":
        return False  # an index of few numbers is no mask: argmax for argmin is told by where each stands
    return tensor.numel() >= DIFFERENT and few_numbers(tensor)


JOINING = {"add": "sum", "mul": "product", "sub": "difference", "div": "quotient", "maximum": "maximum"}
"""What two tensors become."""

TRANSPOSES = {"transpose", "permute", "swapaxes", "movedim", "moveaxis", "T", "mT", "t"}

END = "end"
"""The name of the operation that does nothing, after the value that differs: something may be added there."""

FLAT = frozenset({"ceil", "floor", "round", "sign", "trunc"})
"""Functions of real numbers through which no gradient goes."""

ROUNDING = FLAT | {"floor_divide"}
"""Functions that round real numbers, whatever the dtype of the result."""

COMPARISONS = frozenset({"eq", "ge", "gt", "le", "lt", "ne"})

WHOLE = (
    ROUNDING
    | COMPARISONS
    | frozenset(
        {"argmax", "argmin", "argsort", "sort", "topk", "searchsorted", "bucketize", "one_hot", "arange", "cumsum"}
        | {"tril", "triu", "roll", "flip", "where"}
    )
)
"""Functions that may give whole numbers: where these differ, nothing that is done to real numbers before is proved."""

SILENT = {"contiguous", "clone", "detach", "to", "float", "double", "type_as", "type", "cpu", "requires_grad", END}
COPIED = "lift_fresh.default"
"""What torch calls where it makes a tensor of data: it stands on no line of the user's step."""

SILENT |= {COPIED}
"""Operations that change no value."""


@dataclass
class Context:
    """The part of the graph that a difference can come from."""

    graph: Graph
    nodes: list[Node]
    """In order of execution; the last is `END`."""
    ports: Mapping[Port, int]
    parameters: Mapping[int, str]
    modules: "Mapping[str, torch.nn.Module]" = field(default_factory=dict)
    theirs: FromData = field(default_factory=FromData)
    """What the JAX side's program computes."""
    place: Port | None = None
    """Which input or output of a module differs."""
    names: Mapping[int, str] = field(default_factory=dict)
    """Of parameters and buffers, before the step has updated them too."""
    given: Mapping[int, str] = field(default_factory=dict)
    """Of bare tensors, and of what the batch has: any operation may take them."""

    def __post_init__(self) -> None:
        self._names: dict[int, str] = {**self.given, **self.names, **self.parameters}
        self._leaves = Counter(port[:3] for port in self.ports)
        for port, number in self.ports.items():  # what a module gives says more than what the next takes
            if number not in self._names or port.kind == "output":
                self._names[number] = self._of_port(port)
        inside = {number for node in self.nodes for number in node.outputs}
        self.makers = {node.outputs[0]: node for node in self.nodes if len(node.outputs) == 1 and node.name != END}
        self.users: dict[int, list[Node]] = {}
        for node in self.nodes:
            for _, number in node.inputs:
                self.users.setdefault(number, []).append(node)
        self.from_parameters = self._from_parameters()
        """The values that a parameter goes into."""
        # Indices do not come from where the difference does, and are few: any of them may be taken for another.
        indices = {
            n for n, value in enumerate(self.graph.values) if not (value.is_floating_point() or value.is_complex())
        }
        self._known = sorted(inside | set(self.ports.values()) | indices)

    def _from_parameters(self) -> set[int]:
        root = self.modules.get("")
        trained = set() if root is None else {name for name, _ in root.named_parameters()}
        found = {number for number, name in self.parameters.items() if name in trained}
        for node in self.graph.nodes:
            if any(number in found for _, number in node.inputs):
                found.update(node.outputs)
        return found

    def value(self, number: int) -> "torch.Tensor":
        """Return a value as it was computed."""
        return self.graph.values[number]

    def _of_port(self, port: Port) -> str:
        """Name an input or an output of a module, with its place where there are several."""
        several = self._leaves[port[:3]] > 1
        return f"{port.kind} {port.leaf} of {port.module}" if several else f"the {port.kind} of {port.module}"

    def named(self, number: int) -> str:
        """Say what a value is."""
        maker = self.graph.made_by.get(number)
        if number in self._names:
            return self._names[number]
        if maker is None:
            return UNKNOWN
        node = self.graph.nodes[maker]
        if node.name in (*SILENT, "bool", "int", "long") and node.inputs:
            return self.named(node.inputs[0][1])
        which = f"output {node.outputs.index(number)}" if len(node.outputs) > 1 else "the output"
        return f"{which} of {shown(node)}"

    def both_named(self, one: int, other: int) -> tuple[str, str]:
        """Say what two values are, so that they can be told apart: two calls of a function on one line, two outputs."""
        names = self.named(one), self.named(other)
        return names if names[0] != names[1] else (self._exactly(one), self._exactly(other))

    def _exactly(self, number: int) -> str:
        name, maker = self.named(number), self.graph.made_by.get(number)
        for port, value in self.ports.items():
            if value == number and name == self._of_port(port):
                return name
        if maker is None:
            return f"{name} of shape {tuple(self.value(number).shape)}"
        node = self.graph.nodes[maker]
        alike = [each.number for each in self.graph.nodes if shown(each) == shown(node)]
        return f"{name}, {ordinal(alike.index(node.number))} call"

    def before_its_user(self, node: Node) -> str:
        """Say which operation takes a result, where one alone does: what goes in may be used elsewhere too."""
        users = self.users.get(node.outputs[0], [])
        return f" before {shown(users[0])}" if len(users) == 1 and users[0].name != END else ""

    def ports_of(self, number: int) -> tuple[Port, ...]:
        """List the modules' inputs and outputs that are a value."""
        found = [port for port, other in self.ports.items() if other == number]
        at_place = self.place is not None and self.nodes[-1].name == END and self.nodes[-1].inputs[0][1] == number
        return (*found, self.place) if at_place and self.place else tuple(found)

    def is_used_once(self, number: int) -> bool:
        """Return whether one operation of the whole step takes a value."""
        return sum(number in [each for _, each in node.inputs] for node in self.graph.nodes) == 1

    def data(self, node: Node) -> list[tuple[Path, int]]:
        """List the values that an operation takes and that are not parameters."""
        return [(path, n) for path, n in node.inputs if n not in self.parameters and self.value(n).is_floating_point()]

    def shape(self, node: Node) -> tuple[int, ...]:
        """Return the shape of an operation's first result."""
        return tuple(self.value(node.outputs[0]).shape)

    def likes(self, node: Node, number: int) -> Iterator[int]:
        """List other values of the same shape and dtype that exist when an operation is computed, the latest first."""
        own = self.value(number)
        seen = {memory(own)}
        count = 0
        # What the batch has, and of what is computed the latest: a port that takes a wrong tensor most often takes a
        # neighbour of the right one.
        for other in (*self.given, *reversed(self._known)):
            tensor = self.value(other)
            if tensor.shape != own.shape or tensor.dtype != own.dtype or not self.exists(other, node):
                continue
            if memory(tensor) not in seen:
                seen.add(memory(tensor))
                yield other
                count += other not in self.given
            if count == LATEST:
                return

    def exists(self, number: int, node: Node) -> bool:
        """Return whether a value is there when an operation is computed."""
        maker = self.graph.made_by.get(number)
        if maker is None:
            return self.graph.since[number] <= self.position(node)
        return maker < self.position(node)

    def position(self, node: Node) -> int:
        """Return the place of an operation in the order of execution."""
        if node.name != END:
            return node.number
        maker = self.graph.made_by.get(node.inputs[0][1])
        return maker + 1 if maker is not None else self.graph.since[node.inputs[0][1]]

    def sizes(self) -> list[int]:
        """List how long the axes are that occur."""
        found = {size for node in self.nodes for size in self.shape(node)}
        found |= {size for node in self.nodes for _, number in node.inputs for size in self.value(number).shape}
        return sorted(size for size in found if size > 1)


LATEST = 24
"""Values to try, at most, in the place of one."""


def shown(node: Node) -> str:
    """Name an operation and its place in the user's code: "relu (model.py:12)"."""
    name = _OPERATORS.get(node.name, node.name)
    return f"{name} ({node.line})" if node.line else name


_OPERATORS = {"and": "&", "or": "|", "xor": "^", "invert": "~"}
"""What the user has written where the function's name is a word of English."""


def result(node: Node) -> str:
    """Name what an operation gives: "the sum (model.py:12)"."""
    what = f"the {JOINING[node.name]}" if node.name in JOINING else node.name
    return f"{what} ({node.line})" if node.line else what


def end_node(number: int, value: int, output: int) -> Node:
    """Return an identity operation after a value."""
    return Node(number, END, lambda tensor: tensor, (Ref(value),), {}, (output,))


Generator = Callable[[Context, Node], Iterator[Edit]]
"""Lists edits of one operation."""


def one(kind: Kind, node: Node, compute: Compute, does: str, fix: str, code: Code | None = None) -> Edit:
    """Return an edit of one operation."""
    return Edit(kind, ((node.number, compute),), does, fix, code=code)
