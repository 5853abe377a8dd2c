"""What operations of aten write to."""

import functools
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import torch


def changed(operation: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> "list[torch.Tensor]":
    """Return the tensors that an operation writes to."""
    if not _written(operation):
        return []
    import torch

    written = (kwargs.get(name, args[at] if at < len(args) else None) for at, name in _written(operation))
    return [each for each in written if isinstance(each, torch.Tensor)]


@functools.cache  # an operation's schema is parsed anew each time that it is read
def _written(operation: Any) -> tuple[tuple[int, str], ...]:
    """The positions and names of the arguments that an operation writes to."""
    return tuple(
        (position, parameter.name)
        for position, parameter in enumerate(operation._schema.arguments)
        if parameter.alias_info is not None and parameter.alias_info.is_write
    )
