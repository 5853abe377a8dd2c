"""Faults of an optimizer and its schedule."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from compare.diagnosis.optimizers.names import in_words
from compare.faults.planted_run import AnyRun, Fault, PlantedRun, other, shown

if TYPE_CHECKING:
    import torch

RATE = 1e-5
"""How much too long a step is, relative to itself."""

AHEAD = 10_000
"""Steps in which a schedule must change anything, to be one."""


def of_optimizer(run: AnyRun, path: str) -> Iterator[Fault]:
    """List what can be wrong in an optimizer: the learning rate, any other setting, a parameter that it leaves out.

    `path` is that of the optimizer in the state of a program, "" for that of a model.
    """
    optimizer = run.optimizers[path]
    name, group = type(optimizer).__name__, optimizer.param_groups[0]
    where = f"{name} {path}".strip()
    yield Fault(
        "learning rate", f"learning rate times {1 + RATE:g}", where, lambda run, s: _scale(run, path, 1 + s * RATE)
    )
    for parameter in run.trained_by(optimizer):

        def freeze(run: AnyRun, _: float, parameter: str = parameter) -> None:
            _scale(run, path, 0.0, (parameter,))

        yield Fault("frozen parameter", "parameter never updated", parameter, freeze, sized=False)
    for key, value in _settings(group).items():

        def plant(run: AnyRun, times: float, key: str = key, value: Any = value) -> None:
            _set(run, path, key, not value if isinstance(value, bool) else other(key, value, times))

        new = not value if isinstance(value, bool) else other(key, value, 1.0)
        said, sized = f"{in_words(key)}: {shown(value)} → {shown(new)}", not isinstance(value, bool)
        yield Fault(
            f"{name} {key}", said, where, plant, sized, "on these batches, every update is the same with the fault"
        )


_NEEDS = {"nesterov": "momentum", "dampening": "momentum", "decoupled_weight_decay": "weight_decay"}
"""Settings that are read only where another is not zero."""

_LEFT_OUT = ("params", "lr", "initial_lr", "maximize", "foreach", "capturable", "differentiable", "fused")

_AT_THE_START = "initial_accumulator_value"


def _settings(group: Mapping[str, Any]) -> dict[str, float | bool]:
    """Return the settings of a parameter group that can be wrong: "eps", "betas[0]"."""
    parts: dict[str, Any] = {}
    for key, value in group.items():
        if key in (*_LEFT_OUT, _AT_THE_START) or (key in _NEEDS and not group.get(_NEEDS[key])):
            continue
        several = isinstance(value, tuple)
        parts |= {f"{key}[{i}]": part for i, part in enumerate(value)} if several else {key: value}
    return {
        key: value
        for key, value in parts.items()
        if isinstance(value, bool | float) or (value == 0 and value is not None)
    }


def _set(run: AnyRun, path: str, key: str, value: Any) -> None:
    """Change a setting where it is as in the first parameter group, again at each step, whatever a schedule does."""
    optimizer = run.optimizers[path]
    name, _, position = key.partition("[")
    groups = [group for group in optimizer.param_groups if group.get(name) == optimizer.param_groups[0][name]]

    def write(*_: Any) -> None:
        for group in groups:
            if position:
                group[name] = tuple(value if i == int(position[:-1]) else part for i, part in enumerate(group[name]))
            else:
                group[name] = value

    write()
    # Before each step, as a scheduler such as OneCycleLR writes settings between the steps.
    optimizer.register_step_pre_hook(write)


def _scale(run: AnyRun, path: str, factor: float, names: Sequence[str] | None = None) -> None:
    """Multiply the steps of some or all parameters: as another learning rate would, whatever the schedule."""
    optimizer = run.optimizers[path]
    trained, before = run.trained_by(optimizer), dict[str, "torch.Tensor"]()

    def keep(*_: Any) -> None:
        before.update({name: trained[name].detach().clone() for name in names or trained})

    def scale(*_: Any) -> None:
        for name, old in before.items():
            now = trained[name].data
            now.copy_(old + factor * (now - old))

    optimizer.register_step_pre_hook(keep)
    optimizer.register_step_post_hook(scale)


def of_clipping(run: PlantedRun) -> Iterator[Fault]:
    """Let what clips gradients in a hook of the optimizer be left out, if a step of it calls that."""
    if not run.clipped:
        return

    def leave_out(run: PlantedRun, _: float) -> None:
        run.clips = False

    unread = "no gradient is as large as the limit: use a batch for which one is"
    yield Fault("clipping", "clipping of gradients left out", run.clipped, leave_out, sized=False, unread=unread)


def of_schedule(make: Callable[[str], Any]) -> Iterator[Fault]:
    """Let the schedule be a step ahead: without gradients, a step of the optimizer is one of the schedule alone."""
    optimizer = make("float64").optimizer
    assert optimizer is not None

    def settings() -> list[dict[str, Any]]:
        return [{key: value for key, value in group.items() if key != "params"} for group in optimizer.param_groups]

    before, changed_at = settings(), 0
    # Parameters without gradients are skipped by every optimizer of torch, so that a step changes nothing
    # but what hooks and schedulers of the user's do: that is what "one step ahead" means.
    while settings() == before:
        if changed_at == AHEAD:
            return
        try:
            optimizer.step()
        except (TypeError, RuntimeError, ValueError, AttributeError, AssertionError):  # such as LBFGS, for a closure
            return
        changed_at += 1

    def ahead(run: PlantedRun, _: float) -> None:
        assert run.optimizer is not None
        run.optimizer.step()

    yield Fault(
        "shifted schedule", "schedule a step ahead", type(optimizer).__name__, ahead, sized=False, needed=changed_at
    )
