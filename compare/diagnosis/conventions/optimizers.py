"""Other formulas for an update, which no setting of torch's optimizers expresses.

The formulas are those of optax's source (optax/_src/transform.py) and of torch.optim's documentation.
"""

from collections.abc import Callable, Mapping
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, NamedTuple

if TYPE_CHECKING:
    import torch

DOCS = "https://optax.readthedocs.io/en/latest/api/optimizers.html"


ADAGRAD_EPSILON = (
    "write the update as -lr * g / (jnp.sqrt(sum_of_squares) + {eps}): optax.adagrad adds its eps in the root"
)
"""What is to be done about the epsilon of Adagrad, which torch adds to the root."""


class Convention(NamedTuple):
    """Another way to make an update out of the same state, that no setting of torch's expresses."""

    name: str
    optimizers: tuple[str, ...]
    update: Callable[["Step"], "torch.Tensor"]
    """What is added to one parameter."""
    jax_does: str
    fix: str
    source: str
    state: Callable[["Step"], dict[str, "torch.Tensor"]] = lambda step: {}
    """What is remembered otherwise than in torch."""
    slot: str = ""
    """A part of the state that the JAX side must keep for it, as torch calls it."""
    arguments: Mapping[str, bool | float] = MappingProxyType({})
    """Arguments of optax's optimizer that mend it, in the place of `fix`; with them goes torch's eps."""


class Step(NamedTuple):
    """One parameter's update, in torch: before and after."""

    parameter: "torch.Tensor"
    """Before the update."""
    gradient: "torch.Tensor"
    settings: Mapping[str, Any]
    before: Mapping[str, Any]
    """The optimizer's state of it; empty at the first step."""
    after: Mapping[str, Any]

    @property
    def steps(self) -> float:
        """How many steps there have been, this one included."""
        return float(self.after["step"])

    @property
    def regularized(self) -> "torch.Tensor":
        """The gradient, with the weight decay that is part of it."""
        if self.settings.get("decoupled_weight_decay"):
            return self.gradient
        return self.gradient + self.settings.get("weight_decay", 0) * self.parameter

    @property
    def decay(self) -> "torch.Tensor":
        """What decoupled weight decay adds to the parameter."""
        decoupled = self.settings.get("decoupled_weight_decay", False)
        return -self.settings["lr"] * self.settings.get("weight_decay", 0) * self.parameter * decoupled

    @property
    def corrected(self) -> "tuple[torch.Tensor, torch.Tensor]":
        """Adam's first and second moment, without their bias towards zero."""
        b1, b2 = self.settings["betas"]
        mean = self.after["exp_avg"] / (1 - b1**self.steps)
        return mean, self.after["exp_avg_sq"] / (1 - b2**self.steps)


def _eps_root(step: Step) -> "torch.Tensor":
    mean, square = step.corrected
    return step.decay - step.settings["lr"] * mean / (square + step.settings["eps"]).sqrt()


def root_added(value: float) -> Convention:
    """Adam with a number inside the square root, besides epsilon outside of it."""

    def update(step: Step) -> "torch.Tensor":
        mean, square = step.corrected
        if step.settings.get("amsgrad"):
            square = step.after["max_exp_avg_sq"] / (1 - step.settings["betas"][1] ** step.steps)
        return step.decay - step.settings["lr"] * mean / ((square + value).sqrt() + step.settings["eps"])

    return Convention(
        name="epsilon inside the root", optimizers=("Adam", "AdamW"), update=update, jax_does="", fix="", source=DOCS
    )


def _uncorrected(step: Step) -> "torch.Tensor":
    # (1 - b1^t) / sqrt(1 - b2^t) times as long as the corrected step: 3.2 times at the first, with b1 = 0.9 and
    # b2 = 0.999.
    root = step.after["exp_avg_sq"].sqrt() + step.settings["eps"]
    return step.decay - step.settings["lr"] * step.after["exp_avg"] / root


