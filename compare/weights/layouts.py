"""The layouts of a layer's tensors on both sides, as views under which the two arrays are equal.

A linear layer of torch has a weight `(out, in)`, Flax's a kernel `(in, out)`. For a pair of slots, `layouts` gives the
views under which they can be compared element by element, in torch's orientation.
"""

import math

from compare.weights.recurrent import GATES
from compare.weights.units import INPUT_FIRST, Slot, Unit, View

Views = tuple[View, View]
"""torch's and JAX's."""


def layouts(torch: Unit, jax: Unit, role: str, a: Slot, b: Slot) -> dict[str, Views]:
    """List the layouts that two slots can have, by name, each as two views of equal shape.

    There is more than one where shapes alone cannot decide, as for a square matrix; `usual` may decide then.
    """
    if role != "weight" and not role.startswith("weight_"):
        return _same(a, b) or (
            {"merged": (a.view(), b.view(a.shape))} if math.prod(a.shape) == math.prod(b.shape) else {}
        )
    kind = torch.kind or jax.kind
    if kind in GATES:
        return _linear(torch, jax, a, b)
    # A convolution with a kernel of one point is a linear layer over the channels, and ports write it as
    # nn.Linear.
    if kind == "conv" and math.prod(a.shape[2:]) == 1 and len(b.shape) == 2:
        kind = "linear"
    return _WEIGHTS.get(kind, _any)(torch, jax, a, b)


def usual(torch: Unit, jax: Unit, a: Slot, b: Slot) -> str:
    """Name the layout that a JAX layer has by its framework's convention, or "" where none is known."""
    if b.leaf in INPUT_FIRST:
        return "input first"
    if jax.kind:
        return "output first"
    return "same" if b.leaf == a.leaf and not torch.kind else ""


def _same(a: Slot, b: Slot) -> dict[str, Views]:
    """Equal but for axes of length one: PReLU's slope is `(1,)` or `()`, a bias in Equinox `(C, 1, 1)`."""
    if a.shape == b.shape:
        return {"same": (a.view(), b.view())}
    if [size for size in a.shape if size > 1] == [size for size in b.shape if size > 1]:
        return {"same": (a.view(), b.view(a.shape))}
    return {}


def _linear(torch: Unit, jax: Unit, a: Slot, b: Slot) -> dict[str, Views]:
    # transformers.pytorch_utils.Conv1D, of GPT-2: a linear layer in spite of its name.
    turned = torch.type == "Conv1D"  # (in, out), as in Flax
    if math.prod(a.shape[2:]) > 1 or len(a.shape) < 2 or len(b.shape) < 2:
        return {}
    outputs, inputs = (a.shape[1], a.shape[0]) if turned else a.shape[:2]
    mine = a.view(None if len(a.shape) == 2 else (outputs, inputs), (1, 0) if turned else None)
    found: dict[str, Views] = {}
    # Flax's attention splits heads off the outputs of query, key and value, (E, H, D), and off the inputs of the output
    # projection, (H, D, E). Any split of the axes into inputs and outputs with the right products may be meant.
    fits = any((math.prod(b.shape[:at]), math.prod(b.shape[at:])) == (inputs, outputs) for at in range(1, len(b.shape)))
    features = torch.settings.get("flattened") or ()
    if fits and not (jax.kind and b.leaf == "weight"):
        if features:
            # torch flattens (C, H, W), Flax (H, W, C): the kernel's rows are permuted. Both are viewed as (out, C, H,
            # W).
            spatial, axes = len(features) - 1, range(len(features))
            shape = (*features[1:], features[0], outputs)
            theirs = b.view(shape, (spatial + 1, spatial, *axes[:spatial]))
            found["input first"] = (a.view((outputs, *features)), theirs)
        else:
            found["input first"] = (mine, b.view((inputs, outputs), (1, 0)))
    if b.shape == (outputs, inputs) and not (jax.kind and b.leaf in INPUT_FIRST):
        found["output first"] = (mine, b.view())
    return found


