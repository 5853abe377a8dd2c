"""What the JAX side may compute in place of a layer: convolutions, norms, embeddings, dropout, recurrent layers."""

import itertools
import math
from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import Any

from compare.diagnosis.conventions.base import CONVOLUTIONS, DOCS, FLAX, TRANSPOSED, Alternative, says
from compare.diagnosis.conventions.padding import PADDING
from compare.diagnosis.conventions.settings import normalized
from compare.diagnosis.place import Place, named
from compare.diagnosis.rewriting import Call, Rewrite
from compare.verdict.fix import Code, source


def _biased_running_variance(call: Call) -> Any:
    running, before = call["running_var"], call["running_var"].clone()
    output = call.run()
    count = call.input.numel() // call.input.shape[1]
    # running = (1 - m) before + m v n / (n - 1), of which `fresh` is the last term: times (n - 1) / n it
    # is m v.
    fresh = running - (1 - call["momentum"]) * before
    # As data: autograd keeps the statistics for the backward pass, which does not read them in training.
    running.data.copy_((1 - call["momentum"]) * before + fresh * (count - 1) / count)
    return output


def _unbiased(call: Call, place: Place) -> str:
    """No framework has a setting for it; the layer that the documentation has is nnx's."""
    layer = place.layer("norm")
    known = f"; {named(layer)} has no setting for it" if layer else ""
    where = ": docs/getting-started.md has a layer that does so" if place.style == "nnx" else ""
    return f"multiply the batch's variance by n / (n - 1) before it is averaged{known}{where}"


def _stale(call: Call) -> Any:
    mean, var = call["running_mean"].clone(), call["running_var"].clone()
    output = call.run()
    call["running_mean"].data.copy_(mean)
    call["running_var"].data.copy_(var)
    return output


def _keeps_statistics(call: Call) -> bool:
    return bool(call["training"]) and call["running_var"] is not None


def _kept(call: Call, place: Place) -> Code | str:
    del call
    if place.style == "nn":
        return Code("model.apply", ("variables", "x"), {"mutable": ["batch_stats"]})
    return "write the new running statistics back"


def _flipped(call: Call) -> Any:
    return call.run(weight=call["weight"].flip(tuple(range(2, call["weight"].dim()))))


def _unflip(call: Call, place: Place) -> Code:
    del place
    return Code(around=f"kernel[{', '.join(['::-1'] * (call['weight'].dim() - 2))}]")


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
        # torch.lstm takes all weights of all layers and directions in one list; each has its gates stacked
        # along the first axis.
        args[at] = [torch.cat([weight.chunk(len(gates))[block] for block in order]) for weight in args[at]]
        return replace(call, args=tuple(args)).run()

    return compute


def _gate_orders(function: str, gates: str) -> Iterator[Alternative]:
    for order in itertools.permutations(range(len(gates))):
        if list(order) != sorted(order):
            read = ", ".join(gates[order.index(block)] for block in range(len(gates)))
            yield Alternative(
                name="gate order",
                functions=(function,),
                compute=_gates(gates, order),
                jax_does=f"reads the blocks of the weights as the gates {read}, torch as {', '.join(gates)}",
                fix=says(f"take the gates in torch's order: {', '.join(gates)}"),
                source=f"{DOCS}torch.nn.{function.upper()}.html",
            )


def _normalized_with(epsilon: float) -> tuple[Alternative, Alternative]:
    """Normalize with an epsilon that is added, to the norm or to its square, where torch has a bound.

    An epsilon is far less than any norm, so that what it changes is too little to fit a number to: those that people
    write are tried.
    """

    def added(call: Call) -> Any:
        import torch

        return call.input / (torch.linalg.vector_norm(call.input, call["p"], call["dim"], keepdim=True) + epsilon)

    def within(call: Call) -> Any:
        return call.input / (call.input.square().sum(call["dim"], keepdim=True) + epsilon).sqrt()

    def alternative(compute: Rewrite, does: str, p: float | None = None) -> Alternative:
        return Alternative(
            name="epsilon",
            functions=("normalize",),
            compute=compute,
            jax_does=f"{does} and not by the larger of norm and eps",
            fix=normalized,
            source=f"{DOCS}torch.nn.functional.normalize.html",
            applies=lambda call: p is None or call["p"] == p,
        )

    return (
        alternative(added, f"divides by the norm + {epsilon:g}"),
        alternative(within, f"divides by the square root of the sum of squares + {epsilon:g}", 2),
    )


