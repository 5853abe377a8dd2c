"""How the JAX side may pad convolutions, transposed convolutions and pools.

XLA's "SAME" pads as much as the output's size needs, with an odd element at the end; torch pads both ends equally.
"""

import math
from collections.abc import Callable, Iterator, Sequence
from typing import Any

from compare.diagnosis.conventions.base import CONVOLUTIONS, DOCS, FLAX, TRANSPOSED, Alternative
from compare.diagnosis.place import Place
from compare.diagnosis.rewriting import Call, Rewrite
from compare.verdict.fix import Code

MAX_POOLS = ("max_pool1d", "max_pool2d", "max_pool3d")

AVERAGE_POOLS = ("avg_pool1d", "avg_pool2d", "avg_pool3d")

Pads = list[tuple[int, int]]
"""Before and after, for each axis of space."""


def _at(value: Any, axis: int) -> int:
    if not isinstance(value, tuple | list):
        return int(value)
    return int(value[axis] if len(value) > 1 else value[0])


def _size(call: Call) -> tuple[int, ...]:
    """Return the kernel's size of a convolution or a pool."""
    if "weight" in call:
        return tuple(call["weight"].shape[2:])
    return tuple(_at(call["kernel_size"], axis) for axis in range(int(call.name[-2])))


def _stride(call: Call, axis: int) -> int:
    stride = call["stride"]
    return _at(call["kernel_size"] if stride is None or stride == [] else stride, axis)


def _dilation(call: Call, axis: int) -> int:
    return _at(call["dilation"], axis) if "dilation" in call else 1


