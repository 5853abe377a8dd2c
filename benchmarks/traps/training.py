"""Traps in losses, gradients, optimizers and schedules."""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
import torch
from torch import nn, optim
from torch.nn import functional

from .trap import COUNT, Pair, Trap, on_loss, on_optimizer, on_vectors, vectors

TORCH = "https://docs.pytorch.org/docs/stable/generated/"
OPTAX = "https://optax.readthedocs.io/en/latest/api/"
LOSS = ("loss", "loss")


def labels(rng: np.random.Generator) -> np.ndarray:
    return rng.integers(0, 4, COUNT)


def reals(rng: np.random.Generator) -> np.ndarray:
    return rng.standard_normal((COUNT, 4), np.float32)


def chances(rng: np.random.Generator) -> np.ndarray:
    return rng.random((COUNT, 4), np.float32)


def ignored(rng: np.random.Generator) -> np.ndarray:
    found = rng.integers(0, 4, COUNT)
    found[:2] = -100
    return found


def loss(ours: Any, theirs: Any, targets: Any, **options: Any) -> Callable[..., Pair]:
    """Build a pair of losses; the JAX side's takes the settings."""
    return lambda **settings: on_loss(ours, lambda o, t: theirs(o, t, **settings), targets=targets, **options)


def log_likelihood(logits: Any, target: Any) -> Any:
    return optax.softmax_cross_entropy_with_integer_labels(logits, target)


def cross_entropy(
    logits: Any, target: Any, *, reduce: Any = jnp.mean, smoothing: float = 0.0, twice: bool = False
) -> Any:
    logits = jax.nn.softmax(logits) if twice else logits
    if smoothing:
        return reduce(optax.softmax_cross_entropy(logits, optax.smooth_labels(jax.nn.one_hot(target, 4), smoothing)))
    return reduce(log_likelihood(logits, target))


def without(logits: Any, target: Any, *, ignore: bool) -> Any:
    keep = target != -100
    each = log_likelihood(logits, jnp.where(keep, target, 0))
    return jnp.sum(each * keep) / (keep.sum() if ignore else keep.size)


WEIGHTS = (1.0, 2.0, 3.0, 4.0)


def weighted(logits: Any, target: Any, *, normalized: bool) -> Any:
    weight = jnp.array(WEIGHTS)[target]
    total = (weight * log_likelihood(logits, target)).sum()
    return total / (weight.sum() if normalized else target.size)


def divergence(logits: Any, target: Any, *, by: str) -> Any:
    target = target / target.sum(1, keepdims=True)
    each = target * (jnp.log(target) - jax.nn.log_softmax(logits))
    return each.sum() / (each.shape[0] if by == "batch" else each.size)


def torch_divergence(logits: Any, target: Any) -> Any:
    return functional.kl_div(logits.log_softmax(1), target / target.sum(1, keepdim=True), reduction="batchmean")


def huber(output: Any, target: Any, *, divided: bool) -> Any:
    return jnp.mean(optax.huber_loss(output, target, delta=0.5)) / (0.5 if divided else 1)


def mean_square(output: Any, target: Any, *, reduce: Callable[[Any], Any]) -> Any:
    return reduce((output - target) ** 2)


def one_column(output: Any, target: Any, *, broadcast: bool) -> Any:
    output = output[:, None] if broadcast else output
    return jnp.mean((output - target) ** 2)


def positives(logits: Any, target: Any, *, weight: float) -> Any:
    log_p, log_not_p = jax.nn.log_sigmoid(logits), jax.nn.log_sigmoid(-logits)
    return -jnp.mean(weight * target * log_p + (1 - target) * log_not_p)


def smoothed(output: Any, target: Any, *, factor: float) -> Any:
    return factor * jnp.mean((output - target) ** 2)


