"""Torch's losses in the words of JAX: what to write for a call, with its reduction and its settings.

`output` and `target` are what a loss of `compare.Flax` takes, `logits` and `labels` where they are classes. A form that
is not written here has no code: None.
"""

from typing import Any

from compare.diagnosis.place import Place
from compare.diagnosis.rewriting import Call
from compare.numerics.constants import unrounded
from compare.verdict.fix import Code, source


def loss_code(call: Call, place: Place) -> Code | None:
    """Write a call of a loss of torch in JAX, at any place; None for a form that has no simple one."""
    del place
    if call.name in ("cross_entropy", "nll_loss"):
        return _of_classes(call)
    each = _elementwise(call)
    return each and _reduced(each, call)


def _elementwise(call: Call) -> Code | None:
    """Write what a loss is before it is reduced."""
    given = call.arguments
    if given.get("weight") is not None:
        return None
    match call.name:
        case "mse_loss":
            return Code(around="(output - target) ** 2")
        case "l1_loss":
            return Code("jnp.abs", ("output - target",))
        case "smooth_l1_loss" if given["beta"]:
            beta = given["beta"]
            return Code("optax.huber_loss", ("output", "target"), {"delta": beta}, "{}" + _over(beta))
        case "huber_loss":
            return Code("optax.huber_loss", ("output", "target"), {"delta": given["delta"]})
        case "binary_cross_entropy_with_logits" if given["pos_weight"] is None:
            return Code("optax.sigmoid_binary_cross_entropy", ("logits", "labels"))
        case "binary_cross_entropy_with_logits" if given["pos_weight"].numel() == 1:
            weight = source(unrounded(float(given["pos_weight"])))
            positive, negative = f"{weight} * labels * jax.nn.log_sigmoid(logits)", "jax.nn.log_sigmoid(-logits)"
            return Code(around=f"-({positive} + (1 - labels) * {negative})")
        case "binary_cross_entropy":
            return Code(around="-(target * jnp.log(output) + (1 - target) * jnp.log1p(-output))")
        case "kl_div" if given["log_target"]:
            return Code(around="jnp.exp(target) * (target - output)")
        case "kl_div":
            return Code("jax.scipy.special.xlogy", ("target", "target"), around="({} - target * output)")
        case "poisson_nll_loss" if given["log_input"] and not given["full"]:
            return Code(around="(jnp.exp(output) - target * output)")
    return None


def _over(number: float) -> str:
    return "" if number == 1 else f" / {source(number)}"


def _reduced(each: Code, call: Call) -> Code | None:
    """Reduce as torch does; `each` keeps its place inside."""
    if call.input.numel() == 1 and call["reduction"] in ("mean", "sum"):
        # Of one number, both change nothing. The port may compute the losses of many such calls at once, and reduce
        # them in its own way.
        return each
    around = {
        "mean": f"jnp.mean({each.around})",
        "sum": f"jnp.sum({each.around})",
        "none": each.around,
        "batchmean": f"jnp.sum({each.around}) / output.shape[0]",
    }.get(call["reduction"])
    return around and Code(each.call, each.arguments, each.keywords, around)  # type: ignore[return-value]


def _of_classes(call: Call) -> Code | None:
    """Write a loss of classes, with weights, labels that are left out, or smoothing."""
    import torch

    given: dict[str, Any] = call.arguments
    logits, labels, weight = call.input, given["target"], given["weight"]
    smoothing, ignored = given.get("label_smoothing", 0.0), given["ignore_index"]
    if labels.is_floating_point() or logits.ndim != 2 or (weight is not None and weight.numel() > 16):
        return None
    skipped = bool(torch.any(labels == ignored))
    if smoothing:
        if weight is not None or skipped:
            return None
        targets = Code("optax.smooth_labels", (f"jax.nn.one_hot(labels, {logits.shape[1]})",), {"alpha": smoothing})
        return _reduced(
            Code(targets.call, targets.arguments, targets.keywords, "optax.softmax_cross_entropy(logits, {})"), call
        )
    chosen = f"jnp.where(labels == {ignored}, 0, labels)" if skipped else "labels"
    if call.name == "nll_loss":
        each = Code("jnp.take_along_axis", ("logits", f"{chosen}[:, None]"), {"axis": 1}, "-{}[:, 0]")
    else:
        each = Code("optax.softmax_cross_entropy_with_integer_labels", ("logits", chosen))
    if weight is None and not skipped:
        return _reduced(each, call)
    share = f"jnp.array({[unrounded(each) for each in weight.tolist()]})[{chosen}]" if weight is not None else "1.0"
    share = f"jnp.where(labels == {ignored}, 0.0, {share})" if skipped else share
    total = f"jnp.sum({each.around} * {share})"
    if call["reduction"] == "none":
        return None
    around = total if call["reduction"] == "sum" else f"{total} / jnp.sum({share})"
    return Code(each.call, each.arguments, each.keywords, around)
