"""Updates that torch's optimizer makes and that are undone, since the port does not make them."""

import contextlib
from collections.abc import Iterator
from typing import Any

from compare.diagnosis.optimizers.evidence import copied


@contextlib.contextmanager
def undone(optimizer: Any, *, remembered: bool = False) -> Iterator[None]:
    """Undo each step of an optimizer while this lasts.

    The step itself is called: hooks, counters and schedules of the user's run as they do, and what the optimizer is
    given is seen.

    Args:
        optimizer: The optimizer.
        remembered: Whether its moments and counts go on, as where updates are computed and thrown away.

    """
    parameters = [each for group in optimizer.param_groups for each in group["params"]]
    before: list[tuple[Any, dict[str, Any]]] = []

    def keep(*_: Any) -> None:
        before[:] = [(each.detach().clone(), copied(optimizer.state.get(each, {}))) for each in parameters]

    def restore(*_: Any) -> None:
        for each, (value, slots) in zip(parameters, before, strict=True):
            each.data.copy_(value)
            for slot, now in optimizer.state.get(each, {}).items() if not remembered else ():
                # A slot that the first step makes is zero before it, as optax has it from the start.
                if hasattr(now, "copy_"):
                    now.copy_(slots[slot]) if slot in slots else now.zero_()

    with contextlib.ExitStack() as stack:
        stack.callback(optimizer.register_step_pre_hook(keep).remove)
        stack.callback(optimizer.register_step_post_hook(restore).remove)
        yield
