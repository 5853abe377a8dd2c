"""Causes of structure: edits of torch's operations that make it compute what the JAX side computes."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
import structure
import torch
from flax import nnx
from in_ci import first

import compare

ONE_OF_EACH_KIND = [
    ("GLU", "gate first"),
    ("SwiGLU", "other branch"),
    ("ViT", "merged without a transpose"),
    ("GPT", "mask off by one"),
    ("TextCNN", "mean over time"),
    ("crosses and pairs", "crosses itself"),  # which XLA's newer fusions compute wrongly: see compiling.older_fusions
    ("MLP-mixer", "reshaped"),
    ("super-resolution", "channels last"),
    ("autoencoder", "relu on the last"),
    ("masked regression loss", "mask left out"),
    ("Perceiver", "temperature itself"),
    ("graph attention", "neighbours hidden"),
    ("message passing", "sum for mean"),
    ("feature pyramid", "tiled"),
    ("ShuffleNet", "shuffled back"),
    ("RealNVP", "shifted first"),
    ("clipped policy loss", "larger of both"),
]

BY_NAME = {each.name: each for each in (*structure.ARCHITECTURES, *structure.SECOND)}


@pytest.mark.parametrize(("name", "fault"), first(ONE_OF_EACH_KIND, 9))
def test_a_fault_of_structure_is_explained(name: str, fault: str) -> None:
    report = structure.check(BY_NAME[name], frozenset({fault}))
    assert report.divergence is not None
    cause = report.divergence.cause
    assert cause is not None, report
    said = f"{cause.explanation} {cause.fix}".lower()
    assert any(words.lower() in said for words in BY_NAME[name].faults[fault]), said


@pytest.mark.parametrize(
    ("name", "fault", "kind"),
    [
        ("encoder layer", "norm before", "pre-norm for post-norm"),
        ("ViT", "norm behind the sum", "post-norm for pre-norm"),
    ],
)
def test_norms_before_layers_or_behind_sums_are_one_finding(name: str, fault: str, kind: str) -> None:
    report = structure.check(BY_NAME[name], frozenset({fault}))
    assert report.divergence is not None
    assert report.divergence.cause is not None
    assert report.divergence.cause.name == kind
    assert not report.others


@pytest.mark.parametrize("name", ["GLU", "masked regression loss"])
def test_the_right_ports_match(name: str) -> None:
    assert structure.check(BY_NAME[name], frozenset()).ok


def test_two_faults_in_one_window() -> None:
    report = structure.check(BY_NAME["FiLM"], frozenset({"no one", "no shift"}))
    assert report.divergence is not None
    assert report.divergence.cause is not None
    assert report.divergence.cause.explanation.count("leaves out") == 2


@pytest.mark.parametrize(
    ("name", "fault"),
    first(
        [
            ("VQ-VAE", "not stopped"),
            ("BYOL", "prediction stopped"),
            ("VQ-VAE", "codes learn too"),
            ("BYOL", "none stopped"),
        ],
        2,
    ),
)
def test_a_gradient_that_is_stopped_on_one_side_is_explained(name: str, fault: str) -> None:
    report = structure.check(BY_NAME[name], frozenset({fault}))
    assert report.divergence is not None
    assert report.divergence.stage == "gradient"
    assert report.divergence.cause is not None
    assert report.divergence.cause.name == "stopped gradient"
    assert "jax.lax.stop_gradient" in report.divergence.cause.fix


@pytest.mark.slow
def test_a_gradient_that_is_halved_is_no_stopped_gradient() -> None:
    report = structure.check(BY_NAME["BYOL"], frozenset({"gradient halved"}))
    assert report.divergence is not None
    assert report.divergence.stage == "gradient"
    assert report.divergence.cause is None or report.divergence.cause.name != "stopped gradient"


def test_what_real_numbers_were_before_they_became_indices_is_not_guessed() -> None:
    """Any other increasing function in place of tanh gives these indices."""
    report = structure.check(BY_NAME["VQ-VAE"], frozenset({"no tanh"}))
    assert report.divergence is not None
    assert report.divergence.cause is None


def test_another_index_is_explained() -> None:
    report = structure.check(BY_NAME["VQ-VAE"], frozenset({"farthest"}))
    assert report.divergence is not None
    assert report.divergence.cause is not None
    assert "argmax for argmin" in report.divergence.cause.explanation


def test_an_edit_of_the_loss_that_contradicts_the_gradients_is_no_cause() -> None:
    """exp(L - stop_gradient(L)) is 1, so that the loss lacks L, and has the gradient of L."""
    torch.manual_seed(0)

    def port_loss(outputs: jax.Array, target: tuple[jax.Array, jax.Array], *, ratio: bool) -> jax.Array:
        chosen = jnp.take_along_axis(jax.nn.log_softmax(outputs), target[0][:, None], 1)[:, 0]
        factor = jnp.exp(chosen - jax.lax.stop_gradient(chosen)) if ratio else jnp.ones_like(chosen)
        return -jnp.mean(factor * target[1]) + jnp.mean(outputs**2)

    def loss(outputs: torch.Tensor, target: tuple[torch.Tensor, torch.Tensor]) -> torch.Tensor:
        chosen = outputs.log_softmax(1).gather(1, target[0][:, None])[:, 0]
        return -(chosen * target[1]).mean() + outputs.pow(2).mean()

    rng = np.random.default_rng(0)
    batches = [(rng.normal(size=(8, 5)), (rng.integers(0, 3, 8), rng.normal(size=8))) for _ in range(3)]
    original = compare.Torch(torch.nn.Linear(5, 3), loss, lambda params: torch.optim.SGD(params, 0.1))
    causes = []
    for ratio in (True, False):
        port = compare.Flax(
            nnx.Linear(5, 3, rngs=nnx.Rngs(0)),
            functools.partial(port_loss, ratio=ratio),
            optax.sgd(0.1),
        )
        report = compare.check(original, port, batches, device="cpu")
        assert report.divergence is not None
        assert report.divergence.stage == "loss"
        causes.append(report.divergence.cause)
    assert causes[0] is None
    assert causes[1] is not None  # here the gradients differ as well
    assert causes[1].name == "operation left out"