LOSSES = [
    Trap(
        name="sum in place of mean",
        stage="loss",
        torch="mse_loss: the mean over all elements.",
        jax="jnp.sum.",
        source=f"{TORCH}torch.nn.MSELoss.html",
        build=loss(functional.mse_loss, mean_square, reals),
        wrong={"reduce": jnp.sum},
        right={"reduce": jnp.mean},
        place=LOSS,
        cause="reduction",
        fix="mean",
    ),
    Trap(
        name="mean over the batch alone",
        stage="loss",
        torch="mse_loss: the mean over all elements.",
        jax="Summed over features.",
        source=f"{TORCH}torch.nn.MSELoss.html",
        build=loss(functional.mse_loss, mean_square, reals),
        wrong={"reduce": lambda x: x.sum(1).mean()},
        right={"reduce": jnp.mean},
        place=LOSS,
        cause="reduction",
        fix="mean",
    ),
    Trap(
        name="cross-entropy summed",
        stage="loss",
        torch="The mean over the batch.",
        jax="jnp.sum.",
        source=f"{TORCH}torch.nn.CrossEntropyLoss.html",
        build=loss(functional.cross_entropy, cross_entropy, labels),
        wrong={"reduce": jnp.sum},
        right={"reduce": jnp.mean},
        place=LOSS,
        cause="reduction",
        fix="mean",
    ),
    Trap(
        name="softmax twice",
        stage="loss",
        torch="cross_entropy takes logits.",
        jax="Given probabilities.",
        source=f"{TORCH}torch.nn.CrossEntropyLoss.html",
        build=loss(functional.cross_entropy, cross_entropy, labels),
        wrong={"twice": True},
        right={"twice": False},
        place=LOSS,
        cause="softmax twice",
        fix="logits",
    ),
    Trap(
        name="label smoothing",
        stage="loss",
        torch="label_smoothing=0.1.",
        jax="None.",
        source=f"{OPTAX}losses.html",
        build=loss(lambda o, t: functional.cross_entropy(o, t, label_smoothing=0.1), cross_entropy, labels),
        wrong={"smoothing": 0.2},
        right={"smoothing": 0.1},
        place=LOSS,
        cause="label smoothing",
        fix=r"0\.1",
    ),
    Trap(
        name="ignored labels counted",
        stage="loss",
        torch="ignore_index=-100 is left out of the mean.",
        jax="Counted in the mean.",
        source=f"{TORCH}torch.nn.CrossEntropyLoss.html",
        build=loss(functional.cross_entropy, without, ignored),
        wrong={"ignore": False},
        right={"ignore": True},
        place=LOSS,
        cause="ignored|reduction|factor",
        fix="labels == -100",
    ),
    Trap(
        name="class weights not normalized",
        stage="loss",
        torch="Divided by the sum of the weights.",
        jax="Divided by the number.",
        source=f"{TORCH}torch.nn.CrossEntropyLoss.html",
        build=loss(lambda o, t: functional.cross_entropy(o, t, torch.tensor(WEIGHTS, dtype=o.dtype)), weighted, labels),
        wrong={"normalized": False},
        right={"normalized": True},
        place=LOSS,
        cause="weight|reduction",
        fix=r"jnp\.array\(\[1\.0, 2\.0",
    ),
    Trap(
        name="KLDivLoss mean or batchmean",
        stage="loss",
        torch='reduction="batchmean".',
        jax="The mean over all elements.",
        source=f"{TORCH}torch.nn.KLDivLoss.html",
        build=loss(torch_divergence, divergence, chances),
        wrong={"by": "element"},
        right={"by": "batch"},
        place=LOSS,
        cause="reduction",
        fix=r"output\.shape\[0\]",
        whole=False,
    ),
    Trap(
        name="SmoothL1 or Huber",
        stage="loss",
        torch="SmoothL1Loss(beta) is Huber's loss over beta.",
        jax="optax.huber_loss is not divided.",
        source=f"{OPTAX}losses.html",
        build=loss(lambda o, t: functional.smooth_l1_loss(o, t, beta=0.5), huber, reals),
        wrong={"divided": False},
        right={"divided": True},
        place=LOSS,
        cause="scale|beta|reduction|Huber|factor|operation added",
        fix=r"2 \* y|factor",
    ),
    Trap(
        name="half of the square",
        stage="loss",
        torch="mse_loss has no factor.",
        jax="optax.l2_loss has a half.",
        source=f"{OPTAX}losses.html",
        build=loss(functional.mse_loss, smoothed, reals),
        wrong={"factor": 0.5},
        right={"factor": 1.0},
        place=LOSS,
        cause="factor|operation added",
        fix=r"2 \* y|factor",
    ),
    Trap(
        name="(N,) against (N, 1)",
        stage="loss",
        torch="Both (N, 1).",
        jax="Broadcast to (N, N).",
        source="https://numpy.org/doc/stable/user/basics.broadcasting.html",
        build=lambda broadcast: on_vectors(
            lambda x: x[:, 0],
            lambda x: x[:, 0],
            loss=functional.mse_loss,
            jax_loss=lambda o, t: one_column(o, t, broadcast=broadcast),
            batches=[(x, y[:, 0]) for x, y in vectors()],
        ),
        wrong={"broadcast": True},
        right={"broadcast": False},
        place=LOSS,
        cause="broadcasting",
        fix="shape",
        whole=False,
    ),
    Trap(
        name="pos_weight",
        stage="loss",
        torch="pos_weight=3.",
        jax="Left out.",
        source=f"{TORCH}torch.nn.BCEWithLogitsLoss.html",
        build=loss(
            lambda o, t: functional.binary_cross_entropy_with_logits(o, t, pos_weight=torch.tensor(3.0, dtype=o.dtype)),
            positives,
            chances,
        ),
        wrong={"weight": 1.0},
        right={"weight": 3.0},
        place=LOSS,
        cause="positives",
        fix=r"3 \* labels",
    ),
    Trap(
        name="absolute error or square",
        stage="loss",
        torch="l1_loss.",
        jax="The mean square.",
        source=f"{TORCH}torch.nn.L1Loss.html",
        build=loss(functional.l1_loss, lambda o, t, power: jnp.mean(jnp.abs(o - t) ** power), reals),
        wrong={"power": 2},
        right={"power": 1},
        place=LOSS,
        cause="another loss",
        fix="l1|abs",
    ),
]


