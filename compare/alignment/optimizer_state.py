"""Pairs the state of `torch.optim` with that of `optax`, by the names of its fields."""

import itertools
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from compare.alignment.pairings import NotCompared, Pairing, shown
from compare.step.observation import Observation, to_numpy
from compare.step.stage import Stage
from compare.weights.links import Link

Settings = Mapping[str, Any]
"""Of a torch optimizer: a parameter group without its parameters."""


class Slot(NamedTuple):
    """One kind of state on both sides."""

    torch: str
    """What `torch.optim` calls it, in `optimizer.state[param]`."""
    jax: tuple[str, ...]
    """The fields of optax's states that hold it."""
    relation: Callable[[np.ndarray, Settings], np.ndarray] = lambda value, settings: value
    """What the JAX side holds where torch holds this."""


SLOTS = (
    Slot("exp_avg", ("mu",)),  # Adam, AdamW, Adamax, NAdam, RAdam
    Slot("exp_avg_sq", ("nu",)),
    Slot("max_exp_avg_sq", ("nu_max",)),  # amsgrad
    Slot("exp_inf", ("nu",)),  # Adamax
    Slot("grad_avg", ("mu",)),  # centered RMSprop
    Slot("square_avg", ("nu", "e_g")),  # RMSprop, Adadelta
    Slot("acc_delta", ("e_x",)),  # Adadelta
    Slot("sum", ("sum_of_squares",)),  # Adagrad
    Slot("momentum_buffer", ("trace", "mu")),  # SGD, Muon; see below for RMSprop
    Slot("step_size", ("step_sizes",)),  # Rprop
    Slot("row_var", ("v_row",)),  # Adafactor
    Slot("col_var", ("v_col",)),
    Slot("variance", ("v",)),
    Slot("step", ("count",)),
)

_RMSPROP_MOMENTUM = Slot("momentum_buffer", ("trace",), lambda value, settings: -settings["lr"] * value)
"""`optax.rmsprop` scales by the learning rate before it accumulates, `torch.optim.RMSprop` after it."""


def align_state(
    links: Sequence[Link], torch: Observation, jax: Observation, settings: Mapping[str, Settings]
) -> tuple[list[Pairing], list[NotCompared]]:
    """Pair the optimizers' states; what has no partner is named.

    Args:
        links: Which parameter is which.
        torch: A step of the torch side, its state named "exp_avg/0.weight".
        jax: The same step of the JAX side, its state named as in optax's pytree, "0/mu/layers/0/kernel".
        settings: Of each torch parameter's group.

    """
    fields = _fields(jax.optimizer, jax.updates)
    pairings: list[Pairing] = []
    seen: set[tuple[str, str]] = set()
    met: set[str] = set()
    for link in links:
        group = settings.get(link.torch, {})
        for slot in SLOTS:
            ours = f"{slot.torch}/{link.torch}"
            if ours not in torch.optimizer:
                continue
            # RMSprop's buffer accumulates g / sqrt(v), and optax's trace -lr g / sqrt(v).
            if slot.torch == "momentum_buffer" and f"square_avg/{link.torch}" in torch.optimizer:
                slot = _RMSPROP_MOMENTUM
            # torch counts steps for each parameter, optax once for each transformation.
            whole = to_numpy(torch.optimizer[ours]).ndim == 0 and slot.torch == "step"
            among = [name for field in slot.jax for name in fields.get((field, "" if whole else link.jax), [])]
            theirs = _nearest(among, [name for (_, own), names in fields.items() if own == link.jax for name in names])
            if theirs is None or not _fits(link, whole, torch.optimizer[ours], jax.optimizer[theirs]):
                continue
            met |= {ours, theirs}
            name = f"{link.torch}.{slot.torch}"
            if (name, theirs) not in seen:
                seen.add((name, theirs))
                pairings.append(_pairing(name, ours, theirs, None if whole else link, slot, group))
    not_compared = [
        NotCompared("torch", name, _reason(_OF_TORCH, name.partition("/")[0], "optax"))
        for name in torch.optimizer
        if name not in met
    ]
    not_compared += [
        NotCompared("jax", name, _reason(_OF_JAX, name.rpartition("/")[2], "torch"))
        for name in jax.optimizer
        if name not in met
    ]
    return pairings, not_compared


