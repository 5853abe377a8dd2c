"""The same parity on a GPU, with full float32 matrix products on both sides."""

import pytest

import compare
from compare.device import without_gpu
from compare.notebook.comparison import VARIANTS

LACKING = without_gpu()
pytestmark = pytest.mark.skipif(bool(LACKING), reason=f"no CUDA GPU is seen by {' and '.join(LACKING)}")


@pytest.mark.parametrize("variant", VARIANTS)
@pytest.mark.parametrize("seed", range(3))
def test_parity(variant: str, seed: int) -> None:
    report = compare.notebook.run(variant, seed=seed, device="cuda").raise_on_mismatch()
    assert max(report.loss.error64) <= 1e-12
    assert report.verdict == ("precision" if variant == "adam" else "match")


def test_float32_matrix_products_are_full() -> None:
    """TF32 keeps 10 bits: it would put the first loss some 1e-4 off."""
    report = compare.notebook.run("manual", steps=1, device="cuda")
    assert report.loss.error_jax[0] < 1e-6
    assert report.loss.error_torch[0] < 1e-6