def _epsilon_uncorrected(step: Step) -> "torch.Tensor":
    """Adam with the bias corrections in the step size: epsilon is added to the uncorrected root."""
    b1, b2 = step.settings["betas"]
    size = step.settings["lr"] * (1 - b2**step.steps) ** 0.5 / (1 - b1**step.steps)
    return step.decay - size * step.after["exp_avg"] / (step.after["exp_avg_sq"].sqrt() + step.settings["eps"])


def _largest(step: Step) -> "dict[str, torch.Tensor]":
    square = step.corrected[1]
    # max(v_t / (1 - b2^t)) and max(v_t) / (1 - b2^t) differ, since the correction shrinks while the
    # maximum stays.
    return {"max_exp_avg_sq": square.maximum(step.before["max_exp_avg_sq"]) if step.before else square}


def _corrected_maximum(step: Step) -> "torch.Tensor":
    root = _largest(step)["max_exp_avg_sq"].sqrt() + step.settings["eps"]
    return step.decay - step.settings["lr"] * step.corrected[0] / root


def _nesterov_adam(step: Step) -> "torch.Tensor":
    b1, b2 = step.settings["betas"]
    # optax.scale_by_adam(nesterov=True): the moment of the next step, corrected as that step would be
    # (Dozat, "Incorporating Nesterov Momentum into Adam", 2016, without its momentum schedule).
    ahead = b1 * step.after["exp_avg"] / (1 - b1 ** (step.steps + 1))
    mean = ahead + (1 - b1) * step.regularized / (1 - b1**step.steps)
    square = step.after["exp_avg_sq"] / (1 - b2**step.steps)
    return step.decay - step.settings["lr"] * mean / (square.sqrt() + step.settings["eps"])


def _rectified(step: Step) -> "torch.Tensor":
    """RAdam with epsilon beside the corrected root: torch adds it before, where it is 1 / sqrt(1 - b2^t) as large."""
    b2 = step.settings["betas"][1]
    mean, square = step.corrected
    # `longest` and `length` are rho_inf and rho_t of Liu et al., "On the Variance of the Adaptive Learning Rate and
    # Beyond", 2020. The paper rectifies the step where rho_t is above 4, and torch and optax have 5 as the limit.
    longest = 2 / (1 - b2) - 1
    length = longest - 2 * step.steps * b2**step.steps / (1 - b2**step.steps)
    if length <= 5:
        return step.decay - step.settings["lr"] * mean
    factor = (length - 4) * (length - 2) * longest / ((longest - 4) * (longest - 2) * length)
    return step.decay - step.settings["lr"] * factor**0.5 * mean / (square.sqrt() + step.settings["eps"])


def _inside(slot: str) -> Callable[[Step], "torch.Tensor"]:
    def update(step: Step) -> "torch.Tensor":
        square = step.after[slot]
        if step.settings.get("centered"):
            # Centered RMSprop divides by the standard deviation: E[g²] - E[g]².
            square = square - step.after["grad_avg"] ** 2
        move = step.regularized / (square + step.settings["eps"]).sqrt()
        if step.settings.get("momentum"):
            move = move + step.settings["momentum"] * step.before.get("momentum_buffer", 0)
        return -step.settings["lr"] * move

    return update


def _undecayed(step: Step) -> "dict[str, torch.Tensor]":
    settings, buffer = step.settings, step.before.get("momentum_buffer")
    if buffer is None:
        return {"momentum_buffer": step.gradient}
    return {"momentum_buffer": settings["momentum"] * buffer + (1 - settings["dampening"]) * step.gradient}


def _decay_after(step: Step) -> "torch.Tensor":
    """SGD with the weight decay outside of the momentum: decay then acts at once, and not through the buffer."""
    settings, trace = step.settings, _undecayed(step)["momentum_buffer"]
    move = step.gradient + settings["momentum"] * trace if settings["nesterov"] else trace
    return -settings["lr"] * (move + settings["weight_decay"] * step.parameter)


