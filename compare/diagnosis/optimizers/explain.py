"""Why two optimizers differ: one update of the torch side, from the recorded gradients, with something changed.

Every number in a `torch.optim.Optimizer`'s parameter groups is a setting that can be fitted, whatever the optimizer:
what the JAX side steps by is then known, whether or not it calls it the same. Conventions that no setting of torch
expresses are formulas, in `compare.conventions.optimizers`.
"""

from collections.abc import Sequence

from compare.diagnosis.conventions.optimizers import DOCS, Convention
from compare.diagnosis.optimizers.fit import FLAGS, Changed, one_change, several_changes, shifted, with_distinct_digits
from compare.diagnosis.optimizers.gradient import clipped_by_value, gradient_told, other_gradient
from compare.diagnosis.optimizers.optax_names import NAMES, OPTAX
from compare.diagnosis.optimizers.parameters import other_parameters
from compare.diagnosis.optimizers.update import GRADIENT, Updates
from compare.verdict.divergence import Cause


def explain_update(updates: Updates, rates: Sequence[float]) -> Cause | None:
    """Find what brings torch's update to the JAX side's.

    Args:
        updates: Makes torch's update.
        rates: The learning rates of torch's steps, up to this one.

    """
    updates({})
    rates = [*rates, updates.optimizer.param_groups[0].get("lr", 0.0)]
    if (clipped := other_gradient(updates)) and clipped.name == "clipping":
        return clipped
    for changed, convention, apart in one_change(updates):
        if apart <= 1:
            return _told(updates, changed, convention, rates)
    if cause := other_parameters(updates) or clipped or clipped_by_value(updates):
        return cause
    for changed, convention, apart in several_changes(updates):
        if apart <= 1:
            return _told(updates, changed, convention, rates)
    return None


def _told(updates: Updates, changed: Changed, convention: Convention | None, rates: Sequence[float]) -> Cause:
    now = updates.settings | {name: updates.group.get(name) for name in FLAGS}
    optax = OPTAX.get(updates.kind, f"the port of {updates.kind}")
    names: list[str] = []
    says: list[str] = []
    arguments: list[str] = []
    fixes: list[str] = []
    sources: list[str] = []
    for name, value in changed.items():
        if name == GRADIENT:
            for parts, part in zip((names, says, fixes, sources), gradient_told(updates, value), strict=True):
                parts.append(part)
            continue
        called, argument = NAMES.get(name, (name.replace("_", " "), name))
        if len(several := updates.values(name)) > 1:
            names.append("parameter groups")
            says.append(
                f"torch's parameter groups have {name} {', '.join(f'{each:g}' for each in several)}, and the JAX side "
                f"steps as torch would with {value:g} for all"
            )
            fixes.append(f"optax.multi_transform, with {argument} of its own for each group")
            sources.append("https://optax.readthedocs.io/en/latest/api/combining_optimizers.html")
            continue
        if name == "lr" and len(set(rates)) > 1:
            names.append("schedule")
            shift = shifted(value, rates)
            says.append(
                f"the JAX side's learning rate is {value:g}{f', that of torch at its {shift} step' if shift else ''}, "
                f"and torch's is {now[name]:g}"
            )
            count = f"at count {len(rates) - 2}, from 0, the schedule must give {now[name]:g}"
            fixes.append(f"count the schedule's steps as torch does: {count}" if shift else count)
            sources.append("https://optax.readthedocs.io/en/latest/api/optimizer_schedules.html")
            continue
        if name == "decoupled_weight_decay":
            called = "decoupled weight decay"
            fixes.append(
                "optax.adamw(..., weight_decay=...)"
                if now[name]
                else f"optax.chain(optax.add_decayed_weights({now['weight_decay']:g}), optax.adam(...))"
            )
        else:
            arguments.append(f"{argument}={now[name]:g}" if not isinstance(value, bool) else f"{argument}={now[name]}")
        names.append(called)
        has, shown = with_distinct_digits(now[name], value)
        says.append(f"torch.optim.{updates.kind} has {name}={has}, and the JAX side steps as torch would with {shown}")
        sources.append(DOCS)
    if arguments:
        fixes.insert(0, f"{optax}(..., {', '.join(arguments)})")
    if convention is not None:
        names.append(convention.name)
        says.append(f"the JAX side {convention.jax_does}")
        fixes.append(convention.fix.format(optax=optax, **{k: v for k, v in now.items() if k.isidentifier()}))
        sources.append(convention.source)
    name = " and ".join(names)
    left = updates.difference(updates(changed, convention))
    return Cause(
        name,
        f"{name}: {', and '.join(says)}. With that on the torch side the difference is {left:.1e}",
        "; ".join(fixes),
        ", ".join(dict.fromkeys(sources)),
    )
