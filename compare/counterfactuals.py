"""What the JAX side may do in place of a function of torch: the ways in which ports go wrong, as tables.

Each entry changes one call on the torch side. Where that brings the torch side to what the JAX side gives, in float64
and to rounding, it is the cause.
"""

import math
from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple

from compare.rewriting import Call, Rewrite

NORMS = ("layer_norm", "group_norm", "batch_norm", "instance_norm", "rms_norm")
CONVOLUTIONS = ("conv1d", "conv2d", "conv3d")
TRANSPOSED = ("conv_transpose1d", "conv_transpose2d", "conv_transpose3d")
LOSSES = (
    *("mse_loss", "l1_loss", "smooth_l1_loss", "huber_loss", "cross_entropy", "nll_loss", "kl_div"),
    *("binary_cross_entropy", "binary_cross_entropy_with_logits", "poisson_nll_loss", "ctc_loss"),
)
DOCS = "https://docs.pytorch.org/docs/stable/generated/"
FLAX = "https://flax.readthedocs.io/en/latest/api_reference/flax.nnx/nn/"
JAX = "https://docs.jax.dev/en/latest/_autosummary/"


class Setting(NamedTuple):
    """A number among the arguments of a function. What the JAX side has in its place is found by fitting."""

    name: str
    functions: tuple[str, ...]
    argument: str
    fix: Callable[[float], str]
    """What to write on the JAX side, for torch's value; "{}" is the layer or function there."""
    source: str
    default: Callable[[Call], float | None] = lambda call: None
    """What None stands for."""


def _argument(name: str) -> Callable[[float], str]:
    return lambda value: f"{{}}(..., {name}={value:g})"


SETTINGS = (
    Setting("epsilon", NORMS, "eps", _argument("epsilon"), f"{FLAX}normalization.html"),
    Setting(
        "momentum", ("batch_norm",), "momentum", lambda v: f"{{}}(..., momentum={1 - v:g})", f"{FLAX}normalization.html"
    ),
    Setting("slope", ("leaky_relu",), "negative_slope", _argument("negative_slope"), f"{JAX}jax.nn.leaky_relu.html"),
    Setting("alpha", ("elu", "celu"), "alpha", _argument("alpha"), f"{JAX}jax.nn.elu.html"),
    Setting(
        "beta", ("softplus",), "beta", lambda v: f"jax.nn.softplus({v:g} * x) / {v:g}", f"{JAX}jax.nn.softplus.html"
    ),
    Setting(
        "attention scale",
        ("scaled_dot_product_attention",),
        "scale",
        lambda v: f"{{}}: scale the scores by {v:g} = 1/sqrt(head_dim), once",
        f"{DOCS}torch.nn.functional.scaled_dot_product_attention.html",
        lambda call: 1 / math.sqrt(call.input.shape[-1]),
    ),
    Setting("dropout rate", ("dropout",), "p", _argument("rate"), f"{DOCS}torch.nn.Dropout.html"),
    Setting(
        "label smoothing",
        ("cross_entropy",),
        "label_smoothing",
        lambda v: f"optax.smooth_labels(labels, alpha={v:g}) before the cross-entropy",
        f"{DOCS}torch.nn.CrossEntropyLoss.html",
    ),
    Setting(
        "beta",
        ("smooth_l1_loss",),
        "beta",
        lambda v: f"optax.huber_loss(output, target, delta={v:g}) / {v:g}",
        f"{DOCS}torch.nn.SmoothL1Loss.html",
    ),
    Setting("delta", ("huber_loss",), "delta", _argument("delta"), f"{DOCS}torch.nn.HuberLoss.html"),
    Setting(
        "epsilon",
        ("normalize",),
        "eps",
        lambda v: f"x / jnp.maximum(jnp.linalg.norm(x, axis=..., keepdims=True), {v:g})",
        f"{DOCS}torch.nn.functional.normalize.html",
    ),
    Setting("epsilon", ("cosine_similarity",), "eps", _argument("epsilon"), f"{DOCS}torch.nn.CosineSimilarity.html"),
    Setting(
        "constant",
        ("mul", "rmul", "truediv", "div", "add", "radd", "sub", "pow"),
        "other",
        lambda v: f"{v:g} is torch's constant there",
        f"{DOCS}torch.mul.html",
    ),
)


