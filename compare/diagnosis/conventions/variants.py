"""Other values of arguments that are chosen from a list, such as a mode or an axis, and not fitted."""

from collections.abc import Callable, Iterator
from typing import Any

from compare.diagnosis.conventions import resampling
from compare.diagnosis.conventions.axes import axis_fix, their_axis
from compare.diagnosis.conventions.base import (
    CONVOLUTIONS,
    DOCS,
    DROPOUT,
    FLAX,
    JAX,
    LOSSES,
    NORMS,
    TRANSPOSED,
    Fix,
    Variants,
    says,
    sets,
)
from compare.diagnosis.conventions.loss_code import loss_code
from compare.diagnosis.conventions.padding import (
    AVERAGE_POOLS,
    MAX_POOLS,
    convolution_fix,
    other_ends,
    other_ends_fix,
    pool_fix,
)
from compare.diagnosis.place import Place
from compare.diagnosis.rewriting import Call
from compare.verdict.fix import Code, source

ATTENTION = f"{DOCS}torch.nn.MultiheadAttention.html"

MODE = "mode of a normalization"
"""The name of the cause where a norm is in training mode on one side and in evaluation mode on the other."""


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
            # torch.nn.MultiheadAttention's True forbids attention, scaled_dot_product_attention's and Flax's True
            # allows it.
            yield ~mask
        elif isinstance(mask, torch.Tensor) and torch.isinf(mask).any():  # a boolean one, by now to be added
            yield torch.zeros_like(mask).masked_fill(mask == 0, -torch.inf)
        if isinstance(mask, torch.Tensor):
            yield None

    return values


def _stride(call: Call, place: Place) -> Code | None:
    stride = call["kernel_size"] if call["stride"] in (None, []) else call["stride"]
    size = int(call.name[-2])
    strides = (stride,) * size if isinstance(stride, int) else tuple(stride)
    name = "max_pool" if call.name in MAX_POOLS else "avg_pool"
    return Code(f"{place.style}.{name}", keywords={"strides": strides}) if place.style in ("nnx", "nn") else None


def _mask(call: Call, place: Place) -> str:
    del place
    if call.name == "multi_head_attention_forward":
        return "give the attention ~attn_mask, True where it may attend: torch.nn.MultiheadAttention's True forbids it"
    return "give the attention the mask that torch's has, with True where it may attend"


def _counted(call: Call, place: Place) -> Code | None:
    if place.style not in ("nnx", "nn"):
        return None
    return Code(f"{place.style}.avg_pool", keywords={"count_include_pad": call["count_include_pad"]})


def _normalizing(call: Call, place: Place) -> Code | str:
    """Run a norm in torch's mode; of a class of the user's, which argument has it is not known."""
    mode, other = ("training", "train") if call["training"] else ("evaluation", "eval")
    return place.setting("norm", not call["training"], "use_running_average") or (
        f"run this norm in {mode} mode on the JAX side, as model.{other}() does"
    )


def _dropped(call: Call, place: Place) -> Code | None:
    """Write a dropout that drops as torch's does, or a layer that the JAX side lacks."""
    if layer := place.setting("dropout", not call["training"], "deterministic"):
        return layer
    if not call["training"] or place.layer("dropout") or place.style not in ("nnx", "nn"):
        return None
    random = "rngs=rngs" if place.style == "nnx" else "deterministic=False"
    return Code(f"{place.style}.Dropout", (source(call["p"]), random), around="{}(x)")


def _left_out(name: str) -> Fix:
    def fix(call: Call, place: Place) -> Code | None:
        kinds = {"linear": "linear", **dict.fromkeys(CONVOLUTIONS, "conv"), **dict.fromkeys(TRANSPOSED, "transposed")}
        return place.setting(kinds.get(call.name, "norm"), True, name)

    return fix


def _padded(call: Call, place: Place) -> Code | None:
    del place
    mode = {"constant": "constant", "reflect": "reflect", "replicate": "edge", "circular": "wrap"}.get(call["mode"])
    return Code("jnp.pad", keywords={"mode": mode}) if mode else None


