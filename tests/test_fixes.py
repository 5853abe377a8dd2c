"""Every fix that can be printed is Python that exists: it is parsed, its names are imported, its arguments are bound.

Each row of each table is asked for its fix, for calls of torch's functions as torch makes them, and for ports written
in nnx, in Linen, and in Equinox or plain JAX.
"""

import ast
import dataclasses
import importlib
import inspect
import itertools
from collections.abc import Iterator
from typing import Any

import pytest
import torch
from flax import linen, nnx
from torch.nn import functional

from compare.diagnosis.conventions.activations import activations
from compare.diagnosis.conventions.settings import SETTINGS
from compare.diagnosis.conventions.variants import VARIANTS
from compare.diagnosis.counterfactuals import ALTERNATIVES, FUNCTIONS, counterfactuals
from compare.diagnosis.place import Place, named
from compare.diagnosis.related import undone
from compare.diagnosis.rewriting import Window, rewriting
from compare.numerics.relations import Kind, Relation
from compare.verdict.fix import Code

eqx = pytest.importorskip("equinox")

NAMES = {"jnp": "jax.numpy", "nn": "flax.linen", "nnx": "flax.nnx", "eqx": "equinox", "np": "numpy"}
"""What programs import under a short name."""

GIVEN = {
    "x",
    "y",
    "output",
    "target",
    "logits",
    "labels",
    "kernel",
    "grid",
    "size",
    "model",
    "variables",
    "rngs",
    "var",
    "i",
}
"""What a fix takes from the program that it is put into."""


def problems(code: str) -> list[str]:
    """List what is wrong with an expression; an empty list if it can be written."""
    try:
        tree = ast.parse(code, mode="eval")
    except SyntaxError as error:
        return [f"{code}: {error}"]
    found = []
    for node in ast.walk(tree):
        if isinstance(node, ast.Call) and (wrong := _unbound(node)):
            found.append(f"{code}: {wrong}")
        elif isinstance(node, ast.Name) and node.id not in GIVEN | NAMES.keys() | {"jax", "optax"}:
            found.append(f"{code}: {node.id} is not known")
    return found


def _unbound(call: ast.Call) -> str:
    path = ast.unparse(call.func)
    root, *rest = path.split(".")
    if (
        root in GIVEN or not path.replace(".", "").isidentifier()
    ):  # a method of what the program has, or nn.Dropout(...)(x)
        return ""
    value: Any = importlib.import_module(NAMES.get(root, root))
    for name in rest:
        if not hasattr(value, name):
            return f"{path} does not exist"
        value = getattr(value, name)
    # An nnx class itself takes anything; its constructor says what it means.
    signature = inspect.signature(value.__init__ if inspect.isclass(value) else value)
    given = [None] * (len(call.args) + inspect.isclass(value))
    if any(isinstance(each, ast.Constant) and each.value is ... for each in call.args):
        given = given[: inspect.isclass(value)]  # what the program has already
    try:
        signature.bind_partial(*given, **{keyword.arg: None for keyword in call.keywords if keyword.arg})
    except TypeError as error:
        return f"{path}: {error}"
    return ""


X = torch.linspace(-2, 2, 96, dtype=torch.float64)
IMAGE, ROWS, KERNEL = X.reshape(2, 3, 4, 4), X.reshape(6, 16), X[:81].reshape(3, 3, 3, 3)
LABELS, WEIGHT = torch.arange(6) % 4, torch.tensor([1.0, 2.0, 3.0, 4.0], dtype=torch.float64)
LOGITS, CHANCES = X[:24].reshape(6, 4), X[:24].reshape(6, 4).sigmoid()
IGNORED, MASK = torch.tensor([0, -100, 2, 3, 1, 0]), torch.eye(4, dtype=torch.bool)
GRID = torch.zeros(2, 5, 5, 2, dtype=torch.float64)