_OF_TORCH = {"step": "torch"}
_OF_JAX = {"count": "optax", "step": "the JAX side"}
"""Whose counters the slots of these names are; `nnx.Optimizer` and `TrainState` count their updates as `step`."""


def _reason(counters: Mapping[str, str], slot: str, other: str) -> str:
    if slot in counters:
        return f"a counter of {counters[slot]}'s own: its effect is compared in the updates"
    return f"{other}'s optimizer has no state of that name"


def _fields(state: Iterable[str], parameters: Iterable[str]) -> dict[tuple[str, str], list[str]]:
    """Group the leaves of optax's state by field and parameter; those of no parameter under ""."""
    fields: dict[tuple[str, str], list[str]] = {}
    # The longest name comes first: "mu/blocks/0/norm/scale" ends with "norm/scale" too, which may be another parameter.
    known = sorted(parameters, key=len, reverse=True)
    for name in state:
        parameter = next((parameter for parameter in known if name.endswith(f"/{parameter}")), "")
        field = name.removesuffix(f"/{parameter}").rpartition("/")[2]
        fields.setdefault((field, parameter), []).append(name)
    return fields


def _nearest(names: list[str], beside: list[str]) -> str | None:
    """Of several counters take that of the state that has the parameter's moments: the longest common beginning.

    None where there are several, and no moments.
    """
    if len(names) < 2 or not beside:
        return names[0] if len(names) == 1 else None

    return max(names, key=lambda name: max(shared_start(name, other) for other in beside))


def shared_start(name: str, other: str) -> int:
    """Count the components with which two paths begin alike."""
    pairs = zip(name.split("/"), other.split("/"), strict=False)
    return sum(1 for _ in itertools.takewhile(lambda keys: keys[0] == keys[1], pairs))


def _fits(link: Link, whole: bool, ours: Any, theirs: Any) -> bool:
    if whole:
        return to_numpy(theirs).ndim == 0
    try:
        return link.torch_view(to_numpy(ours)).shape == link.jax_view(to_numpy(theirs)).shape
    except (ValueError, IndexError):  # not of the parameter's shape: a factored moment
        return False


def _pairing(name: str, ours: str, theirs: str, link: Link | None, slot: Slot, settings: Settings) -> Pairing:
    def torch(observation: Observation) -> np.ndarray:
        value = slot.relation(to_numpy(observation.optimizer[ours]), settings)
        return value if link is None else link.torch_view(value)

    def jax(observation: Observation) -> np.ndarray:
        value = to_numpy(observation.optimizer[theirs])
        return value if link is None else link.jax_view(value)

    return Pairing(Stage.UPDATE, name, theirs, torch, jax, link=link)


def jax_state(
    pairings: Iterable[Pairing], torch: Observation, state: Mapping[str, np.ndarray]
) -> dict[str, np.ndarray]:
    """Give optax's state, by name, the values of torch's; counters that torch does not have get its number of steps."""
    made = {name: np.array(array) for name, array in state.items()}
    steps = None
    for pairing in pairings:
        if pairing.jax not in made:
            continue
        value = shown(pairing.torch_array, torch)
        if value is None:  # torch has no state of what it does not train, as with an edit in force
            continue
        if pairing.link is None:
            made[pairing.jax] = steps = value.astype(made[pairing.jax].dtype)
        else:
            pairing.link.jax_view(made[pairing.jax])[...] = value
    for name, array in made.items():
        if steps is not None and array.ndim == 0 and name.rpartition("/")[2] == "count":
            # optax.chain may have several counters, of Adam's bias correction and of the schedule. torch has one
            # number of steps.
            made[name] = steps.astype(array.dtype)
    return made
