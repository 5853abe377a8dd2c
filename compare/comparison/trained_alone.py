"""Explains a tensor that one side trains and the other does not."""

from collections.abc import Collection

from compare.diagnosis.steps.kept import FROZEN
from compare.jax_side.run import JaxRun
from compare.step.stage import Stage
from compare.torch_side.side import Torch
from compare.verdict.divergence import Cause, Divergence


def updated_alone(torch: Torch, trained: Collection[str], found: Divergence, side: str) -> Cause | None:
    """Say so where the JAX side updates a parameter that torch's optimizer does not.

    Args:
        torch: The torch side.
        trained: The parameters that its optimizer has, by name.
        found: A difference of an update.
        side: What the JAX side is called.

    """
    parameter = dict(torch.model.named_parameters()).get(found.torch)
    if parameter is None or not trained or (parameter.requires_grad and found.torch in trained):
        return None
    why = "requires_grad=False in torch" if not parameter.requires_grad else "no place in torch's optimizer"
    return Cause(
        ON_JAX,
        f"{ON_JAX}: {found.torch} has {why}, which does not update it, and the {side} side's optimizer does",
        f"leave {found.jax} out of what the optimizer updates: {FROZEN}",
    )


ON_JAX = "trained on the JAX side alone"


def trained_alone(torch: Torch, jax: JaxRun, found: Divergence) -> Cause | None:
    """Say so where a tensor differs after an update since one side's optimizer trains it, and the other side's not."""
    name = found.torch.partition("[")[0]
    if found.stage != Stage.PARAMETERS:
        return None
    if name in dict(torch.model.named_buffers()) and found.jax in jax.param_names:
        return Cause(
            ON_JAX,
            f"{ON_JAX}: {name} is a buffer in torch, which no optimizer changes, "
            f"and {found.jax} is a parameter of the {jax.side.name} side, which its optimizer trains",
            f"take {found.jax} out of the parameters, or pass it through jax.lax.stop_gradient where it is used, and "
            "leave it out of weight decay",
        )
    if name in dict(torch.model.named_parameters()) and found.jax in jax.buffer_names:
        return Cause(
            "trained in torch alone",
            f"trained in torch alone: {name} is a parameter in torch, and {found.jax} is not a parameter of "
            f"the {jax.side.name} side, whose optimizer never changes it",
            f"make {found.jax} a parameter: nnx.Param in place of nnx.Variable, or self.param(...)",
        )
    return None