def kinked(ours: Any, theirs: Any) -> Callable[..., Pair]:
    """Build a pair whose first layer gives exact zeros, where functions have kinks."""

    def build(**settings: Any) -> Pair:
        pair = on_optimizer(lambda p: optim.SGD(p, 0.1), optax.sgd(0.1), hidden=(ours, lambda x: theirs(x, **settings)))
        model: Any = pair.torch.model
        with torch.no_grad():
            model.front.weight[:4] = 0
            model.front.bias[:4] = 0
        return pair

    return build


FIRST = ("gradient", "*")


GRADIENTS = [
    Trap(
        name="relu at zero by maximum",
        stage="gradient",
        torch="torch.relu's gradient at 0 is 0.",
        jax="jnp.maximum's is a half.",
        source="https://github.com/pytorch/pytorch/issues/184574",
        build=kinked(torch.relu, lambda x, f: f(x)),
        wrong={"f": lambda x: jnp.maximum(x, 0)},
        right={"f": jax.nn.relu},
        place=FIRST,
        cause="tie",
        fix="jax.nn.relu",
    ),
    Trap(
        name="clamp at zero by relu",
        stage="gradient",
        torch="clamp(min=0) passes the gradient at 0.",
        jax="jax.nn.relu does not.",
        source="https://github.com/pytorch/pytorch/issues/184574",
        build=kinked(lambda x: x.clamp(min=0), lambda x, f: f(x)),
        wrong={"f": jax.nn.relu},
        right={"f": lambda x: jnp.where(x < 0, 0.0, x)},
        place=FIRST,
        cause="tie",
        fix="jnp.where",
    ),
    Trap(
        name="clamp at zero by clip",
        stage="gradient",
        torch="clamp(min=0) passes the gradient at 0.",
        jax="jnp.clip passes half.",
        source="https://github.com/pytorch/pytorch/issues/184574",
        build=kinked(lambda x: x.clamp(min=0), lambda x, f: f(x)),
        wrong={"f": lambda x: jnp.clip(x, 0, None)},
        right={"f": lambda x: jnp.where(x < 0, 0.0, x)},
        place=FIRST,
        cause="tie",
        fix="jnp.where",
    ),
    Trap(
        name="abs at zero",
        stage="gradient",
        torch="The gradient of torch.abs at 0 is 0.",
        jax="The gradient of jnp.abs at 0 is 1.",
        source="https://docs.jax.dev/en/latest/_autosummary/jax.numpy.abs.html",
        build=kinked(torch.abs, lambda x, f: f(x)),
        wrong={"f": jnp.abs},
        right={"f": lambda x: jnp.sign(x) * x},
        place=FIRST,
        cause="tie",
        fix=r"jnp\.sign",
    ),
    Trap(
        name="leaky_relu at zero",
        stage="gradient",
        torch="The gradient at 0 is the slope, 0.01.",
        jax="1.",
        source="https://docs.jax.dev/en/latest/_autosummary/jax.nn.leaky_relu.html",
        build=kinked(functional.leaky_relu, lambda x, f: f(x)),
        wrong={"f": jax.nn.leaky_relu},
        right={"f": lambda x: jnp.where(x > 0, x, 0.01 * x)},
        place=FIRST,
        cause="tie",
        fix=r"x > 0, x, 0\.01 \* x",
    ),
    Trap(
        name="hardtanh at its bounds",
        stage="gradient",
        torch="The gradient at ±1 is 0.",
        jax="jnp.clip passes half.",
        source="https://docs.pytorch.org/docs/stable/generated/torch.nn.Hardtanh.html",
        build=kinked(lambda x: functional.hardtanh(x, 0.0, 1.0), lambda x, f: f(x)),
        wrong={"f": lambda x: jnp.clip(x, 0, 1)},
        right={"f": lambda x: jnp.where((x <= 0) | (x >= 1), jnp.clip(jax.lax.stop_gradient(x), 0, 1), x)},
        place=FIRST,
        cause="tie",
        fix="stop_gradient",
    ),
    Trap(
        name="detach forgotten",
        stage="gradient",
        torch="x * torch.sigmoid(x).detach().",
        jax="No stop_gradient.",
        source="https://docs.jax.dev/en/latest/_autosummary/jax.lax.stop_gradient.html",
        build=kinked(lambda x: x * torch.sigmoid(x).detach(), lambda x, f: x * f(jax.nn.sigmoid(x))),
        wrong={"f": lambda x: x},
        right={"f": jax.lax.stop_gradient},
        place=FIRST,
        cause="stopped gradient",
        fix="stop_gradient",
        whole=False,
    ),
    Trap(
        name="stop_gradient too many",
        stage="gradient",
        torch="x * torch.sigmoid(x).",
        jax="stop_gradient on the gate.",
        source="https://docs.jax.dev/en/latest/_autosummary/jax.lax.stop_gradient.html",
        build=kinked(lambda x: x * torch.sigmoid(x), lambda x, f: x * f(jax.nn.sigmoid(x))),
        wrong={"f": jax.lax.stop_gradient},
        right={"f": lambda x: x},
        place=FIRST,
        cause="stopped gradient",
        fix="stop_gradient",
    ),
    Trap(
        name="norm at zero",
        stage="gradient",
        torch="The gradient of torch.norm at 0 is 0.",
        jax="That of jnp.linalg.norm is NaN.",
        source="https://docs.jax.dev/en/latest/faq.html",
        build=kinked(lambda x: x * x[:, :4].norm(dim=1, keepdim=True), lambda x, safe: x * _norm(x[:, :4], safe)),
        wrong={"safe": False},
        right={"safe": True},
        place=FIRST,
        cause="not a number",
        fix="where",
    ),
]


