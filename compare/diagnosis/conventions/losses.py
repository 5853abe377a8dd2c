"""What the JAX side may compute in place of a loss."""

from collections.abc import Callable
from typing import Any

from compare.diagnosis.conventions.base import DOCS, LOSSES, Alternative, says
from compare.diagnosis.conventions.loss_code import loss_code
from compare.diagnosis.place import Place
from compare.diagnosis.rewriting import Call, Rewrite
from compare.verdict.fix import Code


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


def _half_mse(call: Call) -> Any:
    return _other_loss("mse_loss")(call) / 2


_OTHER_LOSSES: dict[str, tuple[str, Rewrite]] = {
    **{name: (f"torch's {name}", _other_loss(name)) for name in ("mse_loss", "l1_loss", "huber_loss")},
    "half": ("half of torch's mse_loss, as optax.l2_loss does", _half_mse),
}


def _has_large_errors(call: Call) -> bool:
    """Tell whether an error is above 1: of smaller ones a Huber loss is half the squared error, which is a factor."""
    return bool(((call.input - call.arguments["target"]).abs() > 1).any())


def _always(_call: Call) -> bool:
    return True


_REGRESSION = [
    (ours, *_OTHER_LOSSES[theirs], _has_large_errors if (ours, theirs) == ("mse_loss", "huber_loss") else _always)
    for ours in ("mse_loss", "l1_loss", "huber_loss", "smooth_l1_loss")
    for theirs in _OTHER_LOSSES
    # Half of it is a factor, which has a name of its own. A smooth L1 loss is a Huber loss over its beta.
    if theirs != ours and (ours, theirs) not in (("mse_loss", "half"), ("smooth_l1_loss", "huber_loss"))
]


def _outer(call: Call) -> Any:
    """Broadcast (N,) against (N, 1)."""
    names = list(call.arguments)
    return call.run(**{names[0]: call.input.reshape(-1, 1), names[1]: call.arguments[names[1]].reshape(1, -1)})


def _vectors(call: Call) -> bool:
    """Return whether torch takes two vectors element by element; its own (1, N) against (N, 1) is meant."""
    first, second, *_ = call.arguments.values()
    if not (hasattr(first, "shape") and hasattr(second, "shape")):  # a difference may be one of a number
        return False
    axes = [[(n - t.ndim, size) for n, size in enumerate(t.shape) if size != 1] for t in (first, second)]
    return axes[0] == axes[1] and len(axes[0]) == 1


def _softmaxed(call: Call) -> Any:
    return call.on(call.input.softmax(1 if call.input.dim() > 1 else 0))


def _log_softmaxed(call: Call) -> Any:
    return call.on(call.input.log_softmax(-1))


def _targets(change: Callable[[Any], Any]) -> Rewrite:
    def compute(call: Call) -> Any:
        name = list(call.signature.parameters)[1]
        return call.run(**{name: change(call[name])})

    return compute


def _has_targets(call: Call) -> bool:
    return _is_loss(call) and list(call.arguments.values())[1].shape[0] > 1


def _has_positions(call: Call) -> bool:
    second = list(call.arguments.values())[1]
    return _is_loss(call) and second.ndim > 1 and second.shape[-1] > 1


def _is_loss(call: Call) -> bool:
    """Tell whether it takes the model's output and targets: a difference is a loss by hand outside of modules."""
    first, second, *_ = call.arguments.values()
    if not getattr(second, "ndim", 0) or second.requires_grad:
        return False
    by_hand = not call.module and getattr(first, "requires_grad", False)
    return (call.name != "sub" or by_hand) and call.takes_targets()


def _other_way(call: Call) -> Any:
    """Give KL(q ‖ p), where torch's kl_div of the logarithm of q and of p is KL(p ‖ q)."""
    logarithm = call["log_target"]
    target = call.input if logarithm else call.input.exp()
    return call.run(input=call["target"] if logarithm else call["target"].log(), target=target)


