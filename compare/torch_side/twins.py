"""What depends on no weight and no batch, as it is where nothing is moved: the whole numbers that come from it stay.

T5 takes the logarithms of distances, and rounds them to the numbers of its buckets. Some are whole numbers before they
are rounded, so that the least movement makes another bucket of them, and everything behind is as far apart as two
buckets are. But such numbers are the same with all weights and on all batches: they are right or wrong.
"""

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import torch

ROUNDING = frozenset({"ceil", "floor", "round", "sign", "trunc"})
"""Operations of aten that make whole numbers of others, and keep their dtype."""


class Twins:
    """Follows tensors that depend on constants alone through a run that moves what its operations give."""

    def __init__(self) -> None:
        from torch.utils.weak import WeakTensorKeyDictionary

        self._twins: Any = WeakTensorKeyDictionary()
        """Each such tensor, with what it is where nothing is moved; with None where it is that itself."""

    def add(self, tensor: "torch.Tensor", twin: "torch.Tensor | None" = None) -> None:
        """Add a constant, and what it is where it is not moved."""
        self._twins[tensor] = twin

    def run(
        self,
        operation: Any,
        args: tuple[Any, ...],
        kwargs: dict[str, Any],
        written: "list[torch.Tensor]",
        move: Callable[[Any], Any],
    ) -> Any:
        """Run an operation, and return what it gives, moved; whole numbers of constants alone as they are unmoved.

        Args:
            operation: Of aten.
            args: Its positional arguments.
            kwargs: Its keyword arguments.
            written: Those of its arguments that it writes to.
            move: Moves what the operation gives.

        """
        import torch
        from torch.utils._pytree import tree_leaves, tree_map, tree_map_only

        given = [each for each in tree_leaves((args, kwargs)) if isinstance(each, torch.Tensor)]
        if operation is torch.ops.aten.lift_fresh.default:  # torch.tensor(...) has just made it
            self._twins.setdefault(given[0], None)
        constant = all(each in self._twins for each in given)
        moved = constant and any(self._twins[each] is not None for each in given)
        if written and (moved or not constant):
            for each in written:
                self._forget(each)
            constant = False
        if not constant:
            return move(operation(*args, **kwargs))
        output = operation(*args, **kwargs)
        twin = output
        if moved:
            unmoved = tree_map_only(torch.Tensor, self._twin, (args, kwargs))
            twin = operation(*unmoved[0], **unmoved[1])
        whole = operation.overloadpacket.__name__ in ROUNDING

        def following(now: Any, twin: Any) -> Any:
            if not isinstance(now, torch.Tensor):
                return now
            now = twin if whole or not (now.is_floating_point() or now.is_complex()) else now
            self._twins[now] = None if now is twin else twin
            return now

        return tree_map(following, move(output), twin)

    def _twin(self, tensor: "torch.Tensor") -> "torch.Tensor":
        twin = self._twins[tensor]
        return tensor if twin is None else twin

    def _forget(self, tensor: "torch.Tensor") -> None:
        """Forget a tensor that something else is written to, and all that share its memory."""
        memory = tensor.untyped_storage().data_ptr()
        for each in [each for each in self._twins if each.untyped_storage().data_ptr() == memory]:
            del self._twins[each]