def _norm(x: Any, safe: bool) -> Any:
    if not safe:
        return jnp.linalg.norm(x, axis=1, keepdims=True)
    square = (x**2).sum(1, keepdims=True)
    return jnp.where(square > 0, jnp.sqrt(jnp.where(square > 0, square, 1)), 0)


UPDATE = ("update", "*")


def optimizer(ours: Any, theirs: Callable[..., optax.GradientTransformation]) -> Callable[..., Pair]:
    return lambda **settings: on_optimizer(ours, theirs(**settings))


def scheduled(opt: optim.Optimizer, schedule: Callable[[Any], Any]) -> optim.Optimizer:
    scheduler = schedule(opt)
    opt.register_step_post_hook(lambda *arguments: scheduler.step())
    return opt


def clipped(opt: optim.Optimizer, largest: float) -> optim.Optimizer:
    def clip(opt: Any, *arguments: Any) -> None:
        nn.utils.clip_grad_norm_([p for group in opt.param_groups for p in group["params"]], largest)

    opt.register_step_pre_hook(clip)
    return opt


def clip_like_torch(largest: float) -> optax.GradientTransformation:
    """Clip as torch does: by norm + 1e-6, where optax.clip_by_global_norm divides by the norm."""

    def update(grads: Any, state: Any, params: Any = None) -> Any:
        factor = jnp.minimum(1.0, largest / (optax.tree.norm(grads) + 1e-6))
        return jax.tree.map(lambda g: g * factor, grads), state

    return optax.GradientTransformation(lambda params: optax.EmptyState(), update)


def adagrad(rate: float) -> optax.GradientTransformation:
    def update(grads: Any, state: Any, params: Any = None) -> Any:
        total = jax.tree.map(lambda s, g: s + g * g, state.sum_of_squares, grads)
        return jax.tree.map(lambda g, s: -rate * g / (jnp.sqrt(s) + 1e-10), grads, total), optax.ScaleByRssState(total)

    return optax.GradientTransformation(optax.scale_by_rss(initial_accumulator_value=0.0).init, update)


def matrices(params: Any) -> Any:
    return jax.tree.map(lambda leaf: leaf.ndim > 1, params)


def groups(params: Any) -> Any:
    return [{"params": [p for p in params_ if p.dim() > 1]} for params_ in [list(params)]]


