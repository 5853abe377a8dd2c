"""Which section of the documentation describes the mistake that a cause is: what a report links to."""

from collections.abc import Sequence
from typing import NamedTuple

from compare.verdict.fix import Code


class _Row(NamedTuple):
    cause: str
    """The name of the cause."""
    link: str
    """The page and the anchor of its heading, which tests/test_docs.py looks for."""
    layer: str = ""
    """The beginning of the torch layer's class, where the name has several meanings; "" for any place."""
    call: str = ""
    """The function that the fix calls, or the whole fix, likewise."""
    instead: str = ""
    """The function that the JAX side calls instead, likewise."""


_TRAPS, _STEPS = "docs/traps.md", "docs/programs.md"

# A cause of which no section says the same, such as an activation in the place of another one, is not listed.
ROWS = (
    _Row(cause="converted weight", link=f"{_TRAPS}#weights"),
    _Row(cause="gate order", link=f"{_TRAPS}#lstm-gates-in-another-order"),
    _Row(cause="epsilon", layer="LayerNorm", link=f"{_TRAPS}#layernorm-epsilon"),
    _Row(cause="epsilon", layer="GroupNorm", link=f"{_TRAPS}#groupnorm-epsilon"),
    _Row(cause="epsilon", layer="RMSNorm", link=f"{_TRAPS}#rmsnorm-epsilon"),
    _Row(cause="epsilon", layer="BatchNorm", link=f"{_TRAPS}#batchnorm-epsilon"),
    _Row(cause="epsilon", call="optax.adam", link=f"{_TRAPS}#adam-epsilon"),
    _Row(cause="epsilon", call="optax.adamw", link=f"{_TRAPS}#adam-epsilon"),
    _Row(cause="number of groups", link=f"{_TRAPS}#groupnorm-groups-or-group-size"),
    _Row(cause="momentum", layer="BatchNorm", link=f"{_TRAPS}#batchnorm-momentum"),
    _Row(cause="momentum", call="optax.sgd", link=f"{_TRAPS}#sgd-momentum"),
    _Row(cause="biased running variance", link=f"{_TRAPS}#biased-running-variance"),
    _Row(cause="stale statistics", link=f"{_TRAPS}#statistics-not-written-back"),
    _Row(cause="mode of a normalization", link=f"{_TRAPS}#running-average-in-training"),
    _Row(
        cause="activation",
        link=f"{_TRAPS}#gelu-approximation",
        call="jax.nn.gelu(x, approximate=False)",
        instead="jax.nn.gelu",
    ),
    _Row(
        cause="activation",
        link=f"{_TRAPS}#gelu-the-other-way",
        call="jax.nn.gelu(x, approximate=True)",
        instead="jax.nn.gelu",
    ),
    _Row(cause="slope", call="jax.nn.leaky_relu", link=f"{_TRAPS}#leaky_relu-slope"),
    _Row(cause="alpha", call="jax.nn.elu", link=f"{_TRAPS}#elu-alpha"),
    _Row(cause="beta", call="jax.nn.softplus", link=f"{_TRAPS}#softplus-beta"),
    _Row(cause="axis", call="jax.nn.softmax", link=f"{_TRAPS}#softmax-over-another-axis"),
    _Row(cause="attention scale", link=f"{_TRAPS}#attention-not-scaled"),
    _Row(cause="causal mask", link=f"{_TRAPS}#causal-mask-forgotten"),
    _Row(cause="attention mask", link=f"{_TRAPS}#attention-mask-inverted"),
    _Row(cause="padding", layer="Conv", link=f"{_TRAPS}#convolution-padding"),
    _Row(cause="padding value", link=f"{_TRAPS}#max-pool-padded-with-zeros"),
    _Row(cause="padding counted in the average", link=f"{_TRAPS}#average-pool-counts-padding"),
    _Row(cause="variance by n or n - 1", link=f"{_TRAPS}#variance-by-n-or-n-minus-one"),
    _Row(cause="median of an even count", link=f"{_TRAPS}#median-of-an-even-count"),
    _Row(cause="antialiasing", link=f"{_TRAPS}#resizing-with-antialiasing"),
    _Row(cause="aligned corners", link=f"{_TRAPS}#aligned-corners"),
    _Row(cause="scaled embedding", link=f"{_TRAPS}#scaled-embedding"),
    _Row(cause="sign of a remainder", link=f"{_TRAPS}#sign-of-a-remainder"),
    _Row(cause="rounding", link=f"{_TRAPS}#rounding-down"),
    _Row(cause="rounding of halves", link=f"{_TRAPS}#rounding-of-halves"),
    _Row(cause="dropout not scaled", link=f"{_TRAPS}#dropout-not-scaled"),
    _Row(cause="pre-norm for post-norm", link=f"{_TRAPS}#pre-norm-for-post-norm"),
    _Row(cause="reduction", link=f"{_TRAPS}#loss"),
    _Row(cause="class weights", link=f"{_TRAPS}#class-weights-not-normalized"),
    _Row(cause="softmax twice", link=f"{_TRAPS}#softmax-twice"),
    _Row(cause="label smoothing", link=f"{_TRAPS}#label-smoothing"),
    _Row(cause="ignored labels", link=f"{_TRAPS}#ignored-labels-counted"),
    _Row(cause="broadcasting", link=f"{_TRAPS}#n-against-n-1"),
    _Row(cause="weight of positives", link=f"{_TRAPS}#pos_weight"),
    _Row(cause="gradient at a tie", link="docs/verdict.md#ties"),
    _Row(cause="weight decay", call="optax.adamw", link=f"{_TRAPS}#adamw-weight-decay"),
    _Row(cause="decoupled weight decay", call="optax.chain", link=f"{_TRAPS}#l2-or-decoupled-weight-decay"),
    _Row(cause="decoupled weight decay", call="optax.adamw", link=f"{_TRAPS}#decoupled-or-l2-weight-decay"),
    _Row(cause="epsilon inside the root", call="optax.adam", link=f"{_TRAPS}#adam-eps_root"),
    _Row(cause="epsilon inside the root", call="optax.adamw", link=f"{_TRAPS}#adam-eps_root"),
    _Row(cause="epsilon inside the root", call="optax.rmsprop", link=f"{_TRAPS}#rmsprop-epsilon-in-the-root"),
    _Row(cause="first moment's decay", link=f"{_TRAPS}#adam-b1"),
    _Row(cause="second moment's decay", link=f"{_TRAPS}#adam-b2"),
    _Row(cause="bias correction", link=f"{_TRAPS}#no-bias-correction"),
    _Row(cause="learning rate", link=f"{_TRAPS}#learning-rate"),
    _Row(cause="decay", call="optax.rmsprop", link=f"{_TRAPS}#rmsprop-decay"),
    _Row(cause="centring", link=f"{_TRAPS}#rmsprop-centered"),
    _Row(cause="initial accumulator", link=f"{_TRAPS}#adagrad-accumulator"),
    _Row(cause="momentum decay", link=f"{_TRAPS}#nadams-momentum-decay"),
    _Row(cause="amsgrad maximum", link=f"{_TRAPS}#amsgrads-maximum"),
    _Row(cause="Nesterov momentum", link=f"{_TRAPS}#nesterov"),
    _Row(cause="dampening", link=f"{_TRAPS}#dampening"),
    _Row(cause="weight decay after momentum", link=f"{_TRAPS}#weight-decay-after-momentum"),
    _Row(cause="weight decay mask", link=f"{_TRAPS}#weight-decay-mask"),
    _Row(cause="frozen parameters", link=f"{_TRAPS}#frozen-on-one-side"),
    _Row(cause="parameters outside of the mask", link=f"{_TRAPS}#parameters-outside-of-every-mask"),
    _Row(cause="accumulation", link=f"{_TRAPS}#half-of-the-batches"),
    _Row(cause="two biases", link=f"{_TRAPS}#one-bias-for-two"),
    _Row(cause="schedule", link=f"{_TRAPS}#schedule"),
    _Row(cause="channels last", link=f"{_TRAPS}#nchw-into-an-nhwc-model"),
    _Row(cause="order of the targets", link=f"{_TRAPS}#targets-in-another-order"),
    _Row(cause="random key used twice", link=f"{_TRAPS}#one-random-key-for-all-steps"),
    # Of a step: a program's loop, its averages and its schedules.
    *(
        _Row(cause=name, link=f"{_STEPS}#{anchor}")
        for anchor, names in {
            "clipping": (
                "clipping",
                "clipping without 1e-6",
                "clipping of each tensor",
                "clipping by value",
                "changed gradients",
                "clipping of each micro-batch",
            ),
            "sums-and-means-of-gradients": ("gradient scale", "last micro-batch alone", "first micro-batch alone"),
            "averages-and-targets": (
                "average's decay",
                "decay exchanged",
                "average copied",
                "average not updated",
                "average before the update",
                "average after the update",
                "averaged at other steps",
                "copied before the update",
                "copied after the update",
                "copied at other steps",
                "another model",
            ),
            "updates": (
                "update left out",
                "second update",
                "order of updates",
                "update at other steps",
                "changed on the JAX side alone",
            ),
            "gradients-of-a-step": (
                "gradients not zeroed",
                "stop_gradient",
                "second derivative",
                "backward pass left out",
            ),
            "statistics-of-norms": (
                "evaluation mode",
                "training mode",
                "statistics updated twice",
                "running statistics' momentum",
                "share of the new value",
                "not updated",
            ),
            "schedules-of-a-step": ("schedule one step ahead", "schedule one step behind", "schedule per step"),
        }.items()
        for name in names
    ),
)


def link_of(cause: str, layer: str, codes: Sequence[Code]) -> str:
    """Return the page and anchor that describe a cause; "" if none does.

    Args:
        cause: Its name.
        layer: The torch class of the layer that it is of; "" if it is of none.
        codes: Its fix.

    """
    calls = {"", *(code.call for code in codes), *map(str, codes)}
    instead = {"", *(code.instead for code in codes)}
    for row in ROWS:
        if row.cause == cause and layer.startswith(row.layer) and row.call in calls and row.instead in instead:
            return row.link
    return ""
