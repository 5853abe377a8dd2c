"""Adapts optimizers that are made for all variables of a Linen module, {"params": ...}, to its parameters alone.

`TrainState.create(params=module.init(...), tx=...)` gives the optimizer the variables as they are, and a mask or labels
that are a tree must have their structure.
"""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import optax

LEVEL = "params"


def of_parameters(optimizer: "optax.GradientTransformation", params: Any) -> "optax.GradientTransformation":
    """Make an optimizer one of the parameters alone: itself, unless only the variables have its structure."""
    for made in (optimizer, _of_variables(optimizer)):
        try:
            made.init(params)
        except (ValueError, TypeError, KeyError, AttributeError):  # what optax raises for trees of other structures
            continue
        return made
    return optimizer


def _of_variables(optimizer: "optax.GradientTransformation") -> "optax.GradientTransformation":
    """Give an optimizer of variables the parameters one level down."""
    import optax

    def init(params: Any) -> Any:
        return optimizer.init({LEVEL: params})

    def update(updates: Any, state: Any, params: Any = None, **more: Any) -> Any:
        if "grad" in more:
            more["grad"] = {LEVEL: more["grad"]}
        updates, state = optimizer.update({LEVEL: updates}, state, {LEVEL: params}, **more)
        return updates[LEVEL], state

    takes_more = isinstance(optimizer, optax.GradientTransformationExtraArgs)
    return (optax.GradientTransformationExtraArgs if takes_more else optax.GradientTransformation)(init, update)


def without_level(name: str) -> str:
    """Name a leaf of such an optimizer's state as if it were one of the parameters: "0/mu/Dense_0/kernel"."""
    return name.replace(f"/{LEVEL}/", "/", 1)