def decayed(opt: Any, decay: float, *, first: bool) -> Any:
    add = optax.add_decayed_weights(decay)
    return optax.chain(add, opt) if first else optax.chain(opt, add)


def setting(
    name: str,
    ours: Any,
    theirs: Any,
    wrong: dict[str, Any],
    right: dict[str, Any],
    says: tuple[str, str],
    cause: str,
    fix: str,
) -> Trap:
    return Trap(
        name=name,
        stage="optimizer",
        torch=says[0],
        jax=says[1],
        source=f"{OPTAX}optimizers.html",
        build=optimizer(ours, theirs),
        wrong=wrong,
        right=right,
        place=UPDATE,
        cause=cause,
        fix=fix,
    )


OPTIMIZERS = [
    setting(
        "AdamW weight decay",
        lambda p: optim.AdamW(p, 1e-2),
        lambda **s: optax.adamw(1e-2, **s),
        {},
        {"weight_decay": 1e-2},
        ("1e-2 by default.", "optax.adamw: 1e-4."),
        "weight decay",
        "weight_decay=0.01",
    ),
    setting(
        "L2 or decoupled weight decay",
        lambda p: optim.Adam(p, 1e-2, weight_decay=0.1),
        lambda decoupled: (
            optax.adamw(1e-2, weight_decay=0.1) if decoupled else decayed(optax.adam(1e-2), 0.1, first=True)
        ),
        {"decoupled": True},
        {"decoupled": False},
        ("Adam(weight_decay=) adds it to the gradient.", "optax.adamw is decoupled."),
        "decoupled",
        "add_decayed_weights",
    ),
    setting(
        "decoupled or L2 weight decay",
        lambda p: optim.AdamW(p, 1e-2, weight_decay=0.1),
        lambda decoupled: (
            optax.adamw(1e-2, weight_decay=0.1) if decoupled else decayed(optax.adam(1e-2), 0.1, first=True)
        ),
        {"decoupled": False},
        {"decoupled": True},
        ("AdamW is decoupled.", "Added to the gradient."),
        "decoupled",
        "adamw",
    ),
    setting(
        "Adam epsilon",
        lambda p: optim.Adam(p, 1e-2),
        lambda **s: optax.adam(1e-2, **s),
        {"eps": 1e-7},
        {"eps": 1e-8},
        ("1e-8.", "1e-7, as Keras."),
        "epsilon",
        "eps=1e-08",
    ),
    setting(
        "Adam eps_root",
        lambda p: optim.Adam(p, 1e-2),
        lambda eps, eps_root=0.0: optax.adam(1e-2, eps=eps, eps_root=eps_root),
        {"eps": 0.0, "eps_root": 1e-8},
        {"eps": 1e-8, "eps_root": 0.0},
        ("epsilon outside of the root.", "eps_root is inside."),
        "inside the root",
        r"eps=1e-08, eps_root=0\.0",
    ),
    setting(
        "Adam b1",
        lambda p: optim.Adam(p, 1e-2),
        lambda **s: optax.adam(1e-2, **s),
        {"b1": 0.95},
        {"b1": 0.9},
        ("betas[0]=0.9.", "0.95."),
        "first moment",
        r"b1=0\.9",
    ),
    setting(
        "Adam b2",
        lambda p: optim.Adam(p, 1e-2),
        lambda **s: optax.adam(1e-2, **s),
        {"b2": 0.99},
        {"b2": 0.999},
        ("betas[1]=0.999.", "0.99."),
        "second moment",
        r"b2=0\.999",
    ),
    setting(
        "no bias correction",
        lambda p: optim.Adam(p, 1e-2),
        lambda corrected: optax.adam(1e-2) if corrected else _uncorrected(1e-2),
        {"corrected": False},
        {"corrected": True},
        ("Moments are divided by 1 - b**t.", "They are not, as in BERT's optimizer."),
        "bias correction",
        "divide",
    ),
    setting(
        "learning rate",
        lambda p: optim.Adam(p, 3e-4),
        lambda **s: optax.adam(**s),
        {"learning_rate": 1e-3},
        {"learning_rate": 3e-4},
        ("3e-4.", "1e-3."),
        "learning rate",
        "learning_rate=0.0003",
    ),
    setting(
        "RMSprop decay",
        lambda p: optim.RMSprop(p, 1e-3),
        lambda **s: optax.rmsprop(1e-3, eps_in_sqrt=False, **s),
        {},
        {"decay": 0.99},
        ("alpha=0.99.", "decay=0.9."),
        "decay",
        r"decay=0\.99",
    ),
    setting(
        "RMSprop epsilon in the root",
        lambda p: optim.RMSprop(p, 1e-3),
        lambda **s: optax.rmsprop(1e-3, decay=0.99, **s),
        {},
        {"eps_in_sqrt": False},
        ("Outside of the root.", "Inside by default."),
        "inside the root",
        "eps_in_sqrt=False",
    ),
    setting(
        "RMSprop centered",
        lambda p: optim.RMSprop(p, 1e-3, centered=True),
        lambda **s: optax.rmsprop(1e-3, decay=0.99, eps_in_sqrt=False, **s),
        {"centered": False},
        {"centered": True},
        ("centered=True.", "False."),
        "centring",
        "centered=True",
    ),
    setting(
        "Adagrad accumulator",
        lambda p: optim.Adagrad(p, 1e-2),
        lambda like_torch: adagrad(1e-2) if like_torch else optax.adagrad(1e-2),
        {"like_torch": False},
        {"like_torch": True},
        ("Starts at 0, eps 1e-10 outside of the root.", "Starts at 0.1, eps 1e-7 inside."),
        "initial accumulator",
        "initial_accumulator_value=0",
    ),
    setting(
        "NAdam's momentum decay",
        lambda p: optim.NAdam(p, 2e-3),
        lambda like_torch: _nadam() if like_torch else optax.nadam(2e-3),
        {"like_torch": False},
        {"like_torch": True},
        ("Momentum grows by a schedule.", "optax.nadam has none."),
        "momentum decay",
        "NAdam",
    ),
    setting(
        "AMSGrad's maximum",
        lambda p: optim.Adam(p, 1e-2, amsgrad=True),
        lambda like_torch: _amsgrad(1e-2) if like_torch else optax.amsgrad(1e-2),
        {"like_torch": False},
        {"like_torch": True},
        ("Over raw moments.", "Over corrected ones."),
        "amsgrad",
        "uncorrected",
    ),
    setting(
        "SGD momentum",
        lambda p: optim.SGD(p, 0.1, 0.9),
        lambda **s: optax.sgd(0.1, **s),
        {"momentum": 0.99},
        {"momentum": 0.9},
        ("0.9.", "0.99."),
        "momentum",
        r"momentum=0\.9",
    ),
    setting(
        "Nesterov",
        lambda p: optim.SGD(p, 0.1, 0.9, nesterov=True),
        lambda **s: optax.sgd(0.1, 0.9, **s),
        {"nesterov": False},
        {"nesterov": True},
        ("nesterov=True.", "False."),
        "Nesterov",
        "nesterov=True",
    ),
    setting(
        "dampening",
        lambda p: optim.SGD(p, 0.1, 0.9, dampening=0.5),
        lambda like_torch: _dampened() if like_torch else optax.sgd(0.1, 0.9),
        {"like_torch": False},
        {"like_torch": True},
        ("dampening=0.5.", "optax.sgd has none."),
        "dampening",
        "dampening=0.5",
    ),
    setting(
        "weight decay after momentum",
        lambda p: optim.SGD(p, 0.1, 0.9, weight_decay=0.1),
        lambda first: (
            optax.chain(optax.add_decayed_weights(0.1), optax.sgd(0.1, 0.9))
            if first
            else optax.chain(optax.trace(0.9), optax.add_decayed_weights(0.1), optax.scale(-0.1))
        ),
        {"first": False},
        {"first": True},
        ("Decay is part of the gradient.", "Added after the momentum."),
        "after momentum",
        "add_decayed_weights",
    ),
    setting(
        "weight decay mask",
        lambda p: optim.AdamW(p, 1e-2, weight_decay=0.1),
        lambda mask: optax.adamw(1e-2, weight_decay=0.1, mask=mask),
        {"mask": matrices},
        {"mask": None},
        ("Decays all of a group.", "A mask leaves out biases."),
        "mask",
        "mask",
    ),
    setting(
        "frozen on one side",
        lambda p: optim.SGD(p, 0.1),
        lambda frozen: optax.multi_transform(
            {True: optax.sgd(0.1), False: optax.set_to_zero() if frozen else optax.sgd(0.1)}, matrices
        ),
        {"frozen": True},
        {"frozen": False},
        ("Trains all.", "set_to_zero for biases."),
        "frozen",
        "set_to_zero",
    ),
    setting(
        "one learning rate for all groups",
        lambda p: optim.SGD([{"params": [q], "lr": 0.1 * q.dim()} for q in p]),
        lambda own: optax.multi_transform({True: optax.sgd(0.2), False: optax.sgd(0.1 if own else 0.2)}, matrices),
        {"own": False},
        {"own": True},
        ("A group has a learning rate of its own.", "One for all."),
        "parameter groups",
        "multi_transform",
    ),
    setting(
        "clipping's epsilon",
        lambda p: clipped(optim.SGD(p, 0.1), 0.05),
        lambda like_torch: optax.chain(
            clip_like_torch(0.05) if like_torch else optax.clip_by_global_norm(0.05), optax.sgd(0.1)
        ),
        {"like_torch": False},
        {"like_torch": True},
        ("max_norm / (norm + 1e-6).", "max_norm / norm."),
        "clipping",
        "1e-6",
    ),
    setting(
        "clipping forgotten",
        lambda p: clipped(optim.Adam(p, 1e-2), 0.05),
        lambda clip: optax.chain(clip_like_torch(0.05), optax.adam(1e-2)) if clip else optax.adam(1e-2),
        {"clip": False},
        {"clip": True},
        ("clip_grad_norm_.", "None."),
        "clipping",
        "clip_by_global_norm",
    ),
    setting(
        "clipping by value",
        lambda p: clipped(optim.SGD(p, 0.1), 0.05),
        lambda by_norm: optax.chain(clip_like_torch(0.05) if by_norm else optax.clip(0.05), optax.sgd(0.1)),
        {"by_norm": False},
        {"by_norm": True},
        ("By norm.", "optax.clip: by value."),
        "clipping",
        "clip_by_global_norm",
    ),
    setting(
        "half of the batches",
        lambda p: optim.SGD(p, 0.1),
        lambda every: optax.chain(optax.sgd(0.1), optax.apply_every(every)),
        {"every": 2},
        {"every": 1},
        ("Steps on each batch.", "Steps on every second batch, with the gradients of both."),
        "accumulation",
        "apply_every",
    ),
]

