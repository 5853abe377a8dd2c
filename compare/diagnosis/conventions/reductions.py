"""What the JAX side may compute in place of a function that is neither a layer nor a loss."""

from typing import Any

from compare.diagnosis.conventions.base import DOCS, JAX, Alternative, Fix, writes
from compare.diagnosis.place import Place
from compare.diagnosis.rewriting import Call, Rewrite
from compare.verdict.fix import Code


def _unbiased(unbiased: bool) -> Rewrite:
    def compute(call: Call) -> Any:
        keep = {k: v for k, v in _given(call).items() if k in ("dim", "keepdim")}
        return getattr(call.input, call.name)(**keep, correction=int(unbiased))

    return compute


def _ddof(ddof: int) -> Any:
    return lambda call, place: Code(f"jnp.{call.name}", keywords={"ddof": ddof})


def _given(call: Call) -> dict[str, Any]:
    """Return the arguments of a call by name, as far as they were named."""
    named = {k: v for k, v in call.arguments.items() if k not in ("tensor", "input", "args", "kwargs")}
    more = call.arguments.get("args", ())
    if more and isinstance(more[0], int | tuple | list) and not isinstance(more[0], bool):
        named["dim"] = more[0]
    return named | call.arguments.get("kwargs", {})


def _mean_of_middle(call: Call) -> Any:
    import torch

    given = _given(call)
    if given.get("dim") is None:
        return torch.quantile(call.input, 0.5)
    values = torch.quantile(call.input, 0.5, dim=given["dim"], keepdim=given.get("keepdim", False))
    return torch.return_types.median((values, call.run().indices))


def _lower(call: Call, place: Place) -> Code:
    del place
    axis = _given(call).get("dim")
    where = {} if axis is None else {"axis": axis}
    return Code("jnp.quantile", ("x", "0.5"), {**where, "method": "lower"})


def _remainder_of(call: Call) -> Any:
    import torch

    other = call.arguments["other"]
    return torch.fmod(call.input, other) if call.name in ("remainder", "mod") else torch.remainder(call.input, other)


def _remainder(call: Call, place: Place) -> Code:
    del place
    return Code("jnp.fmod" if call.name == "fmod" else "jnp.remainder")


def _half_away(call: Call) -> Any:
    import torch

    return torch.sign(call.input) * torch.floor(call.input.abs() + 0.5)


_ROUNDING = {"round": "to the nearest integer", "floor": "down", "ceil": "up", "trunc": "towards zero"}
"""Functions that give integers, and what they do."""


def _rounded(name: str) -> Rewrite:
    def compute(call: Call) -> Any:
        import torch

        return getattr(torch, name)(call.input)

    return compute


def _rounding(own: str, other: str) -> Fix:
    code = Code(f"jnp.{own}", ("x",), instead=f"jnp.{other}")
    return lambda call, place: code


def _to_integers(call: Call) -> bool:
    return not call.arguments.get("decimals")


def _other_reduction(call: Call) -> Any:
    return getattr(call.input, {"mean": "sum", "sum": "mean"}[call.name])(**_given(call))


def _reduction(call: Call, place: Place) -> Code | str:
    """Write torch's reduction, where the JAX side's one reduces the same elements; else say which elements it is of.

    With `torch.mean(torch.sum(x, 1))` in torch, neither `jnp.mean(x)` nor `jnp.sum(x)` is right on the JAX side.
    """
    del place
    axes = _given(call).get("dim")
    if axes is not None and call.input.ndim > 1:
        chosen = [axes] if isinstance(axes, int) else list(axes)
        wanted = tuple(sorted(axis % call.input.ndim for axis in chosen))
        if len(wanted) < call.input.ndim:
            return Code(f"jnp.{call.name}", keywords={"axis": wanted[0] if len(wanted) == 1 else wanted})
    if _already_reduced(call):
        count, before = call.input.numel(), {"mean": "divided by", "sum": "times"}[call.name]
        return (
            f"take the {call.name} of {count} numbers, as torch does, which other reductions give: "
            f"the JAX side's result, {before} {count}"
        )
    return Code(f"jnp.{call.name}")