def _same(call: Call) -> Pads:
    pads = []
    for axis, kernel in enumerate(_size(call)):
        size, stride = call.input.shape[2 + axis], _stride(call, axis)
        reach = (kernel - 1) * _dilation(call, axis) + 1
        # XLA's definition (https://openxla.org/xla/operation_semantics#conv_convolution): the output has
        # ceil(size / stride) elements, and the padding is what the last window lacks.
        total = max((math.ceil(size / stride) - 1) * stride + reach - size, 0)
        pads.append((total // 2, total - total // 2))
    return pads


def own_pads(call: Call) -> Pads:
    """Return torch's padding, with what ceil_mode adds at the end."""
    pads = []
    for axis, kernel in enumerate(_size(call)):
        pad, stride = _at(call["padding"], axis), _stride(call, axis)
        reach, extra = (kernel - 1) * _dilation(call, axis) + 1, 0
        if call.arguments.get("ceil_mode"):
            space = call.input.shape[2 + axis] + 2 * pad - reach
            count = math.ceil(space / stride)
            # torch drops a last window that would start in the padding behind the input.
            count -= count * stride >= call.input.shape[2 + axis] + pad
            extra = max(count * stride - space, 0)
        pads.append((pad, pad + extra))
    return pads


def _padded(pads: Callable[[Call], Pads], value: float) -> Rewrite:
    """Pad by hand, and call the function without any padding."""

    def compute(call: Call) -> Any:
        from torch.nn import functional

        flat = [amount for pair in reversed(pads(call)) for amount in pair]
        return call.run(**{_first(call): functional.pad(call.input, flat, value=value), "padding": 0})

    return compute


def _wrapped(mode: str) -> Rewrite:
    """Pad by elements of the input, as Flax's convolutions do, and call the function without any padding."""

    def compute(call: Call) -> Any:
        from torch.nn import functional

        flat: list[int] = []
        for axis in reversed(range(len(_size(call)))):
            reach = (_size(call)[axis] - 1) * _dilation(call, axis)
            flat += [reach // 2, reach - reach // 2]
        return call.run(**{_first(call): functional.pad(call.input, flat, mode=mode), "padding": 0})

    return compute


def _causal(call: Call) -> Pads:
    return [((_size(call)[0] - 1) * _dilation(call, 0), 0)]


def other_ends(call: Call) -> Iterator[list[int]]:
    """Yield what `torch.nn.functional.pad` may add at the other ends of its axes, as much in all as it adds now."""
    now = list(call["pad"])
    totals = [before + after for before, after in zip(now[::2], now[1::2], strict=True)]
    if min(now) < 0:
        return
    halves = [total // 2 for total in totals]
    larger = [total - half for total, half in zip(totals, halves, strict=True)]
    for starts in (halves, larger, totals, [0] * len(totals)):
        other = [each for start, total in zip(starts, totals, strict=True) for each in (start, total - start)]
        if other != now:
            yield other


def other_ends_fix(call: Call, place: Place) -> Code | None:
    """Write torch's padding of the convolution that follows: torch's last axis comes first in `pad`."""
    pads = list(zip(call["pad"][::2], call["pad"][1::2], strict=True))[::-1]
    space = call.input.ndim - 2
    if call["mode"] != "constant" or len(pads) > space:
        return None
    return place.setting("conv", ((0, 0),) * (space - len(pads)) + tuple(pads), "padding")


_DILATIONS: tuple[tuple[str, Callable[[int], int]], ...] = (
    ("no dilation", lambda own: 1),
    ("half of torch's dilation", lambda own: own // 2),
    ("twice torch's dilation", lambda own: 2 * own),
    ("a dilation one smaller than torch's", lambda own: own - 1),
    ("a dilation one larger than torch's", lambda own: own + 1),
)
"""Other dilations, of torch's own."""


def _dilated(name: str, other: Callable[[int], int], *, causal: bool) -> Alternative:
    """Compute a dilated convolution with another dilation, and a padding that gives an output of the same size."""

    def compute(call: Call) -> Any:
        from torch.nn import functional

        flat: list[int] = []
        for axis in reversed(range(len(_size(call)))):
            pad, own = _at(call["padding"], axis), _dilation(call, axis)
            more = (_size(call)[axis] - 1) * (other(own) - own)
            before = more if causal else more // 2
            flat += [pad + before, pad + more - before]  # a negative amount cuts off, as what a causal padding added
        padded = functional.pad(call.input, flat)
        return call.run(**{_first(call): padded, "padding": 0, "dilation": [other(own) for own in _dilations(call)]})

    def applies(call: Call) -> bool:
        known = not isinstance(call["padding"], str) and max(_size(call)) > 1
        return known and min(_dilations(call)) > 1

    return Alternative(
        name="dilation",
        functions=("conv1d",) if causal else CONVOLUTIONS,
        compute=compute,
        jax_does=f"has {name}, and the padding that goes with it",
        fix=_dilation_fix,
        source=f"{FLAX}linear.html",
        applies=applies,
    )


def _dilation_fix(call: Call, place: Place) -> Code | None:
    return place.setting("conv", _dilations(call), "kernel_dilation", "dilation")


def _dilations(call: Call) -> tuple[int, ...]:
    return tuple(_dilation(call, axis) for axis in range(len(_size(call))))


def _shorter_than_input(call: Call) -> bool:
    """Return whether the input has enough elements to pad with."""
    reach = [(size - 1) * _dilation(call, axis) for axis, size in enumerate(_size(call))]
    return all(0 < each < size for each, size in zip(reach, call.input.shape[2:], strict=True))


def _first(call: Call) -> str:
    return next(iter(call.signature.parameters))


def convolution_fix(call: Call, place: Place) -> Code | None:
    """Write torch's padding of a convolution, without what it adds to the output and torch cuts off later."""
    if isinstance(call["padding"], str):
        return None
    pads = tuple(own_pads(call))
    if cut := place.cut[-len(pads) :]:
        ends = ((start * _stride(call, axis), end * _stride(call, axis)) for axis, (start, end) in enumerate(cut))
        pads = tuple((pad[0] - end[0], pad[1] - end[1]) for pad, end in zip(pads, ends, strict=True))
        if min(map(min, pads)) < 0:
            return None
    layer = place.setting("conv", pads, "padding")
    return layer or Code("jax.lax.conv_general_dilated", keywords={"padding": pads})


def pool_fix(call: Call, place: Place) -> Code | None:
    """Write torch's padding of a pool."""
    pads = tuple(own_pads(call))
    name = "max_pool" if call.name in MAX_POOLS else "avg_pool"
    if place.style in ("nnx", "nn"):
        return Code(f"{place.style}.{name}", keywords={"padding": pads})
    return None


def _crop(call: Call, pads: Callable[[int, int, int], tuple[int, int]]) -> Any:
    """Compute a transposed convolution with padding as `jax.lax.conv_transpose` takes it.

    JAX pads the input, with stride - 1 zeros between its elements, by (a, b), and convolves. Without padding torch
    gives what a = b = reach - 1 does. Any other padding cuts off reach - 1 - a at the start and reach - 1 - b at the
    end, or where this is negative adds what no element of the input reaches: zeros.

    Args:
        call: Of torch's function.
        pads: Gives (a, b) for an axis, its reach and its stride.

    """
    from torch.nn import functional

    cut: list[int] = []
    for axis in reversed(range(len(_size(call)))):
        reach = (_size(call)[axis] - 1) * _dilation(call, axis) + 1
        before, after = pads(axis, reach, _stride(call, axis))
        # torch.nn.functional.pad takes the last axis first, and negative amounts cut off.
        cut += [before - reach + 1, after - reach + 1]
    bias = call["bias"]
    whole = functional.pad(call.run(padding=0, output_padding=0, bias=None), cut)
    return whole if bias is None else whole + bias.reshape(-1, *[1] * len(_size(call)))


def _transposed_same(axis: int, reach: int, stride: int) -> tuple[int, int]:
    del axis
    total = reach + stride - 2
    # jax/_src/lax/convolution.py, _conv_transpose_padding: the output of "SAME" is stride times as long
    # as the input, that of "VALID" longer by max(reach - stride, 0).
    before = reach - 1 if stride > reach - 1 else math.ceil(total / 2)
    return before, total - before


def _transposed_valid(axis: int, reach: int, stride: int) -> tuple[int, int]:
    del axis
    return reach - 1, reach + stride - 2 + max(reach - stride, 0) - (reach - 1)


def _as_torch_writes(call: Call) -> Any:
    return _crop(call, lambda axis, reach, stride: (_at(call["padding"], axis),) * 2)


def _without_output_padding(call: Call) -> Any:
    return call.run(output_padding=0)


def _needs_output_padding(call: Call) -> bool:
    return any(_at(call["output_padding"], axis) for axis in range(len(_size(call))))


def _transposed_fix(call: Call, place: Place) -> Code | None:
    """Write torch's `padding` and `output_padding` as the padding of a transposed convolution of JAX."""
    pads: list[tuple[int, int]] = []
    for axis, size in enumerate(_size(call)):
        reach = (size - 1) * _dilation(call, axis) + 1
        start = reach - 1 - _at(call["padding"], axis)
        pads.append((start, start + _at(call["output_padding"], axis)))
    layer = place.setting("transposed", tuple(pads), "padding")
    if layer is None or layer.call.startswith("eqx"):  # which has output_padding of its own
        return None if layer else Code("jax.lax.conv_transpose", keywords={"padding": tuple(pads)})
    return layer


def _transposed(compute: Rewrite, does: str, applies: Callable[[Call], bool] = lambda call: True) -> Alternative:
    return Alternative(
        name="padding",
        functions=TRANSPOSED,
        compute=compute,
        jax_does=does,
        fix=_transposed_fix,
        source="https://github.com/google/flax/issues/1872",
        applies=applies,
    )


def _pools(names: Sequence[str], compute: Rewrite, name: str, does: str) -> Alternative:
    return Alternative(
        name=name,
        functions=tuple(names),
        compute=compute,
        jax_does=does,
        fix=pool_fix,
        source=f"{DOCS}torch.nn.MaxPool2d.html",
    )


_SAME = 'pads as "SAME" does: as much as the output\'s size needs, with an odd element at the end'

PADDING = (
    Alternative(
        name="padding",
        functions=CONVOLUTIONS,
        compute=_padded(_same, 0.0),
        jax_does=_SAME,
        fix=convolution_fix,
        source="https://github.com/google/flax/issues/963",
    ),
    *(
        Alternative(
            name="padding",
            functions=CONVOLUTIONS,
            compute=_wrapped(mode),
            jax_does=does,
            fix=convolution_fix,
            source=f"{FLAX}linear.html",
            applies=_shorter_than_input,
        )
        for mode, does in (
            ("circular", 'pads as "CIRCULAR" does: with the other end of the input'),
            ("reflect", 'pads as "REFLECT" does: with the input, mirrored at its ends'),
        )
    ),
    Alternative(
        name="padding",
        functions=("conv1d",),
        compute=_padded(_causal, 0.0),
        jax_does='pads as "CAUSAL" does: at the start alone',
        fix=convolution_fix,
        source=f"{FLAX}linear.html",
    ),
    *(_dilated(name, other, causal=causal) for causal in (False, True) for name, other in _DILATIONS),
    _transposed(
        lambda call: _crop(call, _transposed_same), 'pads as "SAME" does: the output is stride times the input'
    ),
    _transposed(lambda call: _crop(call, _transposed_valid), 'pads as "VALID" does'),
    _transposed(_as_torch_writes, "pads its input by torch's padding, which is what torch cuts off the output"),
    _transposed(_without_output_padding, "has no output_padding", _needs_output_padding),
    _pools(MAX_POOLS, _padded(_same, -math.inf), "padding", _SAME),
    _pools(AVERAGE_POOLS, _padded(_same, 0.0), "padding", _SAME),
    _pools(MAX_POOLS, _padded(own_pads, 0.0), "padding value", "pads with zeros, torch with minus infinity"),
)