SCHEDULE = f"{OPTAX}optimizer_schedules.html"


def schedule(
    name: str,
    ours: Any,
    theirs: Any,
    wrong: dict[str, Any],
    right: dict[str, Any],
    says: tuple[str, str],
    cause: str = "schedule|learning rate",
    steps: int = 6,
) -> Trap:
    return Trap(
        name=name,
        stage="schedule",
        torch=says[0],
        jax=says[1],
        source=SCHEDULE,
        build=optimizer(lambda p: scheduled(optim.SGD(p, 0.1), ours), theirs),
        wrong=wrong,
        right=right,
        place=UPDATE,
        cause=cause,
        fix="learning_rate=|count",
        steps=steps,
    )


SCHEDULES = [
    schedule(
        "a step ahead",
        lambda o: optim.lr_scheduler.ExponentialLR(o, 0.5),
        lambda ahead: optax.sgd(lambda t: 0.1 * 0.5 ** (t + ahead)),
        {"ahead": 1.0},
        {"ahead": 0.0},
        ("The scheduler steps after the optimizer.", "The schedule sees t + 1."),
        "schedule",
    ),
    schedule(
        "a step behind",
        lambda o: optim.lr_scheduler.ExponentialLR(o, 0.5),
        lambda behind: optax.sgd(lambda t: 0.1 * 0.5 ** jnp.maximum(t - behind, 0)),
        {"behind": 1.0},
        {"behind": 0.0},
        ("Counts from 0.", "Counts from 1."),
        "schedule",
    ),
    schedule(
        "StepLR without staircase",
        lambda o: optim.lr_scheduler.StepLR(o, 2, 0.5),
        lambda **s: optax.sgd(optax.exponential_decay(0.1, 2, 0.5, **s)),
        {},
        {"staircase": True},
        ("The rate falls at every second step.", "exponential_decay falls at every step."),
    ),
    schedule(
        "cosine to eta_min",
        lambda o: optim.lr_scheduler.CosineAnnealingLR(o, 5, 0.01),
        lambda **s: optax.sgd(optax.cosine_decay_schedule(0.1, 5, **s)),
        {"alpha": 0.01},
        {"alpha": 0.1},
        ("eta_min is a learning rate.", "alpha is a fraction of the first rate."),
    ),
    schedule(
        "cosine past T_max",
        lambda o: optim.lr_scheduler.CosineAnnealingLR(o, 2),
        lambda again: optax.sgd(_cosine if again else optax.cosine_decay_schedule(0.1, 2)),
        {"again": False},
        {"again": True},
        ("The rate rises again.", "The rate stays at its end."),
    ),
    schedule(
        "warm-up from another start",
        lambda o: optim.lr_scheduler.LinearLR(o, 0.25, total_iters=4),
        lambda init_value: optax.sgd(optax.linear_schedule(init_value, 0.1, 4)),
        {"init_value": 0.0},
        {"init_value": 0.025},
        ("LinearLR starts at start_factor.", "At 0."),
        "schedule|learning rate",
    ),
    schedule(
        "boundary at or after a step",
        lambda o: optim.lr_scheduler.MultiStepLR(o, [2], 0.1),
        lambda at: optax.sgd(optax.piecewise_constant_schedule(0.1, {at: 0.1})),
        {"at": 3},
        {"at": 2},
        ("The rate falls at epoch 2.", "At 3."),
    ),
]


