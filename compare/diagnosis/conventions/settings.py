"""Settings: numbers among the arguments of functions, whose value on the JAX side is found by fitting."""

import math

from compare.diagnosis.conventions.base import DOCS, FLAX, JAX, NORMS, Fix, Setting, sets
from compare.diagnosis.conventions.loss_code import loss_code
from compare.diagnosis.place import Place
from compare.diagnosis.rewriting import Call
from compare.verdict.fix import Code, source

CONSTANT = "constant"
"""The name of the settings that are an operand of the program's own arithmetic."""

NORMALIZATION = f"{FLAX}normalization.html"


def _of_function(function: str, argument: str, keyword: str, *arguments: str) -> Fix:
    """Write JAX's function with torch's value of an argument."""
    return lambda call, place: Code(function, arguments or ("x",), {keyword: call[argument]})


def _activation(call: Call, place: Place) -> Code:
    del place
    return Code(f"jax.nn.{call.name}", ("x",), {"alpha": call["alpha"]})


def _softplus(call: Call, place: Place) -> Code:
    del place
    beta = source(float(call["beta"]))
    # torch defines softplus(x) = log(1 + exp(beta x)) / beta, and jax.nn.softplus has no beta.
    return Code("jax.nn.softplus", (f"{beta} * x",), around=f"{{}} / {beta}")


def _epsilon(call: Call, place: Place) -> Code | None:
    value = call["eps"]
    if value is None:
        return None
    return place.setting("norm", value, "epsilon", "eps") or Code("jax.lax.rsqrt", (f"var + {source(value)}",))


def _momentum(call: Call, place: Place) -> Code | None:
    return place.setting("norm", round(1 - call["momentum"], 15), "momentum")  # torch's is the share of the new


def _scale(call: Call, place: Place) -> Code:
    del place
    scale = call["scale"]
    # torch's default:
    # https://docs.pytorch.org/docs/stable/generated/torch.nn.functional.scaled_dot_product_attention.html
    value = 1 / math.sqrt(call.input.shape[-1]) if scale is None else scale
    return Code("jax.nn.dot_product_attention", keywords={"scale": value})


def normalized(call: Call, place: Place) -> str | None:
    """Write the normalization with torch's bound of the norm: words, as the port may have most of it already."""
    del place
    if call["p"] != 2 or not isinstance(call["dim"], int) or call.input.ndim > 3:
        return None
    axis, bound = call["dim"] % call.input.ndim, source(call["eps"])
    return f"divide by torch's bound where the norm is smaller: x / jnp.maximum(norm over axis {axis}, {bound})"


def _constant(call: Call, place: Place) -> Code:
    del place
    value = source(call["other"] if "other" in call else call["exponent"])
    turned = {"rpow": "**", "rsub": "-", "rdiv": "/"}
    if call.name in turned:
        return Code(around=f"{value} {turned[call.name]} x")
    sign = {"mul": "*", "rmul": "*", "truediv": "/", "div": "/", "add": "+", "radd": "+", "sub": "-", "pow": "**"}
    written = f"{value} * x" if call.name in ("mul", "rmul") else f"x {sign[call.name]} {value}"
    return Code(around=written)


SETTINGS = (
    Setting(
        name="epsilon",
        functions=NORMS,
        argument="eps",
        fix=_epsilon,
        source=NORMALIZATION,
    ),
    Setting(
        name="momentum",
        functions=("batch_norm",),
        argument="momentum",
        fix=_momentum,
        source=NORMALIZATION,
        within=(0.0, 1.0),
    ),
    Setting(
        name="slope",
        functions=("leaky_relu",),
        argument="negative_slope",
        fix=_of_function("jax.nn.leaky_relu", "negative_slope", "negative_slope"),
        source=f"{JAX}jax.nn.leaky_relu.html",
    ),
    Setting(
        name="alpha",
        functions=("elu", "celu"),
        argument="alpha",
        fix=_activation,
        source=f"{JAX}jax.nn.elu.html",
    ),
    Setting(
        name="beta",
        functions=("softplus",),
        argument="beta",
        fix=_softplus,
        source=f"{JAX}jax.nn.softplus.html",
    ),
    Setting(
        name="attention scale",
        functions=("scaled_dot_product_attention",),
        argument="scale",
        fix=_scale,
        source=f"{DOCS}torch.nn.functional.scaled_dot_product_attention.html",
        default=lambda call: 1 / math.sqrt(call.input.shape[-1]),
    ),
    Setting(
        name="dropout rate",
        functions=("dropout",),
        argument="p",
        fix=sets("dropout", "p", "rate", "p"),
        source=f"{DOCS}torch.nn.Dropout.html",
    ),
    Setting(
        name="label smoothing",
        functions=("cross_entropy",),
        argument="label_smoothing",
        fix=loss_code,
        source=f"{DOCS}torch.nn.CrossEntropyLoss.html",
    ),
    Setting(
        name="beta",
        functions=("smooth_l1_loss",),
        argument="beta",
        fix=loss_code,
        source=f"{DOCS}torch.nn.SmoothL1Loss.html",
    ),
    Setting(
        name="delta",
        functions=("huber_loss",),
        argument="delta",
        fix=loss_code,
        source=f"{DOCS}torch.nn.HuberLoss.html",
    ),
    Setting(
        name="epsilon",
        functions=("normalize",),
        argument="eps",
        fix=normalized,
        source=f"{DOCS}torch.nn.functional.normalize.html",
    ),
    Setting(
        name="epsilon",
        functions=("cosine_similarity",),
        argument="eps",
        fix=_of_function("optax.cosine_similarity", "eps", "epsilon", "..."),
        source=f"{DOCS}torch.nn.CosineSimilarity.html",
    ),
    Setting(
        name=CONSTANT,
        functions=("mul", "rmul", "truediv", "div", "rdiv", "add", "radd", "sub", "rsub"),
        argument="other",
        fix=_constant,
        source=f"{DOCS}torch.mul.html",
    ),
    Setting(
        name=CONSTANT,
        functions=("pow",),
        argument="exponent",
        fix=_constant,
        source=f"{DOCS}torch.pow.html",
    ),
    Setting(
        name=CONSTANT,
        functions=("rpow",),
        argument="other",
        fix=_constant,
        source=f"{DOCS}torch.pow.html",
    ),
)
