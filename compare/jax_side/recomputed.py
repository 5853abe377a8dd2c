"""What a backward pass computes again: the programs of checkpoints."""

from collections.abc import Callable
from typing import Any

from compare.jax_side.primitives import JIT, Kind, kind


def is_again(eqn: Any) -> bool:
    """Tell whether an operation computes in a backward pass what a checkpoint has computed before.

    JAX marks the checkpoint. One that is built again has no such mark: see `again`.
    """
    if kind(eqn) is Kind.CHECKPOINT:
        return bool(eqn.params.get("differentiated"))
    return bool(eqn.primitive.name == JIT and eqn.params["name"] == _AGAIN)


def again(checkpoint: Callable[..., Any]) -> Callable[..., Any]:
    """Mark a checkpoint that is built again in a step that is differentiated already, by the name of its caller."""
    import jax

    def netparity_again(*args: Any) -> Any:
        return checkpoint(*args)

    return jax.jit(netparity_again)


_AGAIN = "netparity_again"