def _cosine(t: Any) -> Any:
    return 0.05 * (1 + jnp.cos(jnp.pi * t / 2))


def _uncorrected(rate: float) -> Any:
    def update(grads: Any, state: Any, params: Any = None) -> Any:
        mu = jax.tree.map(lambda m, g: 0.9 * m + 0.1 * g, state.mu, grads)
        nu = jax.tree.map(lambda v, g: 0.999 * v + 0.001 * g * g, state.nu, grads)
        step = jax.tree.map(lambda m, v: -rate * m / (jnp.sqrt(v) + 1e-8), mu, nu)
        return step, optax.ScaleByAdamState(state.count + 1, mu, nu)

    return optax.GradientTransformation(optax.scale_by_adam().init, update)


def _amsgrad(rate: float) -> Any:
    init = optax.scale_by_amsgrad().init

    def update(grads: Any, state: Any, params: Any = None) -> Any:
        count = state.count + 1
        mu = jax.tree.map(lambda m, g: 0.9 * m + 0.1 * g, state.mu, grads)
        nu = jax.tree.map(lambda v, g: 0.999 * v + 0.001 * g * g, state.nu, grads)
        largest = jax.tree.map(jnp.maximum, state.nu_max, nu)
        step = jax.tree.map(
            lambda m, v: -rate * (m / (1 - 0.9**count)) / (jnp.sqrt(v / (1 - 0.999**count)) + 1e-8), mu, largest
        )
        return step, type(state)(count=count, mu=mu, nu=nu, nu_max=largest)

    return optax.GradientTransformation(init, update)