def every_call() -> Iterator[Any]:
    """Call torch's functions as torch's layers and programs do, with settings that are not the defaults too."""
    mean, var, scale = (torch.full((3,), value, dtype=torch.float64) for value in (0.1, 1.2, 0.9))
    for training in (True, False):
        yield functional.batch_norm(IMAGE, mean, var, scale, mean, training, 0.2, 1e-4)
        for drop in (functional.dropout, functional.dropout1d, functional.dropout2d, functional.dropout3d):
            yield drop(IMAGE[0] if drop is functional.dropout1d else IMAGE, 0.3, training)
    wide = X[:16] + 3
    yield 10000.0**X
    yield 3.0 - X
    yield 0.1 / X
    yield from (functional.layer_norm(ROWS, (16,), wide, wide, 1e-4), functional.rms_norm(ROWS, (16,), wide, 1e-4))
    yield from (functional.group_norm(IMAGE, 3, scale, mean, 1e-4), functional.instance_norm(IMAGE, eps=1e-4))
    for size, conv in ((1, functional.conv1d), (2, functional.conv2d), (3, functional.conv3d)):
        x, kernel = X.reshape(2, 3, -1, *[2] * (size - 1)), X[: 9 * 2**size].reshape(3, 3, *[2] * size)
        yield conv(x, kernel, mean, stride=1, padding=1)
        yield conv(x, kernel, mean, padding=2, dilation=2)
        transposed = getattr(functional, f"conv_transpose{size}d")
        yield transposed(x, kernel, mean, stride=2, padding=1, output_padding=1)
        for pool in ("max_pool", "avg_pool"):
            yield getattr(functional, f"{pool}{size}d")(x, 2, 2, 1, ceil_mode=True)
            yield getattr(functional, f"{pool}{size}d")(x, 2)
        yield getattr(functional, f"adaptive_avg_pool{size}d")(x, 1)
    yield functional.conv1d(X[:18].reshape(2, 3, 3), X[:27].reshape(3, 3, 3))
    yield functional.conv2d(IMAGE[:, :, :3, :3], KERNEL, padding="same")
    yield functional.conv3d(X[:81].reshape(1, 3, 3, 3, 3), X[:72].reshape(3, 3, 2, 2, 2))
    yield functional.instance_norm(IMAGE, weight=scale, bias=mean)
    yield from (functional.linear(ROWS, wide.repeat(16, 1), wide), functional.embedding(LABELS, LOGITS, padding_idx=0))
    yield from (
        functional.leaky_relu(X, 0.2),
        functional.elu(X, 0.5),
        functional.celu(X, 0.5),
        functional.softplus(X, 2),
    )
    yield from (
        functional.hardtanh(X, -0.5, 0.7),
        X.clamp(min=0),
        X.clamp(-1, 1),
        X.clamp(max=1),
        X.abs(),
        X.clip(0, 1),
    )
    yield from (
        torch.clamp_min(X, 0),
        torch.clamp_max(X, 1),
        functional.relu6(X),
        functional.relu(X),
        functional.gelu(X),
    )
    for name in ("silu", "selu", "hardsigmoid", "hardswish", "mish", "softsign"):
        yield getattr(functional, name)(X)
    yield from (X.tanh(), X.sigmoid(), functional.gelu(X, approximate="tanh"), X.exp(), (X + 3).log(), X.detach())
    yield from (ROWS.softmax(0), ROWS.log_softmax(1), IMAGE.softmax(1), ROWS @ ROWS.T, torch.bmm(IMAGE[0], IMAGE[1]))
    yield from (ROWS.mean(1), ROWS.sum(), ROWS.var(1), ROWS.std(1, keepdim=True), ROWS.median(1), ROWS.max())
    yield from (
        torch.remainder(X, 0.7),
        X % 0.7,
        torch.fmod(X, 0.7),
        X.round(),
        X * 0.3,
        0.3 * X,
        X / 0.3,
        X + 0.3,
        0.3 + X,
    )
    yield from (X - 0.3, X**2.5, functional.normalize(ROWS, dim=1), functional.cosine_similarity(ROWS, ROWS + 1))
    yield functional.pad(IMAGE, (1, 1, 1, 1), mode="circular")
    for mode in ("nearest", "bilinear", "bicubic"):
        for corners in (None,) if mode == "nearest" else (True, False):
            yield functional.interpolate(IMAGE, size=(8, 12), mode=mode, align_corners=corners)
            yield functional.interpolate(IMAGE, size=(2, 3), mode=mode, align_corners=corners)
    for corners in (True, False):
        for mode, outside in (("bilinear", "zeros"), ("nearest", "border"), ("bicubic", "reflection")):
            yield functional.grid_sample(IMAGE, GRID, mode, outside, corners)
        yield functional.affine_grid(torch.zeros(2, 2, 3), [2, 3, 4, 4], corners)
    heads = X.reshape(2, 3, 4, 4)
    for causal in (True, False):
        yield functional.scaled_dot_product_attention(heads, heads, heads, None if causal else MASK, is_causal=causal)
    attention = torch.nn.MultiheadAttention(4, 2, batch_first=True).double()
    yield attention(heads[:, 0], heads[:, 0], heads[:, 0], attn_mask=MASK, key_padding_mask=MASK[:2])
    for cell in (torch.nn.LSTM(4, 3, bidirectional=True), torch.nn.GRU(4, 3, bidirectional=True)):
        yield cell.double()(heads[:, 0])
    yield from losses()