def _late(step: Step) -> "torch.Tensor":
    """Rprop's update of the step before."""
    import torch

    if not step.before:
        return torch.zeros_like(step.gradient)
    turned = step.gradient * step.before["prev"] < 0
    return -(step.before["step_size"] * step.before["prev"].sign()).masked_fill(turned, 0)


CONVENTIONS = (
    Convention(
        name="epsilon inside the root",
        optimizers=("Adam", "AdamW"),
        update=_eps_root,
        jax_does="adds epsilon inside the square root, as eps_root",
        fix="",
        source=DOCS,
        arguments={"eps_root": 0.0},
    ),
    Convention(
        name="epsilon inside the root",
        optimizers=("RMSprop",),
        update=_inside("square_avg"),
        jax_does="adds epsilon inside the square root, optax's default",
        fix="",
        source=DOCS,
        arguments={"eps_in_sqrt": False},
    ),
    Convention(
        name="epsilon inside the root",
        optimizers=("Adagrad",),
        update=_inside("sum"),
        jax_does="adds epsilon inside the square root, as optax.adagrad does",
        fix=ADAGRAD_EPSILON,
        source=DOCS,
    ),
    Convention(
        name="bias correction",
        optimizers=("Adam", "AdamW"),
        update=_uncorrected,
        jax_does="does not correct the moments' bias towards zero",
        fix="divide the moments by 1 - b1**t and 1 - b2**t, as {optax} does",
        source=DOCS,
    ),
    Convention(
        name="epsilon before the bias correction",
        optimizers=("Adam", "AdamW"),
        update=_epsilon_uncorrected,
        jax_does="adds epsilon to the root of the second moment before its bias is corrected, as TensorFlow does",
        fix="correct both moments before epsilon is added, as {optax} does: m / (1 - b1**t) / "
        "(jnp.sqrt(v / (1 - b2**t)) + {eps})",
        source="https://github.com/google-deepmind/optax/issues/571",
    ),
    Convention(
        name="epsilon after the bias correction",
        optimizers=("RAdam",),
        update=_rectified,
        jax_does="adds epsilon to the root of the second moment after its bias is corrected, as optax.radam, and torch "
        "before it",
        fix="write RAdam out: docs/optimizers.md has it",
        source="https://docs.pytorch.org/docs/stable/generated/torch.optim.RAdam.html",
    ),
    Convention(
        name="amsgrad maximum",
        optimizers=("Adam", "AdamW"),
        update=_corrected_maximum,
        jax_does="takes amsgrad's maximum after the bias correction, torch before it",
        fix="write the maximum over the uncorrected second moments: optax.amsgrad has no setting for it",
        source="https://github.com/google-deepmind/optax/issues/1423",
        state=_largest,
        slot="max_exp_avg_sq",
    ),
    Convention(
        name="momentum decay",
        optimizers=("NAdam",),
        update=_nesterov_adam,
        jax_does="has no momentum decay, like optax.nadam",
        fix="write NAdam's momentum schedule out: optax.nadam has none. docs/optimizers.md has it",
        source="https://docs.pytorch.org/docs/stable/generated/torch.optim.NAdam.html",
    ),
    Convention(
        name="weight decay after momentum",
        optimizers=("SGD",),
        update=_decay_after,
        jax_does="adds the weight decay after the momentum",
        fix="optax.chain(optax.add_decayed_weights({weight_decay}), optax.sgd(...)), in this order",
        source="https://docs.pytorch.org/docs/stable/generated/torch.optim.SGD.html",
        state=_undecayed,
    ),
    Convention(
        name="a step late",
        optimizers=("Rprop",),
        update=_late,
        jax_does="makes each update one step late, and none at the first step, as optax.rprop does",
        fix="write Rprop out: docs/optimizers.md has it",
        source="https://docs.pytorch.org/docs/stable/generated/torch.optim.Rprop.html",
    ),
)
