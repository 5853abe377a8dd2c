"""Whole numbers that a program makes of constants are those of the program as it is written.

T5 takes the logarithms of distances, and rounds them to the numbers of its buckets. Some are whole numbers before they
are rounded, so that the least movement makes another bucket of them: in float64, or where numbers are moved to see what
rounding does. But such numbers are the same with all weights and on all batches: they are right or wrong.
"""

from collections.abc import Callable, Iterable
from typing import TYPE_CHECKING, Any

from compare.step.user_code import passes_on

if TYPE_CHECKING:
    import torch

ROUNDING = frozenset({"ceil", "floor", "round", "sign", "trunc"})
"""Operations of aten that make whole numbers of others, and keep their dtype."""

NEAR = 1e-3
"""As far as rounding takes a constant from what it is as written, in proportion to the largest of its elements."""

Arguments = tuple[tuple[Any, ...], dict[str, Any]]
"""Positional and keyword arguments of an operation."""


class Twins:
    """Follows tensors that depend on constants alone, in the program as it is written beside the one that is run."""

    def __init__(self, default: "torch.dtype") -> None:
        import torch

        self._default = default
        """The dtype of the program's own tensors where it asks for none; a run may have another."""
        self._tensor: Any = torch.Tensor
        self._fresh = torch.ops.aten.lift_fresh.default
        self._twins: dict[int, tuple[torch.Tensor, torch.Tensor | None]] = {}
        """Each such tensor by its identity, and what it is in the program as written; None where it is that itself."""
        self._sharing: dict[int, list[int]] = {}
        """Which of them share a memory."""

    def add(self, tensor: "torch.Tensor", twin: "torch.Tensor | None") -> None:
        """Add a constant, and what it is in the program as it is written."""
        # The tensor itself is kept as well. `id` is unique only among objects that exist: if the tensor were freed, a
        # later one could have the same identity and pass for a constant.
        self._twins[id(tensor)] = tensor, None if twin is tensor else twin
        self._sharing.setdefault(_memory(tensor), []).append(id(tensor))

    @passes_on
    def run(
        self,
        operation: Any,
        written: Arguments,
        given: Arguments,
        changed: "list[torch.Tensor]",
        move: Callable[[Any], Any],
    ) -> Any:
        """Run an operation, and return what it gives; whole numbers of constants alone as in the program as written.

        Args:
            operation: Of aten.
            written: Its arguments in the program as it is written.
            given: Those that it is given in this run.
            changed: The tensors among these that it writes to.
            move: Moves what it gives, to see what rounding does.

        """
        args, kwargs = given
        if operation is self._fresh:  # torch.tensor(...) has just made it
            self.add(args[0], self._as_by_default(written[0][0]))
        tensors = self._tensors(given)
        if not all(id(each) in self._twins for each in tensors):
            self.forget(changed)
            return move(operation(*args, **kwargs))
        return self._of_constants(operation, written, given, changed, move, tensors)

    @passes_on
    def _of_constants(
        self,
        operation: Any,
        written: Arguments,
        given: Arguments,
        changed: "list[torch.Tensor]",
        move: Callable[[Any], Any],
        tensors: "list[torch.Tensor]",
    ) -> Any:
        """Run an operation on constants alone."""
        from torch.utils._pytree import tree_map, tree_map_only

        args, kwargs = given
        known = {id(each): self._twins[id(each)][1] for each in tensors}
        if any(known[id(each)] is None for each in changed):  # it must be written to once
            self.forget(changed if any(each is not None for each in known.values()) else ())
            return move(operation(*args, **kwargs))
        twins = tree_map_only(self._tensor, self._twin, written)
        output = operation(*args, **kwargs)
        try:
            twin = operation(*twins[0], **twins[1])
        except RuntimeError:  # one of them has the run's default dtype, and another the dtype that is written
            self.forget(changed)
            return move(output)
        if not tensors and written[1].get("dtype") is None and isinstance(twin, self._tensor):
            twin = self._as_by_default(twin)
        whole = operation.overloadpacket.__name__ in ROUNDING
        real = [each for each in tensors if _is_real(each)]
        rounds = real and (whole or any(not _is_real(each) for each in self._tensors(((output,), {}))))
        if rounds and not all(map(self._near, real)):
            self.forget(tensors)
            return move(output)

        def followed(now: Any, twin: Any) -> Any:
            if isinstance(now, self._tensor):
                if rounds and (whole or not _is_real(now)):
                    now = twin.to(now.dtype)
                self.add(now, twin if _is_real(now) else now)
            return now

        return tree_map(followed, move(output), twin)

    def _tensors(self, arguments: Arguments) -> "list[torch.Tensor]":
        """List the tensors among an operation's arguments, which are tensors, lists of tensors, or neither."""
        found = []
        for each in (*arguments[0], *arguments[1].values()):
            if isinstance(each, self._tensor):
                found.append(each)
            elif isinstance(each, list | tuple):
                found += [item for item in each if isinstance(item, self._tensor)]
        return found

    def _near(self, tensor: "torch.Tensor") -> bool:
        """Tell whether a constant is what it is as written, but for rounding: NumPy may have written to its memory."""
        twin = self._twins[id(tensor)][1]
        if twin is None or not tensor.numel():
            return True
        apart = (tensor - twin).abs().nan_to_num(0.0).max()
        return bool(apart <= NEAR * max(1.0, float(twin.abs().nan_to_num(0.0).max())))

    def _as_by_default(self, tensor: "torch.Tensor") -> "torch.Tensor":
        import torch

        return tensor.to(self._default) if tensor.dtype == torch.get_default_dtype() else tensor

    def _twin(self, tensor: "torch.Tensor") -> "torch.Tensor":
        """Return a constant as it is in the program as written; a tensor that has just met the run is that."""
        twin = self._twins.get(id(tensor), (tensor, None))[1]
        return tensor if twin is None else twin

    def forget(self, tensors: "Iterable[torch.Tensor]") -> None:
        """Forget tensors that something else is written to, and all that share their memory."""
        for tensor in tensors:
            for each in (id(tensor), *self._sharing.pop(_memory(tensor), ())):
                self._twins.pop(each, None)


def _memory(tensor: "torch.Tensor") -> int:
    try:
        return tensor.untyped_storage().data_ptr()
    except NotImplementedError:  # a sparse tensor has several
        return id(tensor)


def _is_real(tensor: "torch.Tensor") -> bool:
    return tensor.is_floating_point() or tensor.is_complex()