VARIANTS = (
    Variants(
        name="number of heads",
        functions=("multi_head_attention_forward",),
        argument="num_heads",
        values=lambda call: (n for n in range(1, 65) if call.input.shape[-1] % n == 0 and n != call["num_heads"]),
        fix=sets("attention", "num_heads", "num_heads"),
        source=f"{FLAX}attention.html",
    ),
    Variants(
        name="padding",
        functions=CONVOLUTIONS,
        argument="padding",
        values=lambda call: iter(range(max(call["weight"].shape[2:]))),
        fix=convolution_fix,
        source="https://github.com/google/flax/issues/963",
    ),
    Variants(
        name="padding",
        functions=(*MAX_POOLS, *AVERAGE_POOLS),
        argument="padding",
        values=_others(0, 1),
        fix=pool_fix,
        source=f"{FLAX}linear.html",
    ),
    Variants(
        name="stride",
        functions=(*MAX_POOLS, *AVERAGE_POOLS),
        argument="stride",
        values=_others(1, 2),
        fix=_stride,
        source=f"{FLAX}linear.html",
    ),
    Variants(
        name="padding",
        functions=("pad",),
        argument="pad",
        values=other_ends,
        fix=other_ends_fix,
        source=f"{FLAX}linear.html",
    ),
    Variants(
        name="padding mode",
        functions=("pad",),
        argument="mode",
        values=_others("constant", "reflect", "replicate", "circular"),
        fix=_padded,
        source=f"{JAX}jax.numpy.pad.html",
    ),
    Variants(
        name="number of groups",
        functions=("group_norm",),
        argument="num_groups",
        values=_divisors,
        fix=sets("norm", "num_groups", "num_groups", "groups"),
        source=f"{FLAX}normalization.html",
    ),
    Variants(
        name="axis",
        functions=("softmax", "log_softmax"),
        argument="dim",
        values=_other_axes,
        fix=axis_fix,
        theirs=their_axis,
        source=f"{JAX}jax.nn.softmax.html",
    ),
    Variants(
        name="causal mask",
        functions=("scaled_dot_product_attention",),
        argument="is_causal",
        values=_others(True, False),
        fix=lambda call, place: Code("jax.nn.dot_product_attention", keywords={"is_causal": call["is_causal"]}),
        source=f"{JAX}jax.nn.dot_product_attention.html",
    ),
    Variants(
        name="attention mask",
        functions=("scaled_dot_product_attention", "multi_head_attention_forward"),
        argument="attn_mask",
        values=_inverted("attn_mask"),
        fix=_mask,
        source=ATTENTION,
    ),
    Variants(
        name="padding mask",
        functions=("multi_head_attention_forward",),
        argument="key_padding_mask",
        values=_inverted("key_padding_mask"),
        fix=says(
            "give the attention ~key_padding_mask, True where there is a token: torch's is True where there is none"
        ),
        source=ATTENTION,
    ),
    Variants(
        name="padding counted in the average",
        functions=AVERAGE_POOLS,
        argument="count_include_pad",
        values=_others(True, False),
        fix=_counted,
        source=f"{FLAX}linear.html",
    ),
    Variants(
        name="ceil mode",
        functions=(*AVERAGE_POOLS, *MAX_POOLS),
        argument="ceil_mode",
        values=_others(True, False),
        fix=lambda call, place: pool_fix(call, place) if call.name in MAX_POOLS else None,
        source=f"{DOCS}torch.nn.MaxPool2d.html",
    ),
    Variants(
        name="aligned corners",
        functions=("interpolate",),
        argument="align_corners",
        values=_others(True, False),
        fix=resampling.torchs_resize,
        source=f"{JAX}jax.image.resize.html",
    ),
    Variants(
        name="aligned corners",
        functions=("grid_sample",),
        argument="align_corners",
        values=_others(True, False),
        fix=resampling.read_at,
        source=resampling.SOURCE,
    ),
    Variants(
        name="aligned corners",
        functions=("affine_grid",),
        argument="align_corners",
        values=_others(True, False),
        fix=resampling.grid,
        source=f"{DOCS}torch.nn.functional.affine_grid.html",
    ),
    Variants(
        name="padding mode",
        functions=("grid_sample",),
        argument="padding_mode",
        values=_others("zeros", "border", "reflection"),
        fix=resampling.outside,
        source=resampling.SOURCE,
    ),
    Variants(
        name="interpolation",
        functions=("grid_sample",),
        argument="mode",
        values=_others("bilinear", "nearest", "bicubic"),
        fix=resampling.order,
        source=resampling.SOURCE,
    ),
    Variants(
        name=MODE,
        functions=("batch_norm",),
        argument="training",
        values=_others(True, False),
        fix=_normalizing,
        source=f"{FLAX}normalization.html",
    ),
    Variants(
        name=DROPOUT,
        functions=("dropout", "dropout1d", "dropout2d", "dropout3d"),
        argument="training",
        values=_others(True, False),
        fix=_dropped,
        source=f"{DOCS}torch.nn.Dropout.html",
    ),
    Variants(
        name="reduction",
        functions=LOSSES,
        argument="reduction",
        values=_others("mean", "sum"),
        fix=loss_code,
        source=f"{DOCS}torch.nn.MSELoss.html",
    ),
    Variants(
        name="ignored labels",
        functions=("cross_entropy", "nll_loss"),
        argument="ignore_index",
        values=_others(-1, 0, -(2**31)),
        fix=loss_code,
        source=f"{DOCS}torch.nn.CrossEntropyLoss.html",
    ),
    Variants(
        name="class weights",
        functions=("cross_entropy", "nll_loss", "binary_cross_entropy", "binary_cross_entropy_with_logits"),
        argument="weight",
        values=_others(None),
        fix=loss_code,
        source=f"{DOCS}torch.nn.CrossEntropyLoss.html",
    ),
    Variants(
        name="weight of positives",
        functions=("binary_cross_entropy_with_logits",),
        argument="pos_weight",
        values=_others(None),
        fix=loss_code,
        source=f"{DOCS}torch.nn.BCEWithLogitsLoss.html",
    ),
    Variants(
        name="bias left out",
        functions=(*CONVOLUTIONS, *TRANSPOSED, "linear", "layer_norm", "group_norm", "batch_norm"),
        argument="bias",
        values=_others(None),
        fix=_left_out("use_bias"),
        source=f"{FLAX}linear.html",
    ),
    Variants(
        name="scale left out",
        functions=NORMS,
        argument="weight",
        values=_others(None),
        fix=_left_out("use_scale"),
        source=f"{FLAX}normalization.html",
    ),
    Variants(
        name="logarithm of the target",
        functions=("kl_div",),
        argument="log_target",
        values=_others(True, False),
        fix=loss_code,
        source=f"{DOCS}torch.nn.KLDivLoss.html",
    ),
)
