"""Explains a tensor that is a parameter on one side and a buffer on the other."""

from compare.jax_side.run import JaxRun
from compare.step.stage import Stage
from compare.torch_side.side import Torch
from compare.verdict.divergence import Cause, Divergence


def trained_alone(torch: Torch, jax: JaxRun, found: Divergence) -> Cause | None:
    """Say so where a tensor differs after an update since one side's optimizer trains it, and the other side's not."""
    name = found.torch.partition("[")[0]
    if found.stage != Stage.PARAMETERS:
        return None
    if name in dict(torch.model.named_buffers()) and found.jax in jax.param_names:
        return Cause(
            "trained on the JAX side alone",
            f"trained on the JAX side alone: {name} is a buffer in torch, which no optimizer changes, "
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
