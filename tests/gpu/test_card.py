"""Checks on a GPU: full float32, causes that are searched without harm to the card, and the verdicts of small pairs."""

from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
import torch
from flax import nnx

import compare
from compare.device import without_gpu
from compare.errors import UserCodeError

LACKING = without_gpu()
pytestmark = pytest.mark.skipif(bool(LACKING), reason=f"no CUDA GPU is seen by {' and '.join(LACKING)}")


def square(output: Any, target: Any) -> Any:
    return ((output - target) ** 2).mean()


def images(target: int) -> list[Any]:
    rng = np.random.default_rng(0)
    return [(rng.standard_normal((6, 3, 8, 8)), rng.standard_normal((6, target))) for _ in range(2)]


def channels_last(inputs: Any, target: Any) -> Any:
    return np.moveaxis(inputs, 1, -1), target


class Images(torch.nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv, self.norm, self.head = torch.nn.Conv2d(3, 64, 3), torch.nn.GroupNorm(4, 64), torch.nn.Linear(64, 4)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = torch.nn.functional.dropout(self.norm(self.conv(x)).relu(), 0.2, self.training)
        return self.head(x.mean((2, 3)))


class ImagesPort(nnx.Module):
    def __init__(self, epsilon: float, precision: Any) -> None:
        rngs = nnx.Rngs(0)
        self.conv = nnx.Conv(3, 64, (3, 3), padding="VALID", rngs=rngs)
        self.norm = nnx.GroupNorm(64, num_groups=4, epsilon=epsilon, use_fast_variance=False, rngs=rngs)
        self.drop, self.head = nnx.Dropout(0.2, rngs=rngs), nnx.Linear(64, 4, precision=precision, rngs=rngs)

    def __call__(self, x: jax.Array) -> jax.Array:
        return self.head(self.drop(nnx.relu(self.norm(self.conv(x)))).mean((1, 2)))


def image_report(epsilon: float = 1e-5, precision: Any = None) -> compare.Report:
    torch.manual_seed(0)
    return compare.check(
        compare.Torch(Images(), torch.nn.MSELoss(), lambda params: torch.optim.Adam(params, 1e-3)),
        compare.Flax(ImagesPort(epsilon, precision), square, optax.adam(1e-3), batch=channels_last),
        images(4),
        steps=3,
        device="cuda",
    )


def test_convolutions_are_in_full_float32() -> None:
    """A convolution in TF32 would make torch's rounding a thousand times JAX's, and the verdict `precision`."""
    report = image_report().raise_on_mismatch()
    assert report.verdict == "match"
    assert report.loss.error_torch[0] < 1e-6


def test_a_fault_has_its_cause() -> None:
    report = image_report(epsilon=1e-3)
    assert report.divergence is not None
    assert report.divergence.cause is not None
    assert "epsilon" in report.divergence.cause.name


def test_a_lower_precision_that_the_port_asks_for_is_its_cause() -> None:
    report = image_report(precision=jax.lax.DotAlgorithmPreset.TF32_TF32_F32)
    print(report)
    assert report.verdict == "precision"
    assert "TF32" in str(report)


def test_the_default_precision_of_jax_is_tf32_where_the_port_asks_for_it() -> None:
    """Asked for in the model, it is kept: the check sets what is left to the default alone."""
    report = image_report(precision=jax.lax.Precision.DEFAULT)
    print(report)
    assert report.verdict in ("match", "precision")  # XLA may take TF32, and need not
    assert report.verdict == "match" or "TF32" in str(report)


class Series(torch.nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.lstm = torch.nn.LSTM(8, 16, batch_first=True)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.lstm(x)[0]


class SeriesPort(nn.Module):
    @nn.compact
    def __call__(self, x: jax.Array) -> Any:
        return nn.RNN(nn.OptimizedLSTMCell(16), name="lstm")(x)


def test_recurrent_layers_are_in_full_float32() -> None:
    torch.manual_seed(0)
    rng = np.random.default_rng(0)
    batches = [(rng.standard_normal((4, 6, 8)), rng.standard_normal((4, 6, 16))) for _ in range(2)]
    port = SeriesPort()
    report = compare.check(
        compare.Torch(Series(), torch.nn.MSELoss()),
        compare.Flax((port, port.init(jax.random.key(0), jnp.zeros((4, 6, 8)))), square),
        batches,
        device="cuda",
    )
    assert report.verdict == "match", str(report)
    assert report.loss.error_torch[0] < 1e-6


class Gathered(torch.nn.Module):
    """Sums of messages by node: the index of each is a tensor, and the search for a cause tries others."""

    def __init__(self) -> None:
        super().__init__()
        self.message, self.update = torch.nn.Linear(6, 5), torch.nn.Linear(5, 2)
        self.nodes = torch.nn.Embedding(5, 6)

    def forward(self, source: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
        messages = torch.tanh(self.message(self.nodes(source)))
        total = torch.zeros(5, 5, device=messages.device).to(messages).index_add(0, target, messages)
        return self.update(total)


class GatheredPort(nnx.Module):
    def __init__(self) -> None:
        rngs = nnx.Rngs(0)
        self.message, self.update = nnx.Linear(6, 5, rngs=rngs), nnx.Linear(5, 2, rngs=rngs)
        self.nodes = nnx.Embed(5, 6, rngs=rngs)

    def __call__(self, source: jax.Array, target: jax.Array) -> jax.Array:
        messages = jnp.tanh(self.message(self.nodes(source)))
        count = jnp.zeros(5).at[target].add(1.0)
        return self.update(jnp.zeros((5, 5)).at[target].add(messages) / jnp.maximum(count, 1)[:, None])


def test_a_search_that_tries_indices_leaves_the_card_usable() -> None:
    torch.manual_seed(0)
    rng = np.random.default_rng(0)
    batches = [((rng.integers(0, 5, 12), rng.integers(0, 5, 12)), rng.standard_normal((5, 2))) for _ in range(2)]
    report = compare.check(
        compare.Torch(Gathered(), torch.nn.MSELoss()), compare.Flax(GatheredPort(), square), batches, device="cuda"
    )
    assert report.verdict == "mismatch"
    assert report.divergence is not None
    print(report)
    assert float(torch.ones(3, device="cuda").sum()) == 3.0
    assert float(jnp.ones(3).sum()) == 3.0


def test_labels_that_are_ignored_leave_the_card_usable() -> None:
    """The table of losses tries other `ignore_index`: labels of -100 are then out of range."""
    torch.manual_seed(0)
    rng = np.random.default_rng(0)
    labels = rng.integers(0, 4, (2, 12))
    labels[:, :3] = -100
    port = nnx.Linear(6, 4, rngs=nnx.Rngs(0))

    def loss(logits: jax.Array, labels: jax.Array) -> jax.Array:
        return optax.softmax_cross_entropy_with_integer_labels(logits, jnp.where(labels < 0, 0, labels)).mean()

    report = compare.check(
        compare.Torch(torch.nn.Linear(6, 4), torch.nn.CrossEntropyLoss()),
        compare.Flax(port, loss),
        [(rng.standard_normal((12, 6)), row) for row in labels],
        device="cuda",
    )
    assert report.verdict == "mismatch"
    assert float(torch.ones(3, device="cuda").sum()) == 3.0


def test_a_weight_norm_is_in_float64() -> None:
    """The CUDA kernel of `weight_norm` takes roots by sqrtf, also in float64."""
    torch.manual_seed(0)
    model = torch.nn.utils.parametrizations.weight_norm(torch.nn.Linear(6, 4))

    class Normed(nn.Module):
        @nn.compact
        def __call__(self, x: jax.Array) -> jax.Array:
            return nn.WeightNorm(nn.Dense(4, name="dense"), epsilon=0.0, variable_filter={"kernel"})(x)

    port = Normed()
    rng = np.random.default_rng(0)
    batches = [(rng.standard_normal((5, 6)), rng.standard_normal((5, 4))) for _ in range(2)]
    report = compare.check(
        compare.Torch(model, torch.nn.MSELoss()),
        compare.Flax((port, port.init(jax.random.key(0), jnp.zeros((5, 6)))), square),
        batches,
        device="cuda",
    )
    assert report.verdict == "match", str(report)


class Positioned(torch.nn.Module):
    """A model that takes sequences of up to six positions."""

    def __init__(self) -> None:
        super().__init__()
        self.words, self.places = torch.nn.Embedding(7, 8), torch.nn.Embedding(6, 8)
        self.head = torch.nn.Linear(8, 4)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.head(torch.tanh(self.words(x) + self.places(torch.arange(x.shape[1], device=x.device)))).mean(1)


class PositionedPort(nnx.Module):
    def __init__(self) -> None:
        rngs = nnx.Rngs(0)
        self.words, self.places = nnx.Embed(7, 8, rngs=rngs), nnx.Embed(6, 8, rngs=rngs)
        self.head = nnx.Linear(8, 4, rngs=rngs)

    def __call__(self, x: jax.Array) -> jax.Array:
        return self.head(jnp.tanh(self.words(x) + self.places(jnp.arange(x.shape[1])))).mean(1)


def positioned(most: int) -> compare.Report:
    torch.manual_seed(0)
    rng = np.random.default_rng(0)
    return compare.check(
        compare.Torch(Positioned(), torch.nn.MSELoss()),
        compare.Flax(PositionedPort(), square),
        [(rng.integers(0, most, (5, 6)), rng.standard_normal((5, 4))) for _ in range(2)],
        device="cuda",
    )


def test_sequences_of_another_length_leave_the_card_usable() -> None:
    """The check tries other lengths, for which the table of positions is too short."""
    assert positioned(7).verdict == "match"
    assert float(torch.ones(3, device="cuda").sum()) == 3.0


def test_a_word_that_is_out_of_range_is_an_error_of_the_user_and_leaves_the_card_usable() -> None:
    with pytest.raises(UserCodeError, match=r"IndexError.*test_card\.py"):
        positioned(70)
    assert float(torch.ones(3, device="cuda").sum()) == 3.0


@pytest.mark.parametrize(
    "functions",
    [(torch.nn.Hardsigmoid, jax.nn.hard_sigmoid), (torch.nn.Hardswish, jax.nn.hard_swish)],
    ids=["hardsigmoid", "hardswish"],
)
def test_functions_that_the_card_computes_with_float32_numbers(functions: Any) -> None:
    """The CUDA kernels multiply by 1/6 as float32 has it, also in float64."""
    torch.manual_seed(0)
    rng = np.random.default_rng(0)
    report = compare.check(
        compare.Torch(torch.nn.Sequential(torch.nn.Linear(3, 2), functions[0]()), torch.nn.MSELoss()),
        compare.Flax(nnx.Sequential(nnx.Linear(3, 2, rngs=nnx.Rngs(0)), functions[1]), square),
        [(rng.standard_normal((8, 3)), rng.standard_normal((8, 2))) for _ in range(2)],
        device="cuda",
    )
    assert report.verdict == "match", str(report)


def test_the_users_tf32_changes_nothing_and_stays() -> None:
    cudnn = torch.backends.cudnn.allow_tf32
    torch.set_float32_matmul_precision("high")
    torch.backends.cudnn.allow_tf32 = True
    try:
        with jax.default_matmul_precision("tensorfloat32"):
            report = image_report()
            assert jax.config.values["jax_default_matmul_precision"] == "tensorfloat32"
        assert torch.get_float32_matmul_precision() == "high"
        assert torch.backends.cudnn.allow_tf32
    finally:
        torch.set_float32_matmul_precision("highest")
        torch.backends.cudnn.allow_tf32 = cudnn
    assert report.verdict == "match", str(report)
    assert report.loss.error_torch[0] < 1e-6


def test_a_step_that_asks_for_tf32_itself_rounds_more() -> None:
    """The step sets it anew each time, so that it is part of the program."""
    rng = np.random.default_rng(0)

    def original() -> Any:
        torch.manual_seed(0)
        model = torch.nn.Linear(256, 64)
        optimizer = torch.optim.SGD(model.parameters(), lr=0.1)

        def step(state: Any, batch: Any) -> Any:
            del state
            torch.set_float32_matmul_precision("high")
            loss = torch.nn.functional.mse_loss(model(batch["x"]), batch["y"])
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            return {"loss": loss}

        return {"model": model, "optimizer": optimizer}, step

    def port() -> Any:
        model = nnx.Linear(256, 64, rngs=nnx.Rngs(0))
        optimizer = nnx.Optimizer(model, optax.sgd(0.1), wrt=nnx.Param)

        @nnx.jit
        def step(state: Any, batch: Any) -> Any:
            loss, gradients = nnx.value_and_grad(lambda model: square(model(batch["x"]), batch["y"]))(state["model"])
            state["optimizer"].update(state["model"], gradients)
            return state, {"loss": loss}

        return {"model": model, "optimizer": optimizer}, step

    batches = [{"x": rng.standard_normal((32, 256)), "y": rng.standard_normal((32, 64))} for _ in range(2)]
    try:
        report = compare.check(
            compare.TorchProgram(original), compare.JaxProgram(port), batches, steps=3, device="cuda"
        )
    finally:
        torch.set_float32_matmul_precision("highest")
    assert report.verdict == "precision", str(report)


def test_code_that_stays_on_the_cpu_is_told_what_to_do() -> None:
    class Unaware(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layer = torch.nn.Linear(3, 2)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.layer(x) * torch.arange(2.0)

    port = nnx.Linear(3, 2, rngs=nnx.Rngs(0))
    with pytest.raises(UserCodeError, match=r"device=x\.device.*--device cpu"):
        compare.check(
            compare.Torch(Unaware(), torch.nn.MSELoss()),
            compare.Flax(port, square),
            [(np.ones((4, 3)), np.ones((4, 2)))],
            device="cuda",
        )
