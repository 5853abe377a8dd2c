"""Records the inputs and outputs of a torch model's modules."""

import contextlib
import dataclasses
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from typing import TYPE_CHECKING, Any, ClassVar

from compare.step.observation import Port
from compare.step.places import Source, source_here

if TYPE_CHECKING:
    import torch


class Record:
    """The inputs and outputs of each module, in order of execution."""

    keeping: ClassVar[bool] = False
    """Whether what is called now is called by this package, as by a record at work, and not by the program."""

    def __init__(self, overwritten: frozenset[Port] = frozenset(), *, placed: bool = False) -> None:
        self.seen: dict[Port, torch.Tensor] = {}
        self.versions: dict[Port, int] = {}
        self.modules: dict[str, str] = {}
        """The class of each module that ran, by path, in order of first execution."""
        self.given: dict[int, str] = {}
        """What tensors are called that a step is given and no module has, by their identity: batch['mask']."""
        self.calls: dict[str, Source | None] = {}
        """The user's line that first calls each module, where that is asked for: it takes a look at the stack."""
        self.elsewhere: set[str] = set()
        """The modules that another line calls, too."""
        self._placed = placed
        self._overwritten = overwritten
        self._calls: Counter[str] = Counter()
        self._open: list[tuple[str, int]] = []
        """The calls that have begun and not ended, outermost first."""

    @property
    def running(self) -> str:
        """The path of the innermost module that has not ended: where an error was raised, if one was."""
        return self._open[-1][0] if self._open else ""

    @contextlib.contextmanager
    def of(self, model: "torch.nn.Module") -> Iterator[None]:
        """Record while this lasts."""
        handles = []

        def enter(path: str) -> Callable[..., None]:
            def hook(module: Any, args: Any, kwargs: Any) -> None:
                call = self._calls[path]
                self._calls[path] += 1
                if self._placed and (source := source_here("torch")) != self.calls.setdefault(path, source):
                    self.elsewhere.add(path)
                self.modules.setdefault(path, type(module).__name__)
                self._open.append((path, call))
                self._at_work(path, call, "input", (args, kwargs))

            return hook

        def leave(path: str) -> Callable[..., None]:
            def hook(module: Any, args: Any, output: Any) -> None:
                del module, args
                ended, call = self._open.pop()
                while ended != path:  # the model caught an error in it, and went on
                    ended, call = self._open.pop()
                self._at_work(path, call, "output", output)

            return hook

        for path, module in model.named_modules():
            if "parametrizations" in path.split("."):
                continue  # those take and give weights, and no activations
            # Before the user's own hooks, which may change the input: the port's module gets the input that the
            # caller passes.
            handles.append(module.register_forward_pre_hook(enter(path), with_kwargs=True, prepend=True))
            handles.append(module.register_forward_hook(leave(path)))
        try:
            yield
        finally:
            for handle in handles:
                handle.remove()

    @staticmethod
    @contextlib.contextmanager
    def working(*, keeping: bool) -> Iterator[None]:
        """Say who calls torch while this lasts: this package, or the program."""
        before, Record.keeping = Record.keeping, keeping
        try:
            yield
        finally:
            Record.keeping = before

    def _at_work(self, path: str, call: int, kind: str, tree: Any) -> None:
        with self.working(keeping=True):
            self._keep(path, call, kind, tree)

    def _keep(self, path: str, call: int, kind: str, tree: Any) -> None:
        for leaf, tensor in leaves(tree):
            if has_no_numbers(tensor):
                continue
            port = Port(path, call, kind, leaf)
            # torch counts the changes of a tensor in place. An equal count means that the recorded tensor, which
            # shares its memory, still has the values of this moment, and a copy of every activation is saved.
            self.versions[port] = tensor._version
            self.seen[port] = tensor.detach().clone() if port in self._overwritten else tensor.detach()

    def changed(self) -> frozenset[Port]:
        """Return which tensors were overwritten in place after they were recorded."""
        return frozenset(port for port, tensor in self.seen.items() if tensor._version != self.versions[port])


def has_no_numbers(tensor: "torch.Tensor") -> bool:
    """Tell whether it stands for one of several within `torch.func.vmap`, so that its numbers cannot be read."""
    try:
        tensor.data_ptr()
    except RuntimeError:
        return not tensor.is_sparse
    return False


def without_numbers(*trees: Any) -> bool:
    """Tell whether a call takes such tensors: what it computes cannot be read, and is the step's own business."""
    return any(has_no_numbers(tensor) for _, tensor in leaves(trees))


def leaves(tree: Any) -> list[tuple[str, "torch.Tensor"]]:
    """Name the numeric tensors in nested tuples, lists, dicts and model outputs: "0", "logits", "1.0"."""
    import torch

    found: list[tuple[str, torch.Tensor]] = []

    def walk(name: str, item: Any) -> None:
        if isinstance(item, torch.Tensor):
            if item.dtype != torch.bool and item.numel():
                found.append((name, item))
        elif isinstance(item, Mapping):
            for key, value in item.items():
                walk(f"{name}.{key}" if name else str(key), value)
        elif isinstance(item, list | tuple):
            fields = getattr(item, "_fields", range(len(item)))
            for key, value in zip(fields, item, strict=True):
                walk(f"{name}.{key}" if name else str(key), value)
        elif hasattr(item, "__dataclass_fields__"):
            walk(name, {key: getattr(item, key) for key in item.__dataclass_fields__})

    walk("", tree)
    return found


def replaced(tree: Any, old: Any, new: Any) -> Any:
    """Put one tensor in the place of another one in nested tuples, lists, dicts and model outputs."""
    if tree is old:
        return new
    if isinstance(tree, Mapping) and not hasattr(tree, "__dataclass_fields__"):
        return type(tree)({key: replaced(each, old, new) for key, each in tree.items()})  # type: ignore[call-arg]
    if isinstance(tree, list | tuple):
        every = [replaced(each, old, new) for each in tree]
        return type(tree)(*every) if hasattr(tree, "_fields") else type(tree)(every)
    if hasattr(tree, "__dataclass_fields__"):
        return dataclasses.replace(tree, **{n: replaced(getattr(tree, n), old, new) for n in tree.__dataclass_fields__})
    return tree
