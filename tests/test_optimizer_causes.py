"""Causes in optimizers hold at every step: schedules, masks, several at once, and none where nothing holds."""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
import torch
from flax import linen, nnx
from in_ci import first, some
from torch import nn, optim
from torch.optim import lr_scheduler

import compare
from benchmarks.traps.optimizers import by_axes, every, named, recurrent
from benchmarks.traps.training import clip_like_torch, clipped, scheduled
from compare.diagnosis.optimizers.rates import Rates
from compare.verdict.divergence import DetailKind


class Original(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.first, self.norm, self.last = nn.Linear(5, 7), nn.LayerNorm(7), nn.Linear(7, 3)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        result: torch.Tensor = self.last(torch.tanh(self.norm(self.first(x))))
        return result


class Port(nnx.Module):
    def __init__(self) -> None:
        rngs = nnx.Rngs(0)
        self.first, self.last = nnx.Linear(5, 7, rngs=rngs), nnx.Linear(7, 3, rngs=rngs)
        self.norm = nnx.LayerNorm(7, epsilon=1e-5, use_fast_variance=False, rngs=rngs)

    def __call__(self, x: Any) -> Any:
        return self.last(jnp.tanh(self.norm(self.first(x))))


def mean_square(output: Any, target: Any) -> Any:
    return jnp.mean((output - target) ** 2)


def compared(ours: Callable[[Any], Any], theirs: Any, steps: int, factor: float = 1.0) -> compare.Report:
    torch.manual_seed(0)
    rng = np.random.default_rng(0)
    batches = [(rng.standard_normal((6, 5), np.float32), rng.standard_normal((6, 3), np.float32)) for _ in range(2)]
    return compare.check(
        compare.Torch(Original(), nn.functional.mse_loss, ours),
        compare.Flax(Port(), lambda output, target: factor * mean_square(output, target), theirs),
        batches,
        steps=steps,
        device="cpu",
    )


class Different(NamedTuple):
    torch: Callable[[Any], Any]
    optax: Any
    cause: str
    says: str
    fix: str
    steps: int = 5


def warmed_up(params: Any) -> optim.Optimizer:
    """Clip, decay matrices alone, and warm up."""
    optimizer = clipped(optim.AdamW(by_axes(params), 2e-2), 0.2)
    return scheduled(optimizer, lambda o: lr_scheduler.LinearLR(o, 0.25, total_iters=4))


class ByHand(optim.Optimizer):
    """Adam without its corrections, with an epsilon that no setting shows."""

    def __init__(self, params: Any, lr: float) -> None:
        super().__init__(params, {"lr": lr})

    @torch.no_grad()
    def step(self, closure: Any = None) -> None:  # type: ignore[override]
        for group in self.param_groups:
            for parameter in group["params"]:
                state = self.state[parameter]
                if not state:
                    state["squares"] = torch.zeros_like(parameter)
                state["squares"].mul_(0.9).addcmul_(parameter.grad, parameter.grad, value=0.1)
                parameter.addcdiv_(parameter.grad, state["squares"].sqrt() + 1e-5, value=-group["lr"])


DIFFERENT = {
    "a rate that differs at most steps": Different(
        lambda p: scheduled(optim.SGD(p, 0.2), lambda o: lr_scheduler.StepLR(o, 3, 0.6)),
        optax.sgd(optax.exponential_decay(0.2, 3, 0.6)),
        "schedule",
        "torch 0.2 0.2 0.2 0.12 0.12, optax 0.2 0.1687 0.1423 0.12 0.1012",
        "optax.sgd(learning_rate=optax.exponential_decay(0.2, 3, 0.6, staircase=True))",
    ),
    "a schedule by epochs": Different(
        lambda p: every(optim.Adam(p, 0.02), 2, lambda o: lr_scheduler.MultiStepLR(o, [1, 2], 0.5)),
        optax.adam(optax.piecewise_constant_schedule(0.02, {1: 0.5, 2: 0.5})),
        "schedule",
        "stepped every 2 steps",
        "optax.adam(learning_rate=optax.piecewise_constant_schedule(0.02, {2: 0.5, 4: 0.5})",
        6,
    ),
    "a schedule by epochs, by steps": Different(
        lambda p: every(optim.Adam(p, 0.02), 2, lambda o: lr_scheduler.StepLR(o, 1, 0.5)),
        optax.adam(optax.exponential_decay(0.02, 1, 0.5, staircase=True)),
        "schedule",
        "stepped every 2 steps",
        "optax.adam(learning_rate=optax.exponential_decay(0.02, 2, 0.5, staircase=True))",
        6,
    ),
    "a schedule by epochs, without staircase": Different(
        lambda p: every(optim.Adam(p, 0.02), 2, lambda o: lr_scheduler.StepLR(o, 1, 0.5)),
        optax.adam(optax.exponential_decay(0.02, 2, 0.5)),
        "schedule",
        "it lacks staircase=True",
        "optax.adam(learning_rate=optax.exponential_decay(0.02, 2, 0.5, staircase=True))",
        6,
    ),
    "a warm-up from 0 with clipping and a mask": Different(
        warmed_up,
        optax.chain(optax.clip_by_global_norm(0.2), optax.adamw(optax.linear_schedule(0.0, 2e-2, 4), weight_decay=0.1)),
        "clipping and schedule and weight decay mask",
        "decays first/bias, norm/scale, norm/bias, last/bias, and torch does not",
        "optax.adamw(learning_rate=optax.linear_schedule(0.005, 0.02, 4), weight_decay=0.1, mask=",
    ),
    "OneCycleLR, whose steps are numbered": Different(
        lambda p: scheduled(optim.Adam(p, 1e-2), lambda o: lr_scheduler.OneCycleLR(o, 1e-2, total_steps=10)),
        optax.adam(optax.cosine_onecycle_schedule(10, 1e-2)),
        "schedule and first moment's decay schedule",
        "the JAX side has 0.9 at every step",
        "optax.inject_hyperparams(optax.adam)(learning_rate=optax.join_schedules(",
    ),
    "ascent with a clipping and a schedule": Different(
        lambda p: scheduled(clipped(optim.Adam(p, 1e-2), 0.2), lambda o: lr_scheduler.ExponentialLR(o, 0.5)),
        optax.chain(clip_like_torch(0.2), optax.scale(-1.0), optax.adam(lambda count: 1e-2 * 0.5 ** (count + 1.0))),
        "schedule and ascent",
        "one step ahead",
        "change the sign",
    ),
    "L2 and a schedule": Different(
        lambda p: scheduled(
            optim.SGD(p, 0.1, 0.9, weight_decay=1e-3), lambda o: lr_scheduler.CosineAnnealingLR(o, 8, 0.02)
        ),
        optax.sgd(optax.cosine_decay_schedule(0.1, 8, alpha=0.02), 0.9),
        "schedule and weight decay",
        "passes eta_min as alpha",
        "optax.chain(optax.add_decayed_weights(0.001), optax.sgd(learning_rate=optax.cosine_decay_schedule(0.1, 8, "
        "alpha=0.2), momentum=0.9))",
    ),
    "another rate for one layer": Different(
        lambda p: optim.SGD(p, 0.1),
        optax.multi_transform({True: optax.sgd(0.1), False: optax.sgd(0.02)}, named("kernel", "norm/bias", "scale")),
        "learning rate of some parameters",
        "0.02 for first/bias, last/bias",
        "give first/bias, last/bias the learning rate 0.1",
    ),
    "the first rate for two groups of a schedule": Different(
        lambda p: scheduled(
            optim.Adam([{"params": p[:2]}, {"params": p[2:], "lr": 2.5e-3}], 0.1),
            lambda o: lr_scheduler.LambdaLR(o, lambda step: 1 / (step + 2)),
        ),
        optax.adam(lambda step: 0.1 / (step + 2)),
        "learning rate of some parameters",
        "and torch 0.00125 at step 0: it is 40 times torch's at every step",
        "by 40",
    ),
    "another epsilon of an optimizer written by hand": Different(
        lambda p: ByHand(p, 1e-2),
        optax.chain(optax.scale_by_rms(decay=0.9, eps=1e-7, eps_in_sqrt=False), optax.scale(-1e-2)),
        "epsilon or gradient scale",
        "or has torch's epsilon divided by 100",
        "multiply its eps by 100",
    ),
    "the sign of a mean for Adam": Different(
        lambda p: optim.Adam(p, 1e-2),
        optax.lion(1e-2),
        "another optimizer",
        "torch has torch.optim.Adam, and the JAX side steps as optax.lion(0.01) does",
        "optax.adam(0.01)",
    ),
    "another second moment": Different(
        lambda p: optim.AdamW(p, 1e-3, weight_decay=0.0),
        optax.adabelief(1e-3),
        "another optimizer",
        "steps as optax.adabelief(0.001) does",
        "optax.adamw(0.001, weight_decay=0)",
    ),
    "SGD for Adam, at another rate": Different(
        lambda p: optim.Adam(p, 1e-2, betas=(0.8, 0.99)),
        optax.sgd(5e-2, momentum=0.8),
        "another optimizer",
        "steps as optax.sgd(0.05, momentum=0.8) does",
        "optax.adam(0.01, b1=0.8, b2=0.99)",
    ),
    "Adam for SGD": Different(
        lambda p: optim.SGD(p, 1e-2, momentum=0.9),
        optax.adam(1e-2),
        "another optimizer",
        "steps as optax.adam(0.01) does",
        "optax.sgd(0.01, momentum=0.9)",
    ),
    "two batches for one update of Adam": Different(
        lambda p: optim.Adam(p, 1e-2),
        optax.MultiSteps(optax.adam(1e-2), 2).gradient_transformation(),
        "accumulation",
        "makes an update at every 2 steps",
        "optax.adam(...) without optax.MultiSteps",
    ),
    "nothing that is known": Different(
        lambda p: optim.Adam(p, 1e-2),
        optax.chain(optax.stateless(lambda updates, params: jax.tree.map(jnp.sin, updates)), optax.lion(1e-2)),
        "",
        "",
        "",
        3,
    ),
}


IN_CI = ("another second moment",)


@pytest.mark.parametrize("name", some(DIFFERENT, IN_CI))
def test_a_cause_holds_at_every_step(name: str) -> None:
    different = DIFFERENT[name]
    report = compared(different.torch, different.optax, different.steps)
    assert report.divergence is not None
    assert report.divergence.stage == "update"
    assert not report.bugs
    cause = report.divergence.cause
    if not different.cause:
        assert cause is None
        return
    assert cause is not None, str(report)
    assert cause.name == different.cause
    assert different.says in cause.explanation
    assert f"at all {different.steps} steps" in cause.explanation
    assert different.fix in cause.fix


def bend(count: int) -> float:
    """Return a factor that no schedule of optax gives."""
    return 1 / (1 + count * count)


MASK = {"weight_decay": 0.1, "mask": lambda params: jax.tree.map(lambda each: each.ndim > 1, params)}


@pytest.mark.slow
def test_a_fix_of_a_schedule_leaves_right_parameter_groups_alone() -> None:
    """The first of torch's parameter groups has no weight decay, and the port has the decay of the second."""
    wrong = optax.adamw(optax.linear_schedule(0.0, 2e-2, 4), **MASK)

    def ours(schedule: Callable[[Any], Any]) -> Callable[[Any], Any]:
        return lambda p: scheduled(optim.AdamW(reversed(by_axes(p)), 2e-2), schedule)

    known = compared(ours(lambda o: lr_scheduler.LinearLR(o, 0.25, total_iters=4)), wrong, 3).divergence
    assert known is not None
    assert known.cause is not None
    assert known.cause.fix == "optax.adamw(..., learning_rate=optax.linear_schedule(0.005, 0.02, 4))"
    assert [set(code.keywords) for code in known.cause.code] == [{"learning_rate"}]
    other = compared(ours(lambda o: lr_scheduler.LambdaLR(o, bend)), wrong, 3).divergence
    assert other is not None
    assert other.cause is not None
    assert other.cause.name == "schedule"
    assert other.cause.fix.startswith("write the function of torch's LambdaLR with jnp")
    assert not other.cause.code  # the port has no name for that function


def test_a_patch_of_a_rate_leaves_right_arguments_alone() -> None:
    """They are printed with the fix, and the user's file may compute them."""
    divergence = compared(lambda p: optim.SGD(p, 0.1, 0.9, nesterov=True), optax.sgd(0.2, 0.9, nesterov=True), 3)
    assert divergence.divergence is not None
    cause = divergence.divergence.cause
    assert cause is not None
    assert cause.fix == "optax.sgd(learning_rate=0.1, momentum=0.9, nesterov=True)"
    assert [dict(code.keywords) for code in cause.code] == [{"learning_rate": 0.1}]


def test_one_step_of_plain_sgd_does_not_tell_a_rate_from_a_clipping() -> None:
    divergence = compared(lambda p: optim.SGD(p, 0.1), optax.sgd(0.0312345), steps=1).divergence
    assert divergence is not None
    assert divergence.cause is None
    assert divergence.details[0].kind == DetailKind.UNDECIDED
    assert any(detail.text.startswith("clipping") for detail in divergence.details)
    assert any(detail.text.startswith("learning rate") for detail in divergence.details)
    more = compared(lambda p: optim.SGD(p, 0.1), optax.sgd(0.0312345), steps=3).divergence  # which decides it
    assert more is not None
    assert more.cause is not None
    assert more.cause.name == "learning rate"


@pytest.mark.slow
def test_a_rate_that_went_through_float32_is_precision() -> None:
    schedule = optax.linear_schedule(0.01, 0.0, 3)

    def ours(factor: float) -> Callable[[Any], optim.Optimizer]:
        def shared(count: int) -> float:
            return factor * float(np.float32(0.01 * (1 - count / 3))) / 0.01

        return lambda p: scheduled(optim.SGD(p, 0.01), lambda o: lr_scheduler.LambdaLR(o, shared))

    report = compared(ours(1.0), optax.sgd(schedule), steps=3)
    assert report.verdict == "precision", str(report)
    assert report.notes[0].name == "learning rate in float32"
    torch_rates, _, jax_rates = report.notes[0].explanation.partition(", optax ")
    assert torch_rates.split()[-3:] != jax_rates.split()[:3]
    assert compared(ours(1 + 1e-6), optax.sgd(schedule), steps=3).verdict == "mismatch"


@pytest.mark.slow
def test_one_bias_for_two_makes_one_step() -> None:
    wrong = compare.check(*recurrent(twice=False), device="cpu").divergence
    assert wrong is not None
    assert wrong.cause is not None
    assert wrong.cause.name == "two biases"
    assert "optax.masked(optax.scale(2), " in wrong.cause.fix
    assert compare.check(*recurrent(twice=True), device="cpu").verdict == "match"


def test_a_right_clipping_is_no_second_finding() -> None:
    """The first step's gradient is too small to be clipped, and the next one's is not."""

    def later(optimizer: optim.Optimizer) -> optim.Optimizer:
        taken = [0]

        def clip(opt: Any, *_: Any) -> None:
            taken[0] += 1
            if taken[0] > 1:
                nn.utils.clip_grad_norm_([p for group in opt.param_groups for p in group["params"]], 0.1)

        optimizer.register_step_pre_hook(clip)
        return optimizer

    def update(grads: Any, count: Any, params: Any = None) -> Any:
        factor = jnp.minimum(1.0, 0.1 / (optax.tree.norm(grads) + 1e-6))
        return jax.tree.map(lambda g: jnp.where(count > 0, factor, 1.0) * g, grads), count + 1

    clip = optax.GradientTransformation(lambda params: jnp.zeros([], jnp.int32), update)
    report = compared(lambda p: later(optim.SGD(p, 0.1)), optax.chain(clip, optax.sgd(0.1)), steps=3, factor=0.5)
    assert report.divergence is not None
    assert report.divergence.stage == "loss"
    assert not [other for other in report.others if other.stage == "update"], str(report)


class Tied(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.tokens, self.head = nn.Embedding(9, 6), nn.Linear(6, 9, bias=False)
        self.head.weight = self.tokens.weight

    def forward(self, ids: torch.Tensor) -> torch.Tensor:
        result: torch.Tensor = self.head(torch.tanh(self.tokens(ids)))
        return result


class TiedPort(linen.Module):
    @linen.compact
    def __call__(self, ids: Any) -> Any:
        tokens = linen.Embed(9, 6, name="tokens")
        return tokens.attend(jnp.tanh(tokens(ids)))


def test_tied_weights_are_not_frozen() -> None:
    rng = np.random.default_rng(0)
    batches = [(rng.integers(0, 9, (4, 5)), rng.integers(0, 9, (4, 5)))]
    port = TiedPort()

    report = compare.check(
        compare.Torch(Tied(), lambda o, y: nn.functional.cross_entropy(o.flatten(0, 1), y.flatten())),
        compare.Flax(
            (port, port.init(jax.random.key(0), jnp.zeros((1, 1), jnp.int32))),
            lambda o, y: optax.softmax_cross_entropy_with_integer_labels(o, y).mean(),
        ),
        batches,
        device="cpu",
    )
    assert report.verdict == "match", str(report)
    assert not [each for each in report.not_compared if "frozen" in each.reason]


def test_a_frozen_parameter_is_said_to_be_frozen() -> None:
    model = Original()
    model.norm.weight.requires_grad_(False)
    report = compare.check(
        compare.Torch(model, nn.functional.mse_loss),
        compare.Flax(Port(), mean_square),
        [(np.ones((2, 5), np.float32), np.ones((2, 3), np.float32))],
        device="cpu",
    )
    assert [each.name for each in report.not_compared if "frozen" in each.reason] == ["gradient of norm/scale"]


class Shifted(nn.Module):
    """Has a weight that is not trained."""

    def __init__(self) -> None:
        super().__init__()
        self.shift = nn.Parameter(torch.randn(5), requires_grad=False)
        self.last = nn.Linear(5, 3)

    def forward(self, x: torch.Tensor) -> Any:
        return self.last(x + self.shift)


class ShiftedPort(nnx.Module):
    def __init__(self, *, frozen: bool) -> None:
        self.shift, self.frozen = nnx.Param(jnp.ones(5)), frozen
        self.last = nnx.Linear(5, 3, rngs=nnx.Rngs(0))

    def __call__(self, x: Any) -> Any:
        shift = self.shift[...]
        return self.last(x + (jax.lax.stop_gradient(shift) if self.frozen else shift))


def shifted(tx: optax.GradientTransformation, *, frozen: bool = True) -> compare.Report:
    rng = np.random.default_rng(0)
    batches = [(rng.standard_normal((6, 5)), rng.standard_normal((6, 3))) for _ in range(2)]
    ours = compare.Torch(Shifted(), nn.functional.mse_loss, lambda params: optim.AdamW(params, 1e-3))
    return compare.check(ours, compare.Flax(ShiftedPort(frozen=frozen), mean_square, tx), batches, steps=3)


def test_weight_decay_of_what_torch_does_not_train_has_its_cause() -> None:
    """The frozen weight has no gradient on the torch side: the JAX side's optimizer keeps its own, which is zero."""
    found = shifted(optax.adamw(1e-3, weight_decay=1e-2))
    assert found.divergence
    assert (found.divergence.stage, found.divergence.torch) == ("update", "shift")
    assert found.divergence.cause
    assert found.divergence.cause.name == "parameters without a gradient"
    assert not found.others


def test_what_the_jax_side_trains_alone_is_not_called_decay() -> None:
    found = shifted(optax.adamw(1e-3, weight_decay=1e-2), frozen=False)
    assert found.divergence
    assert found.divergence.torch == "shift"
    assert found.divergence.cause
    assert found.divergence.cause.name == "trained on the JAX side alone"


def test_what_neither_side_trains_is_a_match() -> None:
    tx = optax.multi_transform(
        {"trained": optax.adamw(1e-3, weight_decay=1e-2), "frozen": optax.set_to_zero()},
        lambda params: jax.tree.map_with_path(
            lambda path, _: "frozen" if "shift" in jax.tree_util.keystr(path) else "trained", params
        ),
    )
    assert shifted(tx).verdict == "match"


@pytest.mark.parametrize(
    ("kind", "decays"),
    first([(optim.AdamW, (0.3, 0.1, 0.0)), (optim.AdamW, (0.1, 0.0, 0.1)), (optim.Adam, (0.1, 0.0, 0.0))]),
)
def test_an_optimizer_for_each_parameter_group_can_be_copied(kind: Any, decays: tuple[float, ...]) -> None:
    """The labels say which parameters are in which group, and L2 is a transformation of its own in optax."""

    def ours(params: Any) -> optim.Optimizer:
        given = list(params)  # of the first layer, the norm and the last
        groups = [{"params": given[2 * n : 2 * n + 2], "weight_decay": decay} for n, decay in enumerate(decays)]
        optimizer: optim.Optimizer = kind(groups, lr=1e-2)
        return optimizer

    l2 = optax.chain(optax.add_decayed_weights(decays[0]), optax.adam(1e-2))
    report = compared(ours, optax.adamw(1e-2, weight_decay=decays[0]) if kind is optim.AdamW else l2, steps=2)
    assert report.divergence is not None
    assert report.divergence.cause is not None, str(report)
    fix = report.divergence.cause.fix
    assert fix.startswith("optax.multi_transform({0: "), fix
    copied = eval(fix.replace("...", "1e-2"), {"optax": optax, "jax": jax})
    assert compared(ours, copied, steps=2).ok


def test_what_torch_does_not_train_is_trained_by_no_fix() -> None:
    """Outside of the mask are what torch trains as well, the norm, and what it does not, the first layer."""

    def ours(params: Any) -> optim.Optimizer:
        return optim.RMSprop(list(params)[2:], 5e-3, eps=1e-7)

    def last(params: Any) -> Any:
        paths = jax.tree.map_with_path(lambda path, _: jax.tree_util.keystr(path), params)
        *_, (layer, _) = [path.split("]", 1) for path in jax.tree.leaves(paths)]
        return jax.tree.map(lambda path: path.startswith(layer), paths)

    right = optax.rmsprop(5e-3, decay=0.99, eps=1e-7, eps_in_sqrt=False)
    report = compared(ours, optax.masked(right, last), steps=2)
    assert report.divergence is not None
    assert report.divergence.cause is not None, str(report)
    assert report.divergence.cause.name == "parameters outside of the mask"
    fix = report.divergence.cause.fix
    assert "set_to_zero" in fix, fix
    given = "5e-3, decay=0.99, eps=1e-7, eps_in_sqrt=False"
    assert compared(ours, eval(fix.replace("...", given), {"optax": optax, "jax": jax}), steps=2).ok


def test_what_float32_rounds_is_told_from_what_is_as_near() -> None:
    rates = [number / 10_000 for number in range(100, 1000)]
    rate = min(rates, key=lambda each: abs(float(np.float32(each)) / each - 1) or 1.0)
    narrow = float(np.float32(rate))
    assert 0 < abs(narrow / rate - 1) < 1e-9, "float32 rounds this rate to nearly itself"
    assert Rates((rate,), (narrow,)).rounded
    assert Rates((narrow,), (rate,)).rounded
    assert Rates((0.1,), (0.1 * (1 + 1e-7),)).rounded
    for other in (0.1 * (1 + 1e-6), 0.1 * (1 + 1e-11), 0.1):
        assert not Rates((0.1,), (other,)).rounded


def test_the_fix_of_exchanged_rates_gives_each_parameter_its_own() -> None:
    """A call of `optax.multi_transform` without a rate in it would say nothing."""

    def ours(p: Any) -> optim.Optimizer:
        first, *rest = list(p)
        groups: list[dict[str, Any]] = [{"params": [first], "lr": 1e-3}, {"params": rest}]
        return optim.AdamW(groups, 4e-3)

    rates = {"first": optax.adamw(4e-3, weight_decay=1e-2), "rest": optax.adamw(1e-3, weight_decay=1e-2)}

    def labels(params: Any) -> Any:
        names = jax.tree.map_with_path(lambda path, _: jax.tree_util.keystr(path, simple=True, separator="/"), params)
        return jax.tree.map(lambda name: "first" if name.startswith("first/kernel") else "rest", names)

    report = compared(ours, optax.multi_transform(rates, labels), 3)
    assert report.divergence is not None
    cause = report.divergence.cause
    assert cause is not None
    assert cause.name == "parameter groups"
    assert "give first/kernel the learning rate 0.001: optax.multi_transform with an optimizer for each" in cause.fix
    assert "the learning rate 0.004" in cause.fix


def test_groups_that_differ_in_several_settings_are_one_cause() -> None:
    def ours(p: Any) -> optim.Optimizer:
        parameters = list(p)
        weights, biases = ([each for each in parameters if (each.ndim > 1) == several] for several in (True, False))
        groups: list[dict[str, Any]] = [{"params": weights}, {"params": biases, "lr": 1e-3, "weight_decay": 0.0}]
        return optim.AdamW(groups, 5e-4)

    report = compared(ours, optax.adamw(5e-4, weight_decay=1e-2), 3)
    assert report.divergence is not None
    cause = report.divergence.cause
    assert cause is not None
    assert cause.name == "parameter groups"
    assert "weight decay 0.01, learning rate 0.0005 for" in cause.explanation
    assert "the weight decay 0 and the learning rate 0.001" in cause.fix
    assert "kernel" not in cause.fix


def square(output: Any, target: Any) -> Any:
    return ((output - target) ** 2).mean()


def test_a_step_without_a_gradient_agrees_with_every_rate() -> None:
    rng = np.random.default_rng(0)
    batches = [(rng.normal(size=(4, 3)) * (number != 2), rng.normal(size=(4, 2))) for number in range(4)]
    report = compare.check(
        compare.Torch(torch.nn.Linear(3, 2, bias=False), square, lambda params: torch.optim.SGD(params, 0.01)),
        compare.Flax(nnx.Linear(3, 2, use_bias=False, rngs=nnx.Rngs(0)), square, optax.sgd(0.02)),
        batches,
        device="cpu",
        quick=True,
    )
    assert report.divergence is not None
    assert report.divergence.cause is not None
    assert report.divergence.cause.name == "learning rate", str(report)


def test_one_step_with_a_gradient_shows_no_other_optimizer() -> None:
    """Of two numbers, another epsilon of Adagrad's is RMSProp with another rate, as far as the first step goes."""

    def adagrad(eps: float) -> optax.GradientTransformation:
        def update(gradients: Any, sums: Any, params: Any = None) -> Any:
            del params
            sums = jax.tree.map(lambda total, each: total + each**2, sums, gradients)
            return jax.tree.map(lambda total, each: -1e-3 * each / (jnp.sqrt(total) + eps), sums, gradients), sums

        return optax.GradientTransformation(lambda params: jax.tree.map(jnp.zeros_like, params), update)

    rng = np.random.default_rng(0)
    batches = [(rng.normal(size=(4, 1)) * (number == 0), rng.normal(size=(4, 2))) for number in range(2)]
    report = compare.check(
        compare.Torch(torch.nn.Linear(1, 2, bias=False), square, lambda p: optim.Adagrad(p, 1e-3, eps=1e-8)),
        compare.Flax(nnx.Linear(1, 2, use_bias=False, rngs=nnx.Rngs(0)), square, adagrad(1e-7)),
        batches,
        steps=2,
        device="cpu",
        quick=True,
    )
    assert report.divergence is not None
    assert report.divergence.stage == "update"
    assert report.divergence.cause is None, str(report)


@pytest.mark.parametrize(
    ("theirs", "cause"),
    [
        (optax.adam(0.1, eps=1e-7), "epsilon"),
        (optax.adam(0.1, eps_root=1e-8), "epsilon inside the root"),
    ],
)
def test_a_model_of_one_weight(theirs: optax.GradientTransformation, cause: str) -> None:
    """Its rates may be fitted to three numbers: that they are near to torch's does not make them its rounded ones."""
    rng = np.random.default_rng(0)
    report = compare.check(
        compare.Torch(torch.nn.Linear(1, 1, bias=False), square, lambda p: optim.Adam(p, 0.1)),
        compare.Flax(nnx.Linear(1, 1, use_bias=False, rngs=nnx.Rngs(0)), square, theirs),
        [(rng.normal(size=(16, 1)), rng.normal(size=(16, 1)))],
        steps=3,
        device="cpu",
        quick=True,
    )
    assert report.divergence is not None
    assert report.divergence.cause is not None
    assert report.divergence.cause.name == cause


def test_a_weight_decay_that_changes_from_step_to_step() -> None:
    """Both sides decay the same parameters: it is no mask."""

    def ours(params: Any) -> optim.Optimizer:
        given = list(params)
        groups = [{"params": [p for p in given if p.ndim > 1]}, {"params": [p for p in given if p.ndim < 2]}]
        optimizer = optim.AdamW(groups, 1e-2, weight_decay=0.04)
        optimizer.param_groups[1]["weight_decay"] = 0.0

        def later(optimizer: optim.Optimizer, *_: Any) -> None:
            optimizer.param_groups[0]["weight_decay"] += 0.1

        optimizer.register_step_post_hook(later)
        return optimizer

    theirs = optax.adamw(1e-2, weight_decay=0.04, mask=lambda tree: jax.tree.map(lambda each: each.ndim > 1, tree))
    divergence = compared(ours, theirs, steps=3).divergence
    assert divergence is not None
    assert divergence.cause is not None
    assert divergence.cause.name == "weight decay from step to step"
    assert "0.04, 0.14, 0.24" in divergence.cause.fix