def losses() -> Iterator[torch.Tensor]:
    for reduction in ("mean", "sum", "none"):
        for name in ("mse_loss", "l1_loss", "smooth_l1_loss", "huber_loss"):
            yield getattr(functional, name)(LOGITS, CHANCES, reduction=reduction)
        for labels, weight in itertools.product((LABELS, IGNORED), (None, WEIGHT)):
            yield functional.cross_entropy(LOGITS, labels, weight, reduction=reduction)
            yield functional.nll_loss(LOGITS.log_softmax(1), labels, weight, reduction=reduction)
        yield functional.cross_entropy(LOGITS, LABELS, label_smoothing=0.1, reduction=reduction)
        for positives in (None, WEIGHT, WEIGHT[1]):
            yield functional.binary_cross_entropy_with_logits(
                LOGITS, CHANCES, pos_weight=positives, reduction=reduction
            )
        yield functional.binary_cross_entropy(CHANCES, CHANCES, reduction=reduction)
        yield functional.poisson_nll_loss(LOGITS, CHANCES, reduction=reduction)
    for reduction, logarithm in itertools.product(("sum", "batchmean"), (True, False)):
        yield functional.kl_div(LOGITS.log_softmax(1), CHANCES, reduction=reduction, log_target=logarithm)
    for name in ("mse_loss", "l1_loss", "smooth_l1_loss", "huber_loss", "binary_cross_entropy_with_logits"):
        yield getattr(functional, name)(X[:6], X[6:12])
    yield functional.binary_cross_entropy(CHANCES, CHANCES, WEIGHT)
    yield functional.binary_cross_entropy_with_logits(LOGITS, CHANCES, WEIGHT)
    yield from (LOGITS - CHANCES, X - X.flip(0), LOGITS.detach().requires_grad_() - CHANCES)
    yield functional.smooth_l1_loss(LOGITS, CHANCES, beta=0.5)
    yield functional.huber_loss(LOGITS, CHANCES, delta=0.5)
    log_chances = torch.randn(5, 2, 4, dtype=torch.float64).log_softmax(2)
    yield functional.ctc_loss(
        log_chances, torch.ones(2, 2, dtype=torch.long), torch.tensor([5, 4]), torch.tensor([2, 2])
    )


NNX = ["Linear", "Conv", "ConvTranspose", "LayerNorm", "RMSNorm", "GroupNorm", "BatchNorm", "InstanceNorm", "Dropout"]
LINEN = [name for name in NNX if hasattr(linen, name)]
EQUINOX = [
    "Linear",
    "Conv2d",
    "ConvTranspose2d",
    "LayerNorm",
    "RMSNorm",
    "GroupNorm",
    "BatchNorm",
    "Dropout",
    "Embedding",
    "MultiheadAttention",
]
PLACES = [
    *(Place("nnx", (getattr(nnx, name),)) for name in NNX),
    *(Place("nn", (getattr(linen, name),)) for name in LINEN),
    *(Place("eqx.nn", (getattr(eqx.nn, name),)) for name in EQUINOX),
    *(Place(style) for style in ("", "nnx", "nn", "eqx.nn")),
]


def recorded() -> list[Any]:
    """Give the calls of torch's functions that `every_call` makes."""
    found: list[Any] = []

    def keep(call: Any) -> Any:
        found.append(dataclasses.replace(call, takes_targets=lambda: True))
        return call.run()

    with rewriting(Window(), frozenset(), lambda number: keep, FUNCTIONS):
        list(every_call())
    return found


