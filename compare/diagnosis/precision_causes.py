"""Explains why one side rounds more than the other where both compute the same."""

from collections.abc import Collection
from dataclasses import replace

from compare.jax_side.side import Flax, Jax
from compare.verdict.divergence import Cause
from compare.verdict.ratio import FACTOR, Quantity

DOCS = "docs/precision.md"


def low_precision(
    name: str,
    quantity: Quantity,
    side: str,
    dtypes: Collection[str],
    kept: Collection[str] = (),
    part: str = "forward pass",
) -> Cause | None:
    """Return whether the side that rounds more computes in fewer bits than float32 has, or keeps its weights in them.

    Args:
        name: What rounds more, on that side.
        quantity: How much both sides round there.
        side: The side that rounds more.
        dtypes: Of everything that this part of its program computes.
        kept: Of its parameters.
        part: The part.

    """
    low = [dtype for dtype in ("float16", "bfloat16") if dtype in dtypes]
    if not low and (low := [dtype for dtype in ("float16", "bfloat16") if dtype in kept]):
        dtype = " and ".join(low)
        return Cause(
            f"weights in {dtype} on the {side} side",
            f"the {side} side keeps its weights in {dtype}, first seen at {name}: its rounding is "
            f"{quantity.error_jax[0]:.1e} on the JAX side and {quantity.error_torch[0]:.1e} on the torch side. An "
            "update that is smaller than their rounding is lost",
            "keep the weights in float32: param_dtype=jnp.float32, and cast what was loaded by "
            "jax.tree.map(lambda leaf: leaf.astype(jnp.float32), params)",
            DOCS,
        )
    if not low:
        return None
    dtype = " and ".join(low)
    return Cause(
        f"{dtype} on the {side} side",
        f"the {side} side's {part} computes in {dtype}, first seen at {name}: its rounding is "
        f"{quantity.error_jax[0]:.1e} on the JAX side and {quantity.error_torch[0]:.1e} on the torch side",
        f"compute {name} in float32: leave out {dtype}, as in dtype=, mu_dtype= or astype, or have it on both sides",
        DOCS,
    )


def lower_products(name: str, side: str, lowest: str, quantity: Quantity, full: float) -> Cause | None:
    """Return whether operations in fewer bits than float32 has are what rounds: in full float32, they do not.

    Args:
        name: What rounds more.
        side: The JAX side's name.
        lowest: What the traced program asks for, such as "TF32".
        quantity: How much both sides round there.
        full: How much the JAX side rounds with every operation in full float32.

    """
    if not _explains(quantity, full):
        return None
    return Cause(
        f"{lowest} on the {side} side",
        f"the {side} side computes in {lowest}, first seen at {name}: its rounding is {quantity.error_jax[0]:.1e}, and "
        f"{full:.1e} in full float32; torch's is {quantity.error_torch[0]:.1e}",
        f"None is needed if {lowest} is meant. Otherwise leave `precision` and `reduce_precision` out, or give "
        "precision=jax.lax.Precision.HIGHEST",
        f"{DOCS}#matrix-products-on-a-gpu",
    )


def _explains(quantity: Quantity, without: float) -> bool:
    """Return whether the JAX side without a candidate rounds like torch, and far less than with it."""
    return without <= FACTOR * quantity.error_torch[0] and without * FACTOR <= quantity.error_jax[0]


def without_fast_variance(side: Flax | Jax, path: str) -> tuple[Flax, list[str]] | None:
    """Return the JAX side with a two-pass variance in the nnx norms at a path, and the paths of these norms.

    None if there are none.
    """
    from flax import nnx

    if not isinstance(side, Flax) or not isinstance(side.model, nnx.Module):
        return None
    model, norms = nnx.clone(side.model), []
    for parts, module in nnx.iter_modules(model):
        name = "/".join(map(str, parts))
        if f"{name}/".startswith(f"{path}/" if path else "") and getattr(module, "use_fast_variance", False):
            setattr(module, "use_fast_variance", False)  # noqa: B010 - not of every module
            norms.append(name)
    return (replace(side, model=model), norms) if norms else None


def fast_variance(norms: list[str], quantity: Quantity, slow: float) -> Cause | None:
    """Return whether the norms' fast variance, E[x²] - E[x]², is what rounds: without it, they do not.

    Args:
        norms: What they are called.
        quantity: How much both sides round.
        slow: How much the JAX side rounds with `use_fast_variance=False`.

    """
    # E[x²] - E[x]² loses about log10(E[x]² / Var[x]) digits (Chan, Golub and LeVeque, "Algorithms for
    # computing the sample variance", 1983).
    if not _explains(quantity, slow):
        return None
    called = ", ".join(name or "the model" for name in norms)
    return Cause(
        "fast variance",
        f"{called}: the variance is E[x²] - E[x]², which cancels where the mean is large: the rounding is "
        f"{quantity.error_jax[0]:.1e}, and {slow:.1e} with use_fast_variance=False; torch's is "
        f"{quantity.error_torch[0]:.1e}",
        "use_fast_variance=False",
        "https://flax.readthedocs.io/en/latest/api_reference/flax.nnx/nn/normalization.html",
    )
