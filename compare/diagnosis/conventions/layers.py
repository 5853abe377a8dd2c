"""What the JAX side may compute in place of a layer."""

import itertools
import math
from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import Any

from compare.diagnosis.conventions.base import CONVOLUTIONS, DOCS, FLAX, TRANSPOSED, Alternative
from compare.diagnosis.rewriting import Call, Rewrite


def _same_padding(call: Call) -> Any:
    """Pad as XLA's "SAME" does: as much as the output's size asks for, the odd one at the end."""
    from torch.nn import functional

    spatial = call["weight"].shape[2:]
    pads: list[int] = []
    for axis in range(len(spatial) - 1, -1, -1):
        size, stride = call.input.shape[2 + axis], _at(call["stride"], axis)
        reach = (spatial[axis] - 1) * _at(call["dilation"], axis) + 1
        total = max((math.ceil(size / stride) - 1) * stride + reach - size, 0)
        pads += [total // 2, total - total // 2]
    return call.run(input=functional.pad(call.input, pads), padding=0)


def _at(value: Any, axis: int) -> int:
    if not isinstance(value, tuple | list):
        return int(value)
    return int(value[axis] if len(value) > 1 else value[0])


def _biased_running_variance(call: Call) -> Any:
    running, before = call["running_var"], call["running_var"].clone()
    output = call.run()
    count = call.input.numel() // call.input.shape[1]
    fresh = running - (1 - call["momentum"]) * before
    running.copy_((1 - call["momentum"]) * before + fresh * (count - 1) / count)
    return output


def _stale(call: Call) -> Any:
    mean, var = call["running_mean"].clone(), call["running_var"].clone()
    output = call.run()
    call["running_mean"].copy_(mean)
    call["running_var"].copy_(var)
    return output


def _keeps_statistics(call: Call) -> bool:
    return bool(call["training"]) and call["running_var"] is not None


def _zero_padding(call: Call) -> Any:
    from torch.nn import functional

    dimensions = int(call.name[len("max_pool")])
    pads = [p for axis in range(dimensions - 1, -1, -1) for p in [_at(call["padding"], axis)] * 2]
    return call.run(input=functional.pad(call.input, pads), padding=0)


def _flipped(call: Call) -> Any:
    return call.run(weight=call["weight"].flip(tuple(range(2, call["weight"].dim()))))


def _square(call: Call) -> bool:
    weight = call["weight"]
    return weight.dim() >= 2 and weight.shape[-1] == weight.shape[-2] > 1


def _swapped_axes(call: Call) -> Any:
    return call.run(weight=call["weight"].transpose(-1, -2))


def _scaled_embedding(call: Call) -> Any:
    return call.run() * math.sqrt(call["weight"].shape[-1])


def _padding_embedded(call: Call) -> Any:
    return call.run() * (call.input != (call["padding_idx"] or 0)).unsqueeze(-1)


def _gates(gates: str, order: Sequence[int]) -> Rewrite:
    def compute(call: Call) -> Any:
        import torch

        args = list(call.args)
        at = next(position for position, value in enumerate(args) if isinstance(value, list))
        args[at] = [torch.cat([weight.chunk(len(gates))[block] for block in order]) for weight in args[at]]
        return replace(call, args=tuple(args)).run()

    return compute


def _gate_orders(function: str, gates: str) -> Iterator[Alternative]:
    for order in itertools.permutations(range(len(gates))):
        if list(order) != sorted(order):
            read = ", ".join(gates[order.index(block)] for block in range(len(gates)))
            yield Alternative(
                "gate order",
                (function,),
                _gates(gates, order),
                f"reads the blocks of the weights as the gates {read}, torch as {', '.join(gates)}",
                f"take the gates in torch's order: {', '.join(gates)}",
                f"{DOCS}torch.nn.{function.upper()}.html",
            )


LAYERS = (
    *_gate_orders("lstm", "ifgo"),
    *_gate_orders("gru", "rzn"),
    Alternative(
        "channels last",
        CONVOLUTIONS,
        lambda call: call.on(call.input.movedim(-1, 1)),
        "takes the last axis for the channels",
        "give the JAX side channels last: batch=lambda batch: (np.moveaxis(batch[0], 1, -1), batch[1])",
        f"{FLAX}linear.html",
        lambda call: call.input.shape[1] == call.input.shape[-1],
    ),
    Alternative(
        "padding",
        CONVOLUTIONS,
        _same_padding,
        'pads as "SAME" does: as much as the output\'s size asks for, the odd one at the end',
        "{}(..., padding={pads})",
        "https://github.com/google/flax/issues/963",
    ),
    Alternative(
        "flipped kernel",
        (*CONVOLUTIONS, *TRANSPOSED),
        _flipped,
        "has the kernel flipped in space",
        "flip the kernel in space, kernel[::-1, ::-1]; or nnx.ConvTranspose(..., transpose_kernel=True)",
        "https://github.com/google/flax/issues/3137",
    ),
    Alternative(
        "transposed weight",
        ("linear", *CONVOLUTIONS),
        _swapped_axes,
        "has the weight transposed",
        "transpose the weight when it is copied: torch's linear weight is (out, in), Flax's kernel (in, out)",
        f"{DOCS}torch.nn.Linear.html",
        _square,
    ),
    Alternative(
        "biased running variance",
        ("batch_norm",),
        _biased_running_variance,
        "keeps the biased variance, divided by n, where torch's is divided by n - 1",
        "multiply the batch's variance by n / (n - 1) before it is averaged; nnx.BatchNorm has no setting for it: "
        "docs/getting-started.md has a layer that does so",
        "https://github.com/pytorch/pytorch/issues/77427",
        _keeps_statistics,
    ),
    Alternative(
        "stale statistics",
        ("batch_norm",),
        _stale,
        "does not keep the new running statistics",
        "write the new batch_stats back: mutable=['batch_stats'] in Linen, use_running_average=False in nnx",
        f"{FLAX}normalization.html",
        _keeps_statistics,
    ),
    Alternative(
        "padding value",
        ("max_pool1d", "max_pool2d", "max_pool3d"),
        _zero_padding,
        "pads with zeros",
        "pad with -inf: nnx.max_pool(..., padding=((p, p), ...)) does",
        f"{DOCS}torch.nn.MaxPool2d.html",
    ),
    Alternative(
        "scaled embedding",
        ("embedding",),
        _scaled_embedding,
        "multiplies the embedding by sqrt(features)",
        "leave out the factor sqrt(features)",
        f"{DOCS}torch.nn.Embedding.html",
    ),
    Alternative(
        "padding row",
        ("embedding",),
        _padding_embedded,
        "gives zeros for the padding index",
        "look the padding index up like any other: torch zeroes that row only at the start",
        f"{DOCS}torch.nn.Embedding.html",
    ),
)