def _conv(torch: Unit, jax: Unit, a: Slot, b: Slot) -> dict[str, Views]:
    spatial = len(a.shape) - 2
    if len(b.shape) != len(a.shape):
        return {}
    found: dict[str, Views] = {}
    # torch (out, in/groups, *k); Flax and Haiku (*k, in/groups, out). Equinox keeps torch's.
    if b.shape == (*a.shape[2:], a.shape[1], a.shape[0]) and not (jax.kind and b.leaf == "weight"):
        found["input first"] = (a.view(), b.view(axes=(spatial + 1, spatial, *range(spatial))))
    if b.shape == a.shape and not (jax.kind and b.leaf in INPUT_FIRST):
        found["output first"] = (a.view(), b.view())
    return found


def _transposed(torch: Unit, jax: Unit, a: Slot, b: Slot) -> dict[str, Views]:
    """Transposed convolutions, whose weight in torch is `(in, out/groups, *k)`.

    That is the weight of the convolution whose gradient they are. Flax's is that of the convolution that computes
    them, whose kernel runs the other way, `(*k, in, out)`; with `transpose_kernel` it is torch's, `(*k, out, in)`.
    Equinox's is `(out, in/groups, *k)` and runs the other way too. Flax has no groups here; a port's own layer may
    have a kernel `(*k, in/groups, out)` for `jax.lax.conv_general_dilated`.
    """
    # https://docs.pytorch.org/docs/stable/generated/torch.nn.ConvTranspose2d.html says that it is the
    # gradient of a convolution by its input. Written out, y[q, o] = sum over p, i of x[p, i] w[i, o, q -
    # s p]: as a convolution of the dilated input, the kernel is w reversed along its spatial axes. `flip`
    # does that.
    groups, kernel = torch.settings.get("groups", 1), a.shape[2:]
    size, inputs, outputs = len(kernel), a.shape[0] // groups, a.shape[1]
    mine = a.view((groups, inputs, outputs, *kernel))
    found: dict[str, Views] = {}
    turned = jax.settings.get("transpose_kernel")
    axes = range(3, 3 + size)
    if b.shape == (*kernel, inputs, groups * outputs) and turned is not True and b.leaf != "weight":
        shape = (*kernel, inputs, groups, outputs)
        found["plain"] = (mine, b.view(shape, (size + 1, size, size + 2, *range(size)), flip=size))
    if b.shape == (*kernel, outputs, inputs) and groups == 1 and turned is not False and b.leaf != "weight":
        shape = (*kernel, 1, outputs, inputs)
        found["transpose_kernel"] = (mine, b.view(shape, (size, size + 2, size + 1, *range(size))))
    if b.shape == (groups * outputs, inputs, *kernel) and b.leaf not in INPUT_FIRST:
        found["output first"] = (mine, b.view((groups, outputs, inputs, *kernel), (0, 2, 1, *axes), flip=size))
    return found


def _norm(torch: Unit, jax: Unit, a: Slot, b: Slot) -> dict[str, Views]:
    return _same(a, b)


def _any(torch: Unit, jax: Unit, a: Slot, b: Slot) -> dict[str, Views]:
    """A tensor of an unknown kind: as it is, or transposed as a matrix or a convolution's kernel may be."""
    found = _same(a, b)
    # Of equal names a square matrix is taken as it is. Any other tells by its shape which way it is, and must not be
    # paired with a tensor of another name for its shape.
    if len(a.shape) == len(b.shape) == 2:
        may_be_turned = a.shape == b.shape[::-1] and (a.leaf != b.leaf or not found)
        return {**found, **({"input first": (a.view(), b.view(axes=(1, 0)))} if may_be_turned else {})}
    return found or _conv(torch, jax, a, b) if len(a.shape) > 2 else found


_WEIGHTS = {
    "linear": _linear,
    "conv": _conv,
    "transposed": _transposed,
    "embedding": _norm,
    "norm": _norm,
    "prelu": _norm,
}
