"""The corpus: kinds of dishonest, broken and vacuous ports, each on several models, each with an honest twin."""

from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import compare

from . import branching, foreign, hidden, precisions, programs, recorded, vacuous
from .bases import BASES, IMAGES, NET, TOKENS, Base

Make = Callable[[Base], dict[str, Any]]


class Kind(NamedTuple):
    """One kind of port, and the models that it is made of."""

    group: str
    make: Make
    twin: Make | None = None
    """The honest twin, where it is not the same arguments with the right port."""
    bases: tuple[Base, ...] = BASES

    @property
    def name(self) -> str:
        """Like "foreign: activation"."""
        return f"{self.group}: {self.make.__name__}"


_PROGRAMS = (
    programs.narrow_gradient,
    programs.narrow_loss,
    programs.late,
    programs.same_size,
    programs.callback,
    programs.late_rate,
    programs.unread_average,
)

_SECOND = [
    Kind("traced", branching.not_traced, bases=(NET, TOKENS)),
    Kind("traced", branching.without_gradient, bases=(NET,)),
    *(Kind("later", make) for make in (branching.late, branching.late_update)),
    Kind("later", branching.late_by_choice, bases=(NET,)),
    Kind("later", branching.every_seventh_update, bases=(TOKENS,)),
    Kind("later", branching.late_rate, bases=(NET, IMAGES)),
    Kind("other data", branching.data_branch),
    Kind("sizes", branching.large_batches, bases=(NET, IMAGES)),
    Kind("sizes", branching.backward_size, bases=(NET, IMAGES)),
    Kind("sizes", branching.length, bases=(TOKENS,)),
    Kind("guards", hidden.nan_guard, bases=(NET, IMAGES)),
    Kind("guards", hidden.true_mask, bases=(NET, TOKENS)),
    Kind("guards", hidden.clamp, bases=(NET, IMAGES)),
    Kind("guards", hidden.torch_clamp, hidden.torch_clamp_twin, (NET, TOKENS)),
    Kind("guards", hidden.relu6, bases=(IMAGES,)),
    Kind("not exercised", hidden.padding_row, bases=(TOKENS,)),
    Kind("not exercised", hidden.class_weights, bases=(IMAGES, TOKENS)),
    *(Kind("stopped gradients", make) for make in (hidden.right_value, hidden.right_gradient)),
    Kind("ties", hidden.tied, hidden.tied_twin, (NET,)),
    Kind("ties", hidden.untied, hidden.untied_twin, (NET,)),
    Kind("left out", hidden.unpaired, bases=(NET, TOKENS)),
    Kind("left out", hidden.accepted, bases=(NET,)),
    Kind("left out", hidden.only_forward, bases=(NET, TOKENS)),
    Kind("batch=", hidden.counting_batch, bases=(NET, TOKENS)),
    Kind("batch=", hidden.refreshed_closure, bases=(NET, TOKENS)),
    Kind("recorded", hidden.table_in_buffers, bases=(NET, IMAGES)),
    Kind("foreign", hidden.ordered_update, bases=(NET,)),
    Kind("precision", precisions.tiny_gradient, bases=(NET, TOKENS)),
    Kind("precision", precisions.tiny_rate, bases=(NET, IMAGES)),
    Kind("precision", hidden.epsilon, bases=(NET,)),
    *(Kind("program", make, programs.right, (NET,)) for make in _PROGRAMS),
    *(Kind("program", make, programs.right, (NET,)) for make in (programs.not_a_number, programs.constant_loss)),
    Kind("program", programs.late_in_python, programs.late_in_python_twin, (NET,)),
    Kind("program", programs.no_rate, programs.right, (NET,)),
    Kind("program", programs.own_targets, programs.right, (NET,)),
    Kind("program", programs.clipping, programs.clipping_twin, (NET,)),
]
"""Kinds that were written by an adversary after what catches the first ones was built."""