def _cross_entropy(call: Call) -> Any:
    """Give -p log q for the divergence p (log p - log q): where log q is zero, the entropy of p alone is left."""
    return call.run() - call.run(input=call.input * 0)


def _ignores(call: Call) -> bool:
    labels = call["target"]
    return not labels.is_floating_point() and call["ignore_index"] < 0 and bool((labels == call["ignore_index"]).any())


def _counted(call: Call) -> Any:
    return call["target"] != call["ignore_index"]


def _averages_labels(call: Call) -> bool:
    return call["reduction"] == "mean" and not call["target"].is_floating_point()


def _leaves_out(call: Call) -> bool:
    return _averages_labels(call) and not bool(_counted(call).all())


def _weighs(call: Call) -> bool:
    return _averages_labels(call) and call["weight"] is not None


def _counting(call: Call, place: Place) -> Code | str:
    if code := loss_code(call, place):
        return code
    if call["weight"] is not None:
        return "divide by the sum of the weights of the labels that count, as torch does"
    return f"divide by the number of labels that are not {call['ignore_index']}, as torch does"


def _other_blank(call: Call) -> int:
    """Give the usual other index of the blank: the last class for the first, and the first for any other."""
    return call["log_probs"].shape[-1] - 1 if call["blank"] == 0 else 0


def _whole_inputs(call: Call) -> Any:
    import torch

    steps, lengths = call["log_probs"].shape[0], call["input_lengths"]
    return call.run(input_lengths=torch.full_like(torch.as_tensor(lengths), steps))


def _shorter_inputs(call: Call) -> bool:
    import torch

    return bool((torch.as_tensor(call["input_lengths"]) < call["log_probs"].shape[0]).any())


_CTC = (
    Alternative(
        name="reduction",
        functions=("ctc_loss",),
        compute=lambda call: call.run(reduction="none").mean(),
        jax_does="takes the mean over the batch, where torch first divides each loss by the length of its target",
        fix=says("divide each loss by the length of its target before the mean over the batch"),
        source=f"{DOCS}torch.nn.CTCLoss.html",
        applies=lambda call: call["reduction"] == "mean",
    ),
    Alternative(
        name="blank label",
        functions=("ctc_loss",),
        compute=lambda call: call.run(blank=_other_blank(call)),
        jax_does="takes another class for the blank",
        fix=lambda call, place: f"optax.ctc_loss(..., blank_id={call['blank']})",
        source=f"{DOCS}torch.nn.CTCLoss.html",
    ),
    Alternative(
        name="lengths of the inputs",
        functions=("ctc_loss",),
        compute=_whole_inputs,
        jax_does="reads every input to its end, where torch has input_lengths",
        fix=says("give optax.ctc_loss logit_paddings that are 1 behind the end of each input"),
        source=f"{DOCS}torch.nn.CTCLoss.html",
        applies=_shorter_inputs,
    ),
)