class Alternative(NamedTuple):
    """Something else that the JAX side may compute in place of a function, or in place of its gradient."""

    name: str
    functions: tuple[str, ...]
    compute: Rewrite
    jax_does: str
    """As a clause: "pads as XLA's SAME does"."""
    fix: str
    """"{}" is the layer or function on the JAX side, and {name} an argument of torch's call."""
    source: str
    applies: Callable[[Call], bool] = lambda call: True
    gradient: bool = False
    """Whether it shows in the gradient alone."""


def _activations() -> dict[str, tuple[Callable[[Any], Any], str]]:
    """Give functions of one tensor, under the names of JAX: as torch computes it, and as JAX spells it."""
    import torch
    from torch.nn import functional

    return {
        "exact GELU": (functional.gelu, "jax.nn.gelu(x, approximate=False)"),
        "the tanh approximation of GELU": (
            lambda x: functional.gelu(x, approximate="tanh"),
            "jax.nn.gelu(x, approximate=True)",
        ),
        "x * sigmoid(1.702 x)": (lambda x: x * torch.sigmoid(1.702 * x), "x * jax.nn.sigmoid(1.702 * x)"),
        "relu": (functional.relu, "jax.nn.relu(x)"),
        "relu6": (functional.relu6, "jax.nn.relu6(x)"),
        "leaky_relu": (functional.leaky_relu, "jax.nn.leaky_relu(x, negative_slope=0.01)"),
        "silu": (functional.silu, "jax.nn.silu(x)"),
        "elu": (functional.elu, "jax.nn.elu(x)"),
        "selu": (functional.selu, "jax.nn.selu(x)"),
        "softplus": (functional.softplus, "jax.nn.softplus(x)"),
        "tanh": (torch.tanh, "jnp.tanh(x)"),
        "sigmoid": (torch.sigmoid, "jax.nn.sigmoid(x)"),
        "hard sigmoid": (functional.hardsigmoid, "jax.nn.hard_sigmoid(x)"),
        "hard swish": (functional.hardswish, "jax.nn.hard_swish(x)"),
        "clip(0.2 x + 0.5, 0, 1)": (lambda x: torch.clamp(0.2 * x + 0.5, 0, 1), "jnp.clip(0.2 * x + 0.5, 0, 1)"),
        "mish": (functional.mish, "jax.nn.mish(x)"),
        "softsign": (functional.softsign, "jax.nn.soft_sign(x)"),
        "log_sigmoid": (functional.logsigmoid, "jax.nn.log_sigmoid(x)"),
        "the identity": (lambda x: x, "x"),
        "hardtanh": (functional.hardtanh, "jax.nn.hard_tanh(x)"),
        "softplus without a threshold": (lambda x: torch.logaddexp(x, torch.zeros_like(x)), "jax.nn.softplus(x)"),
    }


ACTIVATIONS = {
    "gelu": "exact GELU",
    "relu": "relu",
    "relu6": "relu6",
    "leaky_relu": "leaky_relu",
    "silu": "silu",
    "elu": "elu",
    "selu": "selu",
    "softplus": "softplus",
    "tanh": "tanh",
    "sigmoid": "sigmoid",
    "hardsigmoid": "hard sigmoid",
    "hardswish": "hard swish",
    "mish": "mish",
    "softsign": "softsign",
    "logsigmoid": "log_sigmoid",
    "hardtanh": "hardtanh",
}
"""Functions of torch, and their names among those above at their defaults."""


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


def _other_axes(call: Call) -> Iterator[int]:
    axes, now = call.input.dim(), call["dim"]
    return (axis for axis in range(axes) if now is None or axis != now % axes)


class Variants(NamedTuple):
    """Other values of an argument that is no number to be fitted."""

    name: str
    functions: tuple[str, ...]
    argument: str
    values: Callable[[Call], Iterator[Any]]
    fix: str
    source: str


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


def _mean_over_batch(call: Call) -> Any:
    return call.run(reduction="sum") / call.input.shape[0]


def _mean_over_all(call: Call) -> Any:
    return call.run(reduction="sum") / call.input.numel()


def _other_loss(name: str) -> Rewrite:
    def compute(call: Call) -> Any:
        from torch.nn import functional

        target = call.arguments["target"]
        return getattr(functional, name)(call.input, target, reduction=call["reduction"])

    return compute


_REGRESSION = {
    "mse_loss": "jnp.mean((output - target) ** 2)",
    "l1_loss": "jnp.mean(jnp.abs(output - target))",
    "huber_loss": "jnp.mean(optax.huber_loss(output, target))",
}


def _outer(call: Call) -> Any:
    """Broadcast (N,) against (N, 1)."""
    names = list(call.arguments)
    return call.run(**{names[0]: call.input.reshape(-1, 1), names[1]: call.arguments[names[1]].reshape(1, -1)})