def _already_reduced(call: Call) -> bool:
    """Return whether what is reduced comes from another sum or mean, with no matrix product between."""
    waiting, seen = [getattr(call.input, "grad_fn", None)], set[Any]()
    while waiting and len(seen) < _NODES:
        node = waiting.pop()
        if node is None or node in seen:
            continue
        seen.add(node)
        if node.name().startswith(("SumBackward", "MeanBackward")):
            return True
        if not node.name().startswith(_PRODUCTS):
            waiting += [before for before, _ in node.next_functions]
    return False


def _is_of_all_points(call: Call) -> bool:
    size = call.arguments.get("output_size")
    return {1} == ({*size} if isinstance(size, tuple | list) else {size})


def _sum_of_points(call: Call) -> Any:
    axes = [-1 - axis for axis in range(POOLS_TO_A_SIZE.index(call.name) + 1)]
    return call.input.sum(axes, keepdim=True)


POOLS_TO_A_SIZE = ("adaptive_avg_pool1d", "adaptive_avg_pool2d", "adaptive_avg_pool3d")

MEAN_OR_SUM = "mean or sum"

_NODES = 100
"""Of autograd's graph, that are looked at."""

_PRODUCTS = ("Addmm", "Mm", "Bmm", "Baddbmm", "Convolution", "Embedding", "NativeLayerNorm", "NativeBatchNorm")


FUNCTIONS = (
    *(
        Alternative(
            name=MEAN_OR_SUM,
            functions=(ours,),
            compute=_other_reduction,
            jax_does=f"takes the {theirs}, torch the {ours}",
            fix=_reduction,
            source=f"{DOCS}torch.mean.html",
        )
        for ours, theirs in (("mean", "sum"), ("sum", "mean"))
    ),
    Alternative(
        name=MEAN_OR_SUM,
        functions=POOLS_TO_A_SIZE,
        compute=_sum_of_points,
        jax_does="takes the sum over all points, torch the mean",
        fix=writes("jnp.mean"),
        source=f"{DOCS}torch.nn.AdaptiveAvgPool2d.html",
        applies=_is_of_all_points,
    ),
    *(
        Alternative(
            name="variance by n or n - 1",
            functions=("var", "std"),
            compute=_unbiased(unbiased),
            jax_does=does,
            fix=_ddof(1 - unbiased),
            source=f"{JAX}jax.numpy.var.html",
        )
        for unbiased, does in ((False, "divides by n, as jnp.var does"), (True, "divides by n - 1"))
    ),
    Alternative(
        name="median of an even count",
        functions=("median",),
        compute=_mean_of_middle,
        jax_does="takes the mean of the two middle values, torch the lower one",
        fix=_lower,
        source=f"{DOCS}torch.median.html",
    ),
    Alternative(
        name="sign of a remainder",
        functions=("remainder", "mod", "fmod"),
        compute=_remainder_of,
        jax_does="takes the remainder's sign from the other operand",
        fix=_remainder,
        source=f"{JAX}jax.numpy.fmod.html",
    ),
    Alternative(
        name="rounding of halves",
        functions=("round",),
        compute=_half_away,
        jax_does="rounds halves away from zero, torch to even",
        fix=writes("jnp.round", "x"),
        source=f"{DOCS}torch.round.html",
    ),
    *(
        Alternative(
            name="rounding",
            functions=(own,),
            compute=_rounded(other),
            jax_does=f"rounds {way}, torch {_ROUNDING[own]}",
            fix=_rounding(own, other),
            source=f"{JAX}jax.numpy.{own}.html",
            applies=_to_integers,
        )
        for own in _ROUNDING
        for other, way in _ROUNDING.items()
        if other != own
    ),
)