LAYERS = (
    *_gate_orders("lstm", "ifgo"),
    *_gate_orders("gru", "rzn"),
    Alternative(
        name="channels last",
        functions=CONVOLUTIONS,
        compute=lambda call: call.on(call.input.movedim(-1, 1)),
        jax_does="takes the last axis as the channels",
        fix=says("give the JAX side channels last: batch=lambda batch: (np.moveaxis(batch[0], 1, -1), batch[1])"),
        source=f"{FLAX}linear.html",
        # Otherwise the shapes would not fit, and the program would not run.
        applies=lambda call: call.input.shape[1] == call.input.shape[-1],
    ),
    # Any bound below all norms gives the same, so that no number can be fitted.
    Alternative(
        name="epsilon",
        functions=("normalize",),
        compute=lambda call: call.run(eps=0.0),
        jax_does="divides by the norm itself, where it is below the eps by which torch divides",
        fix=normalized,
        source=f"{DOCS}torch.nn.functional.normalize.html",
    ),
    *itertools.chain(*map(_normalized_with, (1e-12, 1e-10, 1e-8, 1e-7, 1e-6, 1e-5, 1e-4, 1e-3))),
    *PADDING,
    Alternative(
        name="flipped kernel",
        functions=(*CONVOLUTIONS, *TRANSPOSED),
        compute=_flipped,
        jax_does="has the kernel flipped in space",
        fix=_unflip,
        source="https://github.com/google/flax/issues/3137",
    ),
    Alternative(
        name="transposed weight",
        functions=("linear", *CONVOLUTIONS),
        compute=_swapped_axes,
        jax_does="has the weight transposed",
        fix=says("transpose the weight when it is copied: torch's linear weight is (out, in), Flax's kernel (in, out)"),
        source=f"{DOCS}torch.nn.Linear.html",
        applies=_square,
    ),
    Alternative(
        name="biased running variance",
        functions=("batch_norm",),
        compute=_biased_running_variance,
        jax_does="keeps the biased variance, divided by n, where torch's is divided by n - 1",
        fix=_unbiased,
        source="https://github.com/pytorch/pytorch/issues/77427",
        applies=_keeps_statistics,
    ),
    Alternative(
        name="stale statistics",
        functions=("batch_norm",),
        compute=_stale,
        jax_does="does not keep the new running statistics",
        fix=_kept,
        source=f"{FLAX}normalization.html",
        applies=_keeps_statistics,
    ),
    Alternative(
        name="scaled embedding",
        functions=("embedding",),
        compute=_scaled_embedding,
        jax_does="multiplies the embedding by sqrt(features)",
        fix=says("leave out the factor sqrt(features)"),
        source=f"{DOCS}torch.nn.Embedding.html",
    ),
    Alternative(
        name="dropout not scaled",
        functions=("dropout", "dropout1d", "dropout2d", "dropout3d"),
        compute=lambda call: call.run() * (1 - call["p"]),
        jax_does="does not scale what dropout keeps, where torch divides it by 1 - p",
        fix=lambda call, place: Code(around=f"y / {source(round(1 - call['p'], 15))}"),
        source=f"{DOCS}torch.nn.Dropout.html",
        applies=lambda call: bool(call["training"]) and 0 < call["p"] < 1,
    ),
    Alternative(
        name="padding row",
        functions=("embedding",),
        compute=_padding_embedded,
        jax_does="gives zeros for the padding index",
        fix=says("look the padding index up like any other: torch zeroes that row only at the start"),
        source=f"{DOCS}torch.nn.Embedding.html",
    ),
)