def _vectors(call: Call) -> bool:
    return call.input.numel() == max(call.input.shape, default=0) > 1


def _unbiased(unbiased: bool) -> Rewrite:
    def compute(call: Call) -> Any:
        keep = {k: v for k, v in _given(call).items() if k in ("dim", "keepdim")}
        return getattr(call.input, call.name)(**keep, correction=int(unbiased))

    return compute


def _given(call: Call) -> dict[str, Any]:
    """Give the arguments of a call by name, as far as they were named."""
    named = {k: v for k, v in call.arguments.items() if k not in ("tensor", "input", "args", "kwargs")}
    more = call.arguments.get("args", ())
    if more and isinstance(more[0], int | tuple | list) and not isinstance(more[0], bool):
        named["dim"] = more[0]
    return named | call.arguments.get("kwargs", {})


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


def _softmaxed(call: Call) -> Any:
    return call.on(call.input.softmax(1 if call.input.dim() > 1 else 0))


def _log_softmaxed(call: Call) -> Any:
    return call.on(call.input.log_softmax(-1))


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


def _interleaved_mean_median(call: Call) -> Any:
    import torch

    given = _given(call)
    if given.get("dim") is None:
        return torch.quantile(call.input, 0.5)
    values = torch.quantile(call.input, 0.5, dim=given["dim"], keepdim=given.get("keepdim", False))
    return torch.return_types.median((values, call.run().indices))


def _remainder_of(call: Call) -> Any:
    import torch

    other = call.arguments["other"]
    return torch.fmod(call.input, other) if call.name in ("remainder", "mod") else torch.remainder(call.input, other)


def _half_away(call: Call) -> Any:
    import torch

    return torch.sign(call.input) * torch.floor(call.input.abs() + 0.5)


def _at_tie(slope: float) -> Rewrite:
    """Give x a gradient of its own where the function has a kink: at 0, or at its bounds."""

    def compute(call: Call) -> Any:
        import torch

        x, y = call.input, call.run()
        if call.name in ("clamp", "clip", "hardtanh", "clamp_min", "clamp_max"):
            low, high = (call.arguments.get(name) for name in _BOUNDS[call.name])
            tie = torch.zeros_like(x, dtype=torch.bool)
            for bound in (low, high):
                if bound is not None:
                    tie |= x == bound
        elif call.name in ("max", "maximum", "min", "minimum"):
            return y
        else:
            tie = x == 0
        # Zero in value, and `slope` in place of the function's own derivative where there is a tie.
        return torch.where(tie, y.detach() + slope * (x - x.detach()), y)

    return compute


_BOUNDS = {
    "clamp": ("min", "max"),
    "clip": ("min", "max"),
    "hardtanh": ("min_val", "max_val"),
    "clamp_min": ("min", "?"),
    "clamp_max": ("?", "max"),
}
_KINKED = ("relu", "leaky_relu", "abs", "clamp", "clip", "clamp_min", "clamp_max", "hardtanh", "relu6", "elu")

_TIES = "docs/verdict.md lists the gradients at ties"


def _attached(call: Call) -> Any:
    return call.input


def _stopped(call: Call) -> Any:
    given = call.run()
    return given.detach() if hasattr(given, "detach") else given


def _other_reduction(call: Call) -> Any:
    return getattr(call.input, {"mean": "sum", "sum": "mean"}[call.name])(**_given(call))


def _targets(change: Callable[[Any], Any]) -> Rewrite:
    def compute(call: Call) -> Any:
        name = list(call.signature.parameters)[1]
        return call.run(**{name: change(call[name])})

    return compute


def _has_targets(call: Call) -> bool:
    second = list(call.arguments.values())[1]
    return bool(getattr(second, "ndim", 0)) and second.shape[0] > 1


def _has_positions(call: Call) -> bool:
    second = list(call.arguments.values())[1]
    return getattr(second, "ndim", 0) > 1 and second.shape[-1] > 1


