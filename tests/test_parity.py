"""The main claim: the five ports are the same programs as the originals, and this is how we would know if not."""

import os
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import compare
import jaxnet
import torchnet
from compare.notebook import bias_correction as causes
from compare.notebook import reference
from compare.notebook.comparison import VARIANTS

BIASED = ("module", "adam")
EXAMPLES = int(os.environ.get("EXAMPLES", "2"))


@pytest.mark.parametrize("variant", VARIANTS)
@pytest.mark.parametrize("seed", [0, *(pytest.param(seed, marks=pytest.mark.slow) for seed in (1, 2, 3, 4))])
def test_a_hundred_steps_match(variant: str, seed: int) -> None:
    report = compare.notebook.run(variant, seed=seed, device="cpu").raise_on_mismatch()
    assert report.verdict == ("precision" if variant == "adam" else "match")
    assert max(report.loss.error64) <= 1e-12
    assert len(report.loss.error64) == 100


@pytest.mark.parametrize(
    ("variant", "steps"),
    [
        ("manual", 200),
        *(pytest.param(variant, steps, marks=pytest.mark.slow) for variant in VARIANTS for steps in (500, 2000)),
    ],
)
def test_no_mismatch_at_the_noise_floor(variant: str, steps: int) -> None:
    """By then, float32 losses are noise in some variants, and float64 losses are 1e-17."""
    compare.notebook.run(variant, steps=steps, device="cpu").raise_on_mismatch()


@pytest.mark.parametrize("variant", VARIANTS)
def test_everything_is_weighed_at_every_step(variant: str) -> None:
    report = compare.notebook.run(variant, steps=3, device="cpu")
    stages = {(quantity.stage, quantity.torch) for quantity in report.quantities}
    weights = ["0.weight", "0.bias", "2.weight", "2.bias"] if variant in BIASED else ["w1", "w2"]
    expected = {("loss", "loss")} | {(s, w) for s in ("gradient", "update", "parameters") for w in weights}
    if variant == "adam":
        expected |= {("update", f"{w}.{slot}") for w in weights for slot in ("exp_avg", "exp_avg_sq", "step")}
    assert stages == expected
    assert {len(quantity.error64) for quantity in report.quantities} == {3}


@given(
    variant=st.sampled_from(VARIANTS),
    seed=st.integers(0, 2**63),
    shape=st.tuples(*[st.integers(1, 12)] * 4),
    steps=st.integers(1, 5),
)
@settings(max_examples=2 * EXAMPLES, deadline=None)
def test_any_shape_and_seed_matches(variant: str, seed: int, shape: tuple[int, int, int, int], steps: int) -> None:
    problem = compare.draw(seed, biases=variant in BIASED, shape=shape)
    compare.notebook.run(variant, problem=problem, steps=steps, device="cpu").raise_on_mismatch()


@pytest.mark.parametrize("variant", VARIANTS)
def test_training_is_the_steps_in_one_program(variant: str) -> None:
    """`train` scans over `step`: the same losses, in float64 too, and weights that can start another run."""
    if variant == "numpy":
        pytest.skip("the numpy row's port is jaxnet.manual, which is tested as manual")
    problem = compare.draw(3, biases=variant in BIASED)
    torch_program, jax_program = getattr(torchnet, variant), getattr(jaxnet, variant)
    import torch

    ours = torch_program.train(problem, 20, dtype=torch.float64)
    port = jax_program.train(problem, 20, dtype="float64")
    third = reference.train(problem, 20, variant=reference.VARIANTS[variant])
    assert port.losses.dtype == np.float64
    np.testing.assert_allclose(np.asarray(port.losses), ours.losses.numpy(), rtol=1e-12)
    np.testing.assert_allclose(np.asarray(port.losses), third.losses, rtol=1e-12)
    assert set(port.weights) == set(ours.weights) == set(third.weights)
    for name, weight in third.weights.items():
        np.testing.assert_allclose(np.asarray(port.weights[name]), weight, rtol=1e-10, atol=1e-13)
        np.testing.assert_allclose(ours.weights[name].numpy(), weight, rtol=1e-10, atol=1e-13)
    more = problem.__class__(problem.x, problem.y, **{k: np.array(v) for k, v in port.weights.items()})
    assert float(jax_program.train(more, 1).losses[0]) < float(port.losses[-1])


def test_the_bias_correction_of_optax_is_found_and_named() -> None:
    report = compare.notebook.run("adam", device="cpu")
    (note,) = report.notes
    assert report.ok
    assert note.name == "float32 bias correction"
    assert "1 - b2**t in float32" in note.explanation
    np.testing.assert_array_less(50 * np.array(report.loss.error64), report.loss.error_jax)


def test_the_note_is_not_invented(monkeypatch: pytest.MonkeyPatch) -> None:
    """An optax.adam whose bias correction is accurate has nothing to name."""
    monkeypatch.setattr(optax, "adam", causes.accurate_adam)
    problem = compare.draw(0, biases=True)
    assert causes.bias_correction(problem, 1e-4) == []


def test_lower_precision_on_one_side_is_no_mismatch(stepped: Callable[..., Any]) -> None:
    """A float32 matrix product that keeps bfloat16's 8 bits, and float64 that stays float64."""

    def loss_fn(weights: dict[str, jax.Array], x: jax.Array, y: jax.Array) -> jax.Array:
        def short(a: jax.Array) -> jax.Array:
            return a.astype(jnp.bfloat16).astype(jnp.float32) if a.dtype == jnp.float32 else a

        h = short(x) @ short(weights["w1"]).T
        return jnp.square(jnp.where(h < 0, 0, h) @ weights["w2"].T - y).sum()

    @jax.jit
    def step(state: jaxnet.State, x: jax.Array, y: jax.Array) -> jaxnet.Step:
        loss, gradients = jax.value_and_grad(loss_fn)(state.weights, x, y)
        weights = jax.tree.map(lambda w, g: w - 1e-6 * g, state.weights, gradients)
        return jaxnet.Step(loss, gradients, jaxnet.State(weights))

    report = compare.notebook.run("autograd", jax=stepped(jaxnet.autograd.start, step), steps=3, device="cpu")
    assert report.verdict == "precision"
    assert report.ok
