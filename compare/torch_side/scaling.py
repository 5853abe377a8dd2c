"""What a gradient scaler does, in float64: torch's own kernels for it know float32 alone."""

from collections.abc import Callable
from typing import Any


def _unscale(grads: Any, found_inf: Any, inv_scale: Any) -> None:
    """Divide gradients by the scale, and note whether one of them is not finite."""
    import torch

    for grad in grads:
        if not torch.isfinite(grad).all():
            found_inf.fill_(1.0)
        grad.mul_(inv_scale.to(grad.dtype))


def _update(scale: Any, tracker: Any, found_inf: Any, growth: float, backoff: float, interval: int) -> Any:
    """Make the scale smaller after a step that was left out, and larger after so many that were not."""
    if bool(found_inf):
        scale.mul_(backoff)
        tracker.zero_()
    else:
        tracker.add_(1)
        if int(tracker) == interval:
            scale.mul_(growth)
            tracker.zero_()
    return scale


KERNELS: dict[str, Callable[..., Any]] = {
    "_amp_foreach_non_finite_check_and_unscale_": _unscale,
    "_amp_update_scale_": _update,
}
"""By the operation's name."""
