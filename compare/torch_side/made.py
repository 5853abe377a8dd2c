"""Notes where the user's code makes its torch modules."""

import contextlib
from collections.abc import Iterator
from typing import Any

from compare.step.made import note


@contextlib.contextmanager
def noted() -> Iterator[None]:
    """Note each torch module that is made while this lasts."""
    from unittest import mock

    import torch

    original = torch.nn.Module.__init__

    def initialize(module: Any, *args: Any, **kwargs: Any) -> None:
        note(module, "torch")
        original(module, *args, **kwargs)

    with mock.patch.object(torch.nn.Module, "__init__", initialize):
        yield
