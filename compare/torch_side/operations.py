"""Operations of aten: what they write to, and the mode that hands them on one by one."""

import functools
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from compare.step.user_code import passes_on

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


@functools.cache
def dispatcher() -> Any:
    """Return the class of a mode that hands each operation of aten to a function: `mode(handle)`."""
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