LOSS_FUNCTIONS = (
    *_CTC,
    Alternative(
        name="class weights",
        functions=("cross_entropy", "nll_loss"),
        compute=lambda call: call.run(reduction="sum") / _counted(call).sum(),
        jax_does="divides by the number of the labels that count, torch by the sum of their weights",
        fix=_counting,
        source=f"{DOCS}torch.nn.CrossEntropyLoss.html",
        applies=_weighs,
    ),
    Alternative(
        name="class weights",
        functions=("cross_entropy", "nll_loss"),
        compute=lambda call: call.run(reduction="sum") / call["target"].numel(),
        jax_does="divides by the number of all labels, torch by the sum of the weights of those that count",
        fix=_counting,
        source=f"{DOCS}torch.nn.CrossEntropyLoss.html",
        applies=lambda call: _weighs(call) and _leaves_out(call),
    ),
    Alternative(
        name="ignored labels",
        functions=("cross_entropy", "nll_loss"),
        compute=lambda call: call.run(reduction="sum") / call["target"].numel(),
        jax_does="divides by the number of all labels, torch by that of the labels that are not ignored",
        fix=_counting,
        source=f"{DOCS}torch.nn.CrossEntropyLoss.html",
        applies=lambda call: _leaves_out(call) and not _weighs(call),
    ),
    Alternative(
        name="ignored labels",
        functions=("cross_entropy", "nll_loss"),
        compute=lambda call: call.run(target=call["target"].clamp(min=0)),
        jax_does="counts the labels that torch's loss ignores, as labels of class 0",
        fix=loss_code,
        source=f"{DOCS}torch.nn.CrossEntropyLoss.html",
        applies=_ignores,
    ),
    *(
        Alternative(
            name="order of the targets",
            functions=(*LOSSES, "sub"),
            compute=_targets(change),
            jax_does=f"has the targets {how}",
            fix=says("give both sides the same targets, in the same order, by the batches or batch="),
            source="https://docs.pytorch.org/docs/stable/data.html",
            applies=applies,
        )
        for how, change, applies in (
            ("in reverse order", lambda target: target.flip(0), _has_targets),
            ("shifted by one example", lambda target: target.roll(1, 0), _has_targets),
            ("shifted by one example the other way", lambda target: target.roll(-1, 0), _has_targets),
            ("shifted by one position", lambda target: target.roll(1, -1), _has_positions),
            ("shifted by one position the other way", lambda target: target.roll(-1, -1), _has_positions),
        )
    ),
    *(
        Alternative(
            name="reduction",
            functions=(name,),
            compute=compute,
            jax_does=f"divides the sum in torch's {name} by {count}",
            fix=loss_code,
            source=f"{DOCS}torch.nn.{page}.html",
            may_be_torchs=True,
        )
        for compute, count, page in (
            (_mean_over_batch, "the batch's size alone", "MSELoss"),
            (_mean_over_all, "the number of all elements", "KLDivLoss"),
        )
        for name in LOSSES
    ),
    *(
        Alternative(
            name="another loss",
            functions=(ours,),
            compute=compute,
            jax_does=f"computes {theirs}, torch {ours}",
            fix=loss_code,
            source=f"{DOCS}torch.nn.MSELoss.html",
            applies=applies,
        )
        for ours, theirs, compute, applies in _REGRESSION
    ),
    Alternative(
        name="broadcasting",
        functions=("mse_loss", "l1_loss", "smooth_l1_loss", "huber_loss", "binary_cross_entropy_with_logits", "sub"),
        compute=_outer,
        jax_does="broadcasts (N,) against (N, 1) to (N, N)",
        fix=lambda call, place: Code("output.reshape", ("target.shape",), whole=False),  # no loss by itself
        source="https://numpy.org/doc/stable/user/basics.broadcasting.html",
        applies=_vectors,
    ),
    Alternative(
        name="order of the distributions",
        functions=("kl_div",),
        compute=_other_way,
        jax_does="takes the divergence the other way round, KL(q ‖ p) instead of KL(p ‖ q), where p is the target",
        fix=loss_code,
        source=f"{DOCS}torch.nn.KLDivLoss.html",
    ),
    Alternative(
        name="entropy of the target",
        functions=("kl_div",),
        compute=_cross_entropy,
        jax_does="takes the cross-entropy with the target, which leaves the target's entropy out of the divergence",
        fix=loss_code,
        source=f"{DOCS}torch.nn.KLDivLoss.html",
    ),
    Alternative(
        name="softmax twice",
        functions=("cross_entropy",),
        compute=_softmaxed,
        jax_does="takes the softmax of probabilities, where torch's loss takes logits",
        fix=loss_code,
        source=f"{DOCS}torch.nn.CrossEntropyLoss.html",
    ),
    Alternative(
        name="softmax left out",
        functions=("nll_loss", "kl_div"),
        compute=_log_softmaxed,
        jax_does="takes the logarithm of the softmax once more, where torch's loss takes log-probabilities",
        fix=loss_code,
        source=f"{DOCS}torch.nn.NLLLoss.html",
    ),
)
