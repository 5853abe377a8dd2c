"""Functions of torch that consist of several operations, written out so that each operation can be edited.

The formulas are those of the functions' documentation. `structure.step` uses a recorded step only if the value at the
place came out exactly as in the run, so that an error here makes the search silent and not wrong.
"""

import math
from collections.abc import Callable
from typing import Any


def attention(
    query: Any,
    key: Any,
    value: Any,
    attn_mask: Any = None,
    dropout_p: float = 0.0,
    is_causal: bool = False,
    scale: float | None = None,
    enable_gqa: bool = False,
) -> Any:
    """Compute `scaled_dot_product_attention`."""
    import torch

    if enable_gqa:
        return NotImplemented
    scores = (query @ key.transpose(-2, -1)) * (1 / math.sqrt(query.shape[-1]) if scale is None else scale)
    if is_causal:
        allowed = torch.ones(scores.shape[-2:], dtype=torch.bool, device=scores.device).tril()
        scores = scores.masked_fill(allowed.logical_not(), -math.inf)
    if attn_mask is not None:
        # True means "takes part" in this function's masks, and "is hidden" in those of multi_head_attention_forward,
        # which `_masked` applies: see the documentation of torch.nn.MultiheadAttention.
        if attn_mask.dtype == torch.bool:
            scores = scores.masked_fill(attn_mask.logical_not(), -math.inf)
        else:
            scores = scores + attn_mask
    weights = torch.softmax(scores, -1)
    if dropout_p:
        weights = torch.nn.functional.dropout(weights, dropout_p)
    return weights @ value


def multi_head_attention(query: Any, key: Any, value: Any, **given: Any) -> Any:
    """Compute `multi_head_attention_forward` in its common form: a batch, and one matrix for q, k and v."""
    import torch

    if query.dim() != 3 or given["dropout_p"] * given["training"] or given.get("use_separate_proj_weight"):
        return NotImplemented
    if any(given.get(name) is not None for name in ("bias_k", "bias_v", "static_k", "static_v")):
        return NotImplemented
    if given.get("add_zero_attn"):
        return NotImplemented
    heads, biases = given["num_heads"], given["in_proj_bias"]
    weights = given["in_proj_weight"].chunk(3)
    biases = (None, None, None) if biases is None else biases.chunk(3)
    linear = torch.nn.functional.linear

    def split(x: Any) -> Any:  # (time, batch, features) to (batch, heads, time, size)
        return x.transpose(0, 1).unflatten(-1, (heads, -1)).transpose(1, 2)

    q, k, v = (split(linear(x, w, b)) for x, w, b in zip((query, key, value), weights, biases, strict=True))
    scores = (q @ k.transpose(-2, -1)) * (1 / math.sqrt(q.shape[-1]))
    scores = _masked(scores, given.get("attn_mask"), heads)
    padding = given.get("key_padding_mask")
    if padding is not None:
        scores = _masked(scores, padding[:, None, None, :], heads)
    attended = torch.softmax(scores, -1)
    merged = (attended @ v).transpose(1, 2).flatten(2).transpose(0, 1)
    output = linear(merged, given["out_proj_weight"], given["out_proj_bias"])
    if not given.get("need_weights", True):
        return output, None
    return output, attended.mean(1) if given.get("average_attn_weights", True) else attended


def _masked(scores: Any, mask: Any, heads: int) -> Any:
    import torch

    if mask is None:
        return scores
    if mask.dim() == 3:
        # A mask of shape (batch · heads, queries, keys) has the heads of one example next to each other.
        mask = mask.unflatten(0, (-1, heads))
    return scores.masked_fill(mask, -math.inf) if mask.dtype == torch.bool else scores + mask


def pixel_shuffle(input: Any, upscale_factor: int) -> Any:  # noqa: A002 - as torch has it
    """Compute `pixel_shuffle` of (..., c * r * r, h, w)."""
    r, (h, w) = upscale_factor, input.shape[-2:]
    apart = input.unflatten(-3, (-1, r, r))
    return apart.permute(0, 1, 4, 2, 5, 3).reshape(input.shape[0], -1, h * r, w * r)


def glu(input: Any, dim: int = -1) -> Any:  # noqa: A002 - as torch has it
    """Compute `glu`."""
    import torch

    a, b = input.chunk(2, dim)
    return a * torch.sigmoid(b)


def dropout(input: Any, p: float = 0.5, training: bool = True, inplace: bool = False) -> Any:  # noqa: A002
    """Compute `dropout` as a product with its scaled mask."""
    import torch

    if not training or p in (0, 1) or inplace:
        return NotImplemented
    return input * torch.nn.functional.dropout(torch.ones_like(input), p, training)