@pytest.fixture(scope="module")
def fixes() -> dict[tuple[str, str], set[Any]]:
    """Collect the fixes of every row by its name and torch's function, over all places."""
    found: dict[tuple[str, str], set[Any]] = {}
    for call, gradient in itertools.product(recorded(), (False, True)):
        for each in counterfactuals([call], gradient=gradient):
            fix = each.fix
            found.setdefault((each.name, call.name), set()).update(
                (place, str(fix(call, place) or ""), type(fix(call, place))) for place in PLACES
            )
    return found


def test_every_row_of_every_table_is_asked(fixes: dict[tuple[str, str], set[Any]]) -> None:
    rows = {(row.name, name) for table in (SETTINGS, VARIANTS, ALTERNATIVES) for row in table for name in row.functions}
    names = {"radd", "rmul", "truediv", "mod"}  # which torch has for functions that are asked for by another name
    assert {(row, name) for row, name in rows - fixes.keys() if name not in names} == set()


def test_every_fix_runs(fixes: dict[tuple[str, str], set[Any]]) -> None:
    codes = {text for several in fixes.values() for _, text, kind in several if issubclass(kind, Code)}
    assert len(codes) > 100
    assert [wrong for code in sorted(codes) for wrong in problems(code)] == []


def test_activations_and_relations_run() -> None:
    relations = [
        Relation(Kind.TRANSPOSED, order=(1, 0)),
        Relation(Kind.FLIPPED, (0,)),
        Relation(Kind.FLIPPED, (0, 1)),
        Relation(Kind.ROLLED, (1,), number=1),
        Relation(Kind.BLOCKS, (1,), (1, 0)),
        Relation(Kind.ORDER, (1,), (2, 0, 1)),
        *(Relation(Kind.FACTOR, number=number) for number in (-1.0, 0.5, 3.0, 2**0.5, 3 / 8)),
    ]
    codes = [*(code for _, code in activations().values()), *(undone(each) for each in relations)]
    assert [wrong for code in codes for wrong in problems(str(code))] == []


def test_a_relation_is_undone() -> None:
    import jax.numpy as jnp
    import numpy as np

    x = np.arange(12.0).reshape(3, 4)
    for how in (
        Relation(Kind.TRANSPOSED, order=(1, 0)),
        Relation(Kind.FLIPPED, (1,)),
        Relation(Kind.ROLLED, (1,), number=-1),
        Relation(Kind.BLOCKS, (1,), (3, 0, 1, 2)),
        Relation(Kind.ORDER, (0,), (2, 0, 1)),
        Relation(Kind.FACTOR, number=0.25),
    ):
        assert np.allclose(eval(str(undone(how)), {"jnp": jnp, "y": how.apply(x)}), x)


def test_a_layer_only_has_settings_of_its_own_kind(fixes: dict[tuple[str, str], set[Any]]) -> None:
    for (_, function), several in fixes.items():
        for place, text, _ in several:
            for layer in place.layers:
                if text.startswith(f"{named(layer)}("):
                    kinds = {"Conv": "conv", "Linear": "linear", "Dropout": "dropout", "Embed": "embedding"}
                    kinds |= {"Attention": "attention"}
                    kind = next((kind for part, kind in kinds.items() if part in layer.__name__), "norm")
                    assert kind in function, text


@pytest.mark.parametrize(
    "code",
    [
        "nnx.Linear(..., deterministic=True)",
        "nnx.Conv(..., epsilon=1e-05)",
        "nn.DenseGeneral(..., deterministic=False)",
        "nn.LayerNorm(..., rngs=rngs)",
        "optax.sgd(..., weight_decay=0.1)",
        "nnx.LayerNorm(..., eps=1e-05)",
        "jax.nn.exact_gelu(x)",
        "0.3 is torch's constant there",
    ],
)
def test_what_does_not_run_is_noticed(code: str) -> None:
    assert problems(code)


@pytest.mark.parametrize(
    ("place", "names", "layer_is_there"),
    [
        (Place("nnx", (nnx.BatchNorm,)), "nnx.BatchNorm", True),
        (Place("nn", (linen.BatchNorm,)), "nn.BatchNorm", False),
        (Place("nn"), "", False),
    ],
)
def test_what_has_no_setting_is_named_as_the_port_names_it(place: Place, names: str, layer_is_there: bool) -> None:
    biased = next(each for each in ALTERNATIVES if each.name == "biased running variance")
    fix = str(biased.fix(None, place))  # type: ignore[arg-type]
    assert (f"; {names} has no setting for it" in fix) == bool(names)
    assert ("docs/getting-started.md" in fix) == layer_is_there