CORPUS = [
    *(
        Kind("foreign", make)
        for make in (foreign.activation, foreign.backward, foreign.ordered, foreign.in_a_scan, foreign.whole_model)
    ),
    Kind("foreign", foreign.loss, foreign.shown),
    Kind("foreign", foreign.optimizer),
    *(
        Kind("precision", make)
        for make in (precisions.gradient, precisions.small_gradient, precisions.rate, precisions.forward)
    ),
    *(
        Kind("noise", make)
        for make in (
            precisions.both_rates,
            precisions.both_outputs,
            precisions.noisy_output,
            precisions.low_precision_gradient,
        )
    ),
    Kind("nothing compared", vacuous.no_weights),
    *(Kind("nothing compared", make) for make in (vacuous.constant_output, vacuous.no_gradient)),
    *(Kind("not finite", make) for make in (vacuous.not_a_number, vacuous.infinite)),
    *(Kind("recorded", make) for make in (recorded.outputs, recorded.outputs_by_step, recorded.updates)),
    Kind("one step", vacuous.one_step),
    *(Kind("one step", make, vacuous.schedule_twin) for make in (vacuous.schedule, vacuous.schedule_not_reached)),
    Kind("not exercised", vacuous.ignored_labels, bases=(IMAGES, TOKENS)),
    Kind("not exercised", vacuous.ignored_in_a_function, bases=(IMAGES, TOKENS)),
    Kind("not exercised", vacuous.full_mask, vacuous.full_mask_twin, (NET,)),
    Kind("not exercised", vacuous.clipping, vacuous.clipping_twin),
    Kind("fresh", vacuous.zero_gate, vacuous.open_gate, (NET,)),
    Kind("fresh", vacuous.zero_inputs, vacuous.zero_inputs_twin, (NET,)),
    Kind("fresh", vacuous.norm_scale, bases=(NET,)),
    Kind("as given", vacuous.no_rate),
    Kind("as given", vacuous.evaluation, bases=(NET, TOKENS)),
    Kind("sizes", vacuous.one_example, bases=(NET, TOKENS)),
    Kind("sizes", vacuous.same_size),
    *(Kind("closure", make) for make in (recorded.own_weights, recorded.own_targets)),
    *(Kind("batch=", make) for make in (recorded.from_the_batch, recorded.fails_on_others)),
    *_SECOND,
]


def pairs() -> Iterator[tuple[Kind, Base]]:
    """Give each kind with each of its models."""
    for kind in CORPUS:
        for base in kind.bases:
            yield kind, base


def dishonest(kind: Kind, base: Base) -> "compare.Report | compare.InputError":
    """Check a dishonest port: the report, or the refusal."""
    return _checked(base, kind.make(base))


def honest(kind: Kind, base: Base) -> "compare.Report | compare.InputError":
    """Check its twin: the same arguments with the right port, and what the kind says beyond that."""
    arguments = (kind.twin or kind.make)(base)
    if kind.twin is None:
        made = arguments
        trained = getattr(made.get("torch"), "loss", base.loss) is not None
        arguments = {key: value for key, value in made.items() if key in ("steps", "batches")}
        arguments |= {"torch": base.original(trained=trained), "jax": base.port(trained=trained)}
    return _checked(base, arguments)


def _checked(base: Base, arguments: dict[str, Any]) -> "compare.Report | compare.InputError":
    arguments = {"torch": base.original(), "jax": base.port(), "batches": base.batches(), **arguments}
    try:
        return compare.check(arguments.pop("torch"), arguments.pop("jax"), arguments.pop("batches"), **arguments)
    except compare.InputError as error:
        return error


def is_plain_match(found: "compare.Report | compare.InputError") -> bool:
    """Tell whether a person would read that all is well: a match, and nothing that it does not cover."""
    return not isinstance(found, compare.InputError) and found.headline == "match" and not found.unexercised
