"""What the JAX side may compute in place of a loss."""

from collections.abc import Callable
from typing import Any

from compare.diagnosis.conventions.base import DOCS, LOSSES, Alternative
from compare.diagnosis.rewriting import Call, Rewrite


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
    second = list(call.arguments.values())[1]
    return bool(getattr(second, "ndim", 0)) and second.shape[0] > 1


def _has_positions(call: Call) -> bool:
    second = list(call.arguments.values())[1]
    return getattr(second, "ndim", 0) > 1 and second.shape[-1] > 1


LOSS_FUNCTIONS = (
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
)