ALTERNATIVES = (
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
        "mean or sum",
        ("mean", "sum"),
        _other_reduction,
        "takes the sum in place of the mean, or the mean in place of the sum",
        "jnp.{function}(...), as torch",
        f"{DOCS}torch.mean.html",
    ),
    *(
        Alternative(
            "order of the targets",
            (*LOSSES, "sub"),
            _targets(change),
            f"has the targets {how}",
            "give both sides the same targets, in the same order, by the batches or batch=",
            "https://docs.pytorch.org/docs/stable/data.html",
            applies,
        )
        for how, change, applies in (
            ("in reverse order", lambda target: target.flip(0), _has_targets),
            ("shifted by one example", lambda target: target.roll(1, 0), _has_targets),
            ("shifted by one example the other way", lambda target: target.roll(-1, 0), _has_targets),
            ("shifted by one position", lambda target: target.roll(1, -1), _has_positions),
            ("shifted by one position the other way", lambda target: target.roll(-1, -1), _has_positions),
        )
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
        "multiply the batch's variance by n / (n - 1) before it is averaged; nnx.BatchNorm has no setting for it",
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
        "variance by n or n - 1",
        ("var", "std"),
        _unbiased(False),
        "divides by n, as jnp.var does",
        "jnp.var(..., ddof=1), jnp.std(..., ddof=1)",
        f"{JAX}jax.numpy.var.html",
    ),
    Alternative(
        "variance by n or n - 1",
        ("var", "std"),
        _unbiased(True),
        "divides by n - 1",
        "jnp.var(..., ddof=0), jnp.std(..., ddof=0)",
        f"{JAX}jax.numpy.var.html",
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
    Alternative(
        "median of an even count",
        ("median",),
        _interleaved_mean_median,
        "takes the mean of the two middle values",
        "take the lower one: jnp.sort(x, axis)[(n - 1) // 2]",
        f"{DOCS}torch.median.html",
    ),
    Alternative(
        "sign of a remainder",
        ("remainder", "mod", "fmod"),
        _remainder_of,
        "takes the remainder's sign from the other operand",
        "jnp.fmod has the dividend's sign, jnp.remainder and % the divisor's",
        f"{JAX}jax.numpy.fmod.html",
    ),
    Alternative(
        "rounding of halves",
        ("round",),
        _half_away,
        "rounds halves away from zero",
        "jnp.round(x), which rounds halves to even as torch does",
        f"{DOCS}torch.round.html",
    ),
    Alternative(
        "reduction",
        LOSSES,
        _mean_over_batch,
        "divides the sum by the batch's size alone",
        'divide as torch\'s reduction="{reduction}" does: the mean is over all elements, over the sum of their weights '
        "if there are weights, and over the labels that are not ignored",
        f"{DOCS}torch.nn.MSELoss.html",
    ),
    Alternative(
        "reduction",
        LOSSES,
        _mean_over_all,
        "divides the sum by the number of all elements",
        'reduce the loss as torch\'s reduction="{reduction}" does',
        f"{DOCS}torch.nn.KLDivLoss.html",
    ),
    *(
        Alternative(
            "another loss",
            (ours,),
            _other_loss(theirs),
            f"computes torch's {theirs}, torch {ours}",
            _REGRESSION[ours],
            f"{DOCS}torch.nn.MSELoss.html",
        )
        for ours in _REGRESSION
        for theirs in _REGRESSION
        if ours != theirs
    ),
    Alternative(
        "broadcasting",
        ("mse_loss", "l1_loss", "smooth_l1_loss", "huber_loss", "binary_cross_entropy_with_logits", "sub"),
        _outer,
        "broadcasts (N,) against (N, 1) to (N, N)",
        "give output and target the same shape: output.squeeze(-1) or target[:, None]",
        "https://numpy.org/doc/stable/user/basics.broadcasting.html",
        _vectors,
    ),
    Alternative(
        "softmax twice",
        ("cross_entropy",),
        _softmaxed,
        "takes the softmax of probabilities",
        "give the loss logits, and not what softmax gives",
        f"{DOCS}torch.nn.CrossEntropyLoss.html",
    ),
    Alternative(
        "softmax left out",
        ("nll_loss", "kl_div"),
        _log_softmaxed,
        "takes the logarithm of the softmax once more",
        "give the loss what torch's takes: log-probabilities",
        f"{DOCS}torch.nn.NLLLoss.html",
    ),
    *(
        Alternative(
            "gradient at a tie",
            _KINKED,
            _at_tie(slope),
            f"has a gradient of {slope:g} there",
            "write the JAX side so that its gradient at the tie is torch's: jax.nn.relu has 0 at 0, "
            "jnp.where(x < 0, 0, x) 1, jnp.maximum and jnp.clip a half, jnp.abs 1",
            "https://docs.jax.dev/en/latest/jax.nn.html",
            gradient=True,
        )
        for slope in (0.5, 1.0, 0.0)
    ),
    Alternative(
        "stopped gradient",
        ("sigmoid", "softmax", "tanh", "relu", "gelu", "silu", "exp", "log", "matmul", "bmm", "mean", "sum", "max"),
        _stopped,
        "stops the gradient there",
        "leave out jax.lax.stop_gradient around {function}, where torch has no detach()",
        f"{JAX}jax.lax.stop_gradient.html",
        gradient=True,
    ),
    Alternative(
        "stopped gradient",
        ("detach",),
        _attached,
        "lets the gradient through",
        "jax.lax.stop_gradient where torch has detach()",
        f"{JAX}jax.lax.stop_gradient.html",
        gradient=True,
    ),
)