def _nadam(rate: float = 2e-3, b1: float = 0.9, b2: float = 0.999, decay: float = 4e-3) -> Any:
    def init(params: Any) -> Any:
        zeros = jax.tree.map(jnp.zeros_like, params)
        return {"count": jnp.zeros([], jnp.int32), "mu": zeros, "nu": zeros, "product": jnp.ones([])}

    def update(grads: Any, state: Any, params: Any = None) -> Any:
        count = state["count"] + 1
        now, after = (b1 * (1 - 0.5 * 0.96 ** (t * decay)) for t in (count, count + 1))
        product = state["product"] * now
        mu = jax.tree.map(lambda m, g: b1 * m + (1 - b1) * g, state["mu"], grads)
        nu = jax.tree.map(lambda v, g: b2 * v + (1 - b2) * g * g, state["nu"], grads)

        def step(g: Any, m: Any, v: Any) -> Any:
            mean = g * (1 - now) / (1 - product) + m * after / (1 - product * after)
            return -rate * mean / (jnp.sqrt(v / (1 - b2**count)) + 1e-8)

        return jax.tree.map(step, grads, mu, nu), {"count": count, "mu": mu, "nu": nu, "product": product}

    return optax.GradientTransformation(init, update)


def _dampened() -> Any:
    def update(grads: Any, state: Any, params: Any = None) -> Any:
        first, trace = state.count == 0, state.trace
        trace = jax.tree.map(lambda t, g: jnp.where(first, g, 0.9 * t + 0.5 * g), trace, grads)
        return jax.tree.map(lambda t: -0.1 * t, trace), _Dampened(trace, state.count + 1)

    return optax.GradientTransformation(
        lambda params: _Dampened(jax.tree.map(jnp.zeros_like, params), jnp.zeros([], jnp.int32)), update
    )


class _Dampened(NamedTuple):
    trace: Any
    count: Any


TRAPS = [*LOSSES, *GRADIENTS, *OPTIMIZERS, *SCHEDULES]

if tuple(map(int, torch.__version__.split(".")[:2])) >= (2, 14):  # clamp(min=0) has relu's gradient at 0 since then
    TRAPS = [trap for trap in TRAPS if not trap.name.startswith("clamp at zero")]
