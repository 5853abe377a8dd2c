"""Other values of arguments that are no numbers to be fitted."""

from collections.abc import Callable, Iterator
from typing import Any

from compare.diagnosis.conventions.base import CONVOLUTIONS, DOCS, FLAX, JAX, LOSSES, NORMS, TRANSPOSED, Variants
from compare.diagnosis.rewriting import Call


def _other_axes(call: Call) -> Iterator[int]:
    axes, now = call.input.dim(), call["dim"]
    return (axis for axis in range(axes) if now is None or axis != now % axes)


def _others(*values: Any) -> Callable[[Call], Iterator[Any]]:
    return lambda call: iter(values)


def _divisors(call: Call) -> Iterator[int]:
    channels = call.input.shape[1]
    return (n for n in range(1, channels + 1) if channels % n == 0)


def _inverted(name: str) -> Callable[[Call], Iterator[Any]]:
    def values(call: Call) -> Iterator[Any]:
        import torch

        mask = call[name]
        if isinstance(mask, torch.Tensor) and mask.dtype == torch.bool:
            yield ~mask
        elif isinstance(mask, torch.Tensor) and torch.isinf(mask).any():  # a boolean one, by now to be added
            yield torch.zeros_like(mask).masked_fill(mask == 0, -torch.inf)
        if isinstance(mask, torch.Tensor):
            yield None

    return values


def _paddings(call: Call) -> Iterator[Any]:
    return iter(range(max(call["weight"].shape[2:])))


VARIANTS = (
    Variants(
        "padding",
        CONVOLUTIONS,
        "padding",
        _paddings,
        "{}(..., padding={pads})",
        "https://github.com/google/flax/issues/963",
    ),
    Variants(
        "number of groups",
        ("group_norm",),
        "num_groups",
        _divisors,
        "{}(..., num_groups={num_groups})",
        f"{FLAX}normalization.html",
    ),
    Variants(
        "axis",
        ("softmax", "log_softmax"),
        "dim",
        _other_axes,
        "jax.nn.{function}(x, axis=...) over torch's dim={dim}",
        f"{JAX}jax.nn.softmax.html",
    ),
    Variants(
        "causal mask",
        ("scaled_dot_product_attention",),
        "is_causal",
        _others(True, False),
        "{}(..., is_causal={is_causal})",
        f"{JAX}jax.nn.dot_product_attention.html",
    ),
    Variants(
        "attention mask",
        ("scaled_dot_product_attention", "multi_head_attention_forward"),
        "attn_mask",
        _inverted("attn_mask"),
        "give {} the mask with True where it may attend: torch.nn.MultiheadAttention's True means that it may not",
        f"{DOCS}torch.nn.MultiheadAttention.html",
    ),
    Variants(
        "padding mask",
        ("multi_head_attention_forward",),
        "key_padding_mask",
        _inverted("key_padding_mask"),
        "give {} the mask with True where there is a token: torch's key_padding_mask is True where there is none",
        f"{DOCS}torch.nn.MultiheadAttention.html",
    ),
    Variants(
        "padding counted in the average",
        ("avg_pool1d", "avg_pool2d", "avg_pool3d"),
        "count_include_pad",
        _others(True, False),
        "nnx.avg_pool(..., count_include_pad={count_include_pad})",
        f"{FLAX}linear.html",
    ),
    Variants(
        "ceil mode",
        ("avg_pool1d", "avg_pool2d", "avg_pool3d", "max_pool1d", "max_pool2d", "max_pool3d"),
        "ceil_mode",
        _others(True, False),
        "pad at the end by what ceil_mode={ceil_mode} adds",
        f"{DOCS}torch.nn.MaxPool2d.html",
    ),
    Variants(
        "aligned corners",
        ("interpolate",),
        "align_corners",
        _others(True, False),
        "resize as align_corners={align_corners} does; jax.image.resize has half-pixel centres",
        f"{JAX}jax.image.resize.html",
    ),
    Variants(
        "antialiasing",
        ("interpolate",),
        "antialias",
        _others(True, False),
        "jax.image.resize(..., antialias={antialias})",
        f"{JAX}jax.image.resize.html",
    ),
    Variants(
        "mode of a normalization",
        ("batch_norm",),
        "training",
        _others(True, False),
        "{}(..., use_running_average={evaluating})",
        f"{FLAX}normalization.html",
    ),
    Variants(
        "dropout on one side",
        ("dropout", "dropout1d", "dropout2d", "dropout3d"),
        "training",
        _others(True, False),
        "{}(..., deterministic={evaluating})",
        f"{DOCS}torch.nn.Dropout.html",
    ),
    Variants(
        "reduction",
        LOSSES,
        "reduction",
        _others("mean", "sum"),
        'reduce the loss as torch\'s reduction="{reduction}" does',
        f"{DOCS}torch.nn.MSELoss.html",
    ),
    Variants(
        "ignored labels",
        ("cross_entropy", "nll_loss"),
        "ignore_index",
        _others(-1, 0, -(2**31)),
        "leave out labels equal to {ignore_index} from the sum and from the count",
        f"{DOCS}torch.nn.CrossEntropyLoss.html",
    ),
    Variants(
        "class weights",
        ("cross_entropy", "nll_loss", "binary_cross_entropy", "binary_cross_entropy_with_logits"),
        "weight",
        _others(None),
        "weigh the classes as torch does, and divide by the sum of the weights",
        f"{DOCS}torch.nn.CrossEntropyLoss.html",
    ),
    Variants(
        "weight of positives",
        ("binary_cross_entropy_with_logits",),
        "pos_weight",
        _others(None),
        "multiply the positive term by pos_weight",
        f"{DOCS}torch.nn.BCEWithLogitsLoss.html",
    ),
    Variants(
        "bias left out",
        (*CONVOLUTIONS, *TRANSPOSED, "linear", "layer_norm", "group_norm", "batch_norm"),
        "bias",
        _others(None),
        "add the bias: {}(..., use_bias=True)",
        f"{FLAX}linear.html",
    ),
    Variants(
        "scale left out",
        NORMS,
        "weight",
        _others(None),
        "multiply by the weight: {}(..., use_scale=True)",
        f"{FLAX}normalization.html",
    ),
    Variants(
        "logarithm of the target",
        ("kl_div",),
        "log_target",
        _others(True, False),
        "take the target as log_target={log_target} does",
        f"{DOCS}torch.nn.KLDivLoss.html",
    ),
)
