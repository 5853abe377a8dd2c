"""Other ways to resize an image or to read it between its pixels."""

from collections.abc import Callable
from typing import Any

from compare.diagnosis.conventions.base import DOCS, JAX, Alternative
from compare.diagnosis.place import Place
from compare.diagnosis.rewriting import Call, Rewrite
from compare.verdict.fix import Code

METHODS = {"nearest": "nearest", "linear": "linear", "bilinear": "linear", "trilinear": "linear", "bicubic": "cubic"}
"""Modes of torch's interpolate, and what jax.image.resize calls them."""


def _triangle(x: Any) -> Any:
    return (1 - x).clamp(min=0)


def _keys(x: Any) -> Any:
    """Keys' cubic kernel with a = -1/2."""
    import torch

    # Keys, "Cubic convolution interpolation for digital image processing", 1981: (a+2)|x|³ - (a+3)|x|² +
    # 1 up to 1, and a|x|³ - 5a|x|² + 8a|x| - 4a up to 2.
    near, far = (1.5 * x - 2.5) * x * x + 1, ((-0.5 * x + 2.5) * x - 4) * x + 2
    return torch.where(x >= 1, torch.where(x >= 2, torch.zeros_like(x), far), near)


def _weights(size: int, given: int, kernel: Callable[[Any], Any], *, antialias: bool, like: Any) -> Any:
    """Return the weight of each of `size` pixels in each of `given`, shape `(given, size)`, as in jax.image.resize.

    Pixels are at half-integers. To antialias, the kernel grows with the spacing of the new ones. Shares add up to 1.
    """
    import torch

    spacing = size / given
    scale = max(spacing, 1.0) if antialias else 1.0
    centres = (torch.arange(given, dtype=like.dtype) + 0.5) * spacing - 0.5
    shares = kernel((centres[:, None] - torch.arange(size, dtype=like.dtype)).abs() / scale)
    return (shares / shares.sum(1, keepdim=True)).to(like.device)


def _resized(method: str, *, antialias: bool) -> Rewrite:
    def compute(call: Call) -> Any:
        import torch

        x, shape = call.input, call.run().shape
        for axis in range(2, x.ndim):
            size, given = x.shape[axis], shape[axis]
            if method == "nearest":
                # The pixel whose area contains the new centre. torch's "nearest" takes floor(i * size / given),
                # without the half.
                at = torch.floor((torch.arange(given, dtype=torch.float64) + 0.5) * size / given).long()
                x = x.index_select(axis, at.to(x.device))
            else:
                kernel = _keys if method == "cubic" else _triangle
                shares = _weights(size, given, kernel, antialias=antialias, like=x)
                x = torch.tensordot(x, shares, ([axis], [1])).movedim(-1, axis)
        return x

    return compute


def torchs_resize(call: Call, place: Place) -> Code | None:
    """Write torch's resizing with jax.image.resize; None where that has no such method."""
    del place
    method = METHODS.get(call["mode"], "")
    halves = call["mode"] in ("bilinear", "trilinear", "linear") and not call["align_corners"]
    shape = call.run().shape
    whole = call["mode"] == "nearest" and all(
        new % old == 0 for new, old in zip(shape[2:], call.input.shape[2:], strict=True)
    )
    if not halves and not whole:
        return None
    keywords = {"method": method} | ({} if whole else {"antialias": bool(call["antialias"])})
    return Code("jax.image.resize", keywords=keywords)


def _differs(method: str, *, antialias: bool) -> Callable[[Call], bool]:
    """Leave out torch's own method, for which both resize in the same way."""

    def applies(call: Call) -> bool:
        shrinks = any(new < old for new, old in zip(call.run().shape[2:], call.input.shape[2:], strict=True))
        return call.input.ndim > 2 and (not antialias or (shrinks and method != "nearest"))

    return applies


def _does(method: str, *, antialias: bool) -> str:
    kernel = ", a cubic kernel with a = -0.5, where torch's bicubic has a = -0.75" if method == "cubic" else ""
    smooth = ", and smooths what shrinks (antialias=True)" if antialias else ""
    return f'resizes as jax.image.resize does with "{method}"{smooth}{kernel}'


def read_at(call: Call, place: Place) -> Code | None:
    """Write where torch's grid_sample reads, in pixels."""
    del place
    if call["align_corners"]:
        return Code(around="(grid + 1) / 2 * (size - 1)")
    return Code(around="((grid + 1) * size - 1) / 2")


def grid(call: Call, place: Place) -> Code:
    """Write where affine_grid has its points along an axis of a given size."""
    del place
    if call["align_corners"]:
        return Code("jnp.linspace", ("-1", "1", "size"))
    return Code("jnp.arange", ("size",), around="(2 * {} + 1) / size - 1")


def outside(call: Call, place: Place) -> Code | None:
    """Write what grid_sample takes for pixels outside the image."""
    del place
    mode = {"zeros": "constant", "border": "nearest"}.get(call["padding_mode"])
    return Code("jax.scipy.ndimage.map_coordinates", keywords={"mode": mode}) if mode else None


def order(call: Call, place: Place) -> Code | None:
    """Write how grid_sample interpolates."""
    del place
    degree = {"nearest": 0, "bilinear": 1}.get(call["mode"])
    return None if degree is None else Code("jax.scipy.ndimage.map_coordinates", keywords={"order": degree})


RESAMPLING = tuple(
    Alternative(
        name="antialiasing" if antialias else "resizing",
        functions=("interpolate",),
        compute=_resized(method, antialias=antialias),
        jax_does=_does(method, antialias=antialias),
        fix=torchs_resize,
        source=f"{JAX}jax.image.resize.html",
        applies=_differs(method, antialias=antialias),
    )
    for antialias in (False, True)
    for method in ("nearest", "linear", "cubic")
)

SOURCE = f"{DOCS}torch.nn.functional.grid_sample.html"