FUNCTIONS = frozenset(
    (*ACTIVATIONS, *(name for table in (SETTINGS, VARIANTS, ALTERNATIVES) for row in table for name in row.functions))
)
"""All that these tables know."""


class Counterfactual(NamedTuple):
    """One thing that the JAX side may do otherwise, ready to be tried."""

    name: str
    number: int
    """Of the call."""
    call: Call
    rewrite: Rewrite
    jax_does: str
    fix: str
    source: str
    value: float | None = None
    """Of a setting that is to be fitted; `rewrite` is then for `of` a value."""
    of: Callable[[float], Rewrite] | None = None


def counterfactuals(calls: Sequence[Call], *, gradient: bool) -> Iterator[Counterfactual]:
    """List what may be otherwise in the calls of a window: the likeliest first.

    Args:
        calls: In order of execution.
        gradient: Whether what shows in gradients alone is asked for.

    """
    for number, call in enumerate(calls):
        if gradient:
            yield from _alternatives(number, call, gradient=True)
        else:
            # What fits without a number of its own says more than a number that was fitted.
            yield from _alternatives(number, call, gradient=False)
            yield from _variants(number, call)
            yield from _settings(number, call)
            yield from _other_activations(number, call)


def _settings(number: int, call: Call) -> Iterator[Counterfactual]:
    for setting in SETTINGS:
        if call.name not in setting.functions or setting.argument not in call:
            continue
        value = call[setting.argument]
        value = setting.default(call) if value is None else value
        if isinstance(value, bool) or not isinstance(value, int | float):
            continue

        def of(other: float, argument: str = setting.argument) -> Rewrite:
            return lambda call: call.run(**{argument: other})

        fix = setting.fix(value)
        yield Counterfactual(
            setting.name, number, call, of(value), setting.argument, fix, setting.source, float(value), of
        )


def _variants(number: int, call: Call) -> Iterator[Counterfactual]:
    for variants in VARIANTS:
        if call.name not in variants.functions or variants.argument not in call:
            continue
        now = call[variants.argument]
        for value in variants.values(call):
            if value is now or _same(value, now):
                continue

            def rewrite(call: Call, value: Any = value, argument: str = variants.argument) -> Any:
                return call.run(**{argument: value})

            shown = value if isinstance(value, bool | int | float | str) or value is None else "the inverse"
            does = f"computes what torch would with {variants.argument}={shown}"
            yield Counterfactual(variants.name, number, call, rewrite, does, variants.fix, variants.source)


def _same(value: Any, now: Any) -> bool:
    """Tell whether two arguments mean the same: 0 and (0, 0), but not 0 and False."""
    if isinstance(now, tuple | list):
        return bool(now) and all(_same(value, part) for part in now)
    return isinstance(value, type(now)) and isinstance(now, int | str) and value == now


def _alternatives(number: int, call: Call, *, gradient: bool) -> Iterator[Counterfactual]:
    for each in ALTERNATIVES:
        if each.gradient == gradient and call.name in each.functions and each.applies(call):
            yield Counterfactual(each.name, number, call, each.compute, each.jax_does, each.fix, each.source)


def _other_activations(number: int, call: Call) -> Iterator[Counterfactual]:
    if call.name not in ACTIVATIONS:
        return
    known = _activations()
    own = ACTIVATIONS[call.name]
    numbers = [n for n, v in call.arguments.items() if n != "inplace" and isinstance(v, int | float)]
    if any(call[name] != call.signature.parameters[name].default for name in numbers):
        return  # not the function at its defaults: a setting says more
    if call.name == "gelu" and call["approximate"] == "tanh":
        own = "the tanh approximation of GELU"
    for name, (function, _) in known.items():
        if name != own:

            def rewrite(call: Call, function: Callable[[Any], Any] = function) -> Any:
                return function(call.input)

            does = f"applies {name}, torch {own}"
            yield Counterfactual("activation", number, call, rewrite, does, known[own][1], f"{JAX}jax.nn.gelu.html")
