"""What torch's own kernels compute with fewer digits than the precision has.

In float64 these are a gradient scaler, a slope and the derivatives of digamma, and on a GPU a weight norm, hardsigmoid
and hardswish, which use numbers in float32.
"""

from collections.abc import Callable
from typing import Any, NamedTuple


def _unscale(grads: Any, found_inf: Any, inv_scale: Any) -> None:
    """Divide gradients by the scale, and note whether one of them is not finite."""
    import torch

    for grad in grads:
        if not torch.isfinite(grad).all():
            found_inf.fill_(1.0)
        grad.mul_(inv_scale.to(grad.dtype))


def _update(scale: Any, tracker: Any, found_inf: Any, growth: float, backoff: float, interval: int) -> Any:
    """Reduce the scale after a skipped step, and increase it after a number of steps that were not skipped."""
    if bool(found_inf):
        scale.mul_(backoff)
        tracker.zero_()
    else:
        tracker.add_(1)
        if int(tracker) == interval:
            scale.mul_(growth)
            tracker.zero_()
    return scale


def _weight_norm(v: Any, g: Any, dim: int = 0) -> tuple[Any, Any]:
    """Give the normalized weight, and the norms; the CUDA kernel takes their roots by sqrtf, also in float64."""
    import torch

    norms = torch.norm_except_dim(v, 2, dim)
    return v * (g / norms), norms


def _weight_norm_backward(grad_w: Any, v: Any, g: Any, norms: Any, dim: int) -> tuple[Any, Any]:
    """Give the gradients of the direction and of the length."""
    axes = [axis for axis in range(v.ndim) if axis != dim % v.ndim]
    # w = g v / ‖v‖ does not depend on the length of v, so its gradient with respect to v is orthogonal to v (Salimans
    # and Kingma, "Weight Normalization", 2016).
    along = (grad_w * v).sum(axes, keepdim=True) / norms
    return g / norms * (grad_w - v * along / norms), along.reshape(g.shape)


def _hardsigmoid(x: Any) -> Any:
    """Give hardsigmoid, for which the CUDA kernel multiplies by 1/6 as a float32 number."""
    return (x + 3).clamp(0, 6) / 6


def _hardswish(x: Any) -> Any:
    """Give hardswish, of which the same is true."""
    return x * (x + 3).clamp(0, 6) / 6


def _in_place(kernel: Callable[[Any], Any]) -> Callable[[Any], Any]:
    """Let a kernel overwrite its argument."""
    return lambda x: x.copy_(kernel(x))


def _hardsigmoid_backward(grad: Any, x: Any) -> Any:
    """Give the gradient of hardsigmoid, whose slope of 1/6 the kernel takes from a float32 number."""
    import torch

    return torch.where((x > -3) & (x < 3), grad / 6, torch.zeros((), dtype=grad.dtype, device=grad.device))


def _gamma_slope(concentration: Any, variable: Any) -> Any:
    """Give the exact derivative of a Gamma variable by its concentration.

    With the distribution function P and its density p, it is -(dP/da) / p. The series of P is a sum of x^(a + k) e^-x /
    Gamma(a + k + 1); divided by p, each of its terms is a product of x / (a + i).
    """
    import torch

    a, x = torch.broadcast_tensors(concentration.double(), variable.double())
    found, term, order = torch.zeros_like(a), x / a, 0
    while True:
        added = term * (torch.digamma(a + order + 1) - x.log())
        found = found + added
        # The terms grow until a + order exceeds x, and the factor with digamma may change its sign. So a small summand
        # before that does not mean that the series has converged.
        if bool(((added.abs() <= 1e-17 * found.abs()) & (a + order > x)).all()):
            return found.to(variable.dtype)
        order += 1
        term = term * x / (a + order)


def _polygamma(order: int, x: Any) -> Any:
    """Give the derivatives of digamma, of which torch's have about 9 digits in float64."""
    import scipy.special
    import torch

    given = scipy.special.polygamma(order, x.detach().cpu().numpy())
    return torch.as_tensor(given, dtype=x.dtype, device=x.device)


class Exact(NamedTuple):
    """What PyTorch approximates to a few digits in either precision."""

    what: str
    compute: Callable[..., Any]


EXACT = {"_standard_gamma_grad": Exact("the derivative of Gamma variables by their concentration", _gamma_slope)}
"""By the operation's name."""

NOT_UNIQUE = {
    "_dirichlet_grad": "torch takes the gradient of a Beta or Dirichlet variable by its concentration. PyTorch and "
    "jax.random estimate it in two ways, which are both right and differ at each draw. Stop the gradient on both "
    "sides, or draw Gamma variables and normalize them on both, whose gradient is unique"
}
"""Gradients of random variables for which the libraries have other estimates, with what is to be said of each."""

KERNELS: dict[str, Callable[..., Any]] = {
    "_amp_foreach_non_finite_check_and_unscale_": _unscale,
    "_amp_update_scale_": _update,
    "hardsigmoid": _hardsigmoid,
    "hardsigmoid_": _in_place(_hardsigmoid),
    "hardswish": _hardswish,
    "hardswish_": _in_place(_hardswish),
    "hardsigmoid_backward": _hardsigmoid_backward,
    "polygamma": _polygamma,
    "_weight_norm_interface": _weight_norm,
    "_weight_norm_interface_backward": _weight_norm_backward,
}
"""By the operation's name."""