def mse_loss(input: Any, target: Any, reduction: str = "mean") -> Any:  # noqa: A002 - as torch has it
    """Compute `mse_loss`."""
    return _reduced((input - target) ** 2, reduction)


def _reduced(losses: Any, reduction: str) -> Any:
    if reduction == "batchmean":
        return losses.sum() / len(losses)
    return getattr(losses, reduction)() if reduction != "none" else losses


def cross_entropy(input: Any, target: Any, weight: Any = None, **given: Any) -> Any:  # noqa: A002 - as torch has it
    """Compute `cross_entropy` of classes that are all counted alike."""
    import torch

    if target.is_floating_point() or input.dim() < 2 or given.get("label_smoothing"):
        return NotImplemented
    return nll_loss(torch.log_softmax(input, 1), target, weight, **given)


def nll_loss(input: Any, target: Any, weight: Any = None, **given: Any) -> Any:  # noqa: A002 - as torch has it
    """Compute `nll_loss` of classes that are all counted alike."""
    # With class weights or ignored targets, torch's mean divides by the sum of the weights of the targets that count.
    if weight is not None or input.dim() < 2 or (target == given.get("ignore_index", -100)).any():
        return NotImplemented
    return _reduced(-input.gather(1, target.unsqueeze(1)).squeeze(1), given.get("reduction", "mean"))


def binary_cross_entropy_with_logits(input: Any, target: Any, **given: Any) -> Any:  # noqa: A002 - as torch has it
    """Compute `binary_cross_entropy_with_logits`, without weights of single elements."""
    from torch.nn.functional import logsigmoid

    if given.get("weight") is not None:
        return NotImplemented
    positive, ratio = target * logsigmoid(input), given.get("pos_weight")
    if ratio is not None:
        positive = ratio * positive
    return _reduced(-(positive + (1 - target) * logsigmoid(-input)), given.get("reduction", "mean"))


def binary_cross_entropy(input: Any, target: Any, reduction: str = "mean") -> Any:  # noqa: A002 - as torch has it
    """Compute `binary_cross_entropy` where its bound of the logarithms is not reached."""
    import torch

    if ((input <= 0) | (input >= 1)).any():
        return NotImplemented
    return _reduced(-(target * torch.log(input) + (1 - target) * torch.log(1 - input)), reduction)


def l1_loss(input: Any, target: Any, reduction: str = "mean") -> Any:  # noqa: A002 - as torch has it
    """Compute `l1_loss`."""
    return _reduced((input - target).abs(), reduction)


def huber_loss(input: Any, target: Any, reduction: str = "mean", *, delta: float = 1.0) -> Any:  # noqa: A002
    """Compute `huber_loss`."""
    import torch

    apart = input - target
    size = apart.abs()
    return _reduced(torch.where(size <= delta, 0.5 * apart**2, delta * (size - 0.5 * delta)), reduction)


def smooth_l1_loss(input: Any, target: Any, reduction: str = "mean", *, beta: float = 1.0) -> Any:  # noqa: A002
    """Compute `smooth_l1_loss`."""
    import torch

    # torch gives the L1 loss for beta = 0. Here the branch that is not taken would divide by zero.
    if not beta:
        return NotImplemented
    apart = input - target
    size = apart.abs()
    return _reduced(torch.where(size < beta, 0.5 * apart**2 / beta, size - 0.5 * beta), reduction)


def kl_div(input: Any, target: Any, reduction: str = "mean", log_target: bool = False) -> Any:  # noqa: A002
    """Compute `kl_div` of positive probabilities, or of their logarithms."""
    import torch

    # torch takes 0 log(0) for 0, and the formula below gives NaN.
    if not log_target and (target <= 0).any():
        return NotImplemented
    losses = torch.exp(target) * (target - input) if log_target else target * (torch.log(target) - input)
    return _reduced(losses, reduction)


DECOMPOSITIONS: dict[str, Callable[..., Any]] = {
    "scaled_dot_product_attention": attention,
    "multi_head_attention_forward": multi_head_attention,
    "pixel_shuffle": pixel_shuffle,
    "glu": glu,
    "mse_loss": mse_loss,
    "dropout": dropout,
}
"""By the names of the functions. Each gives NotImplemented for what it does not know."""

LOSSES: dict[str, Callable[..., Any]] = {
    "cross_entropy": cross_entropy,
    "nll_loss": nll_loss,
    "binary_cross_entropy_with_logits": binary_cross_entropy_with_logits,
    "binary_cross_entropy": binary_cross_entropy,
    "l1_loss": l1_loss,
    "huber_loss": huber_loss,
    "smooth_l1_loss": smooth_l1_loss,
    "kl_div": kl_div,
}
"""Losses, likewise. They are written out only if nothing is found while they are whole: their names say more."""
