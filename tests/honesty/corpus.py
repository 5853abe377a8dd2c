"""The corpus: kinds of dishonest, broken and vacuous ports, each on several models, each with an honest twin."""

from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import compare

from . import foreign, precisions, recorded, vacuous
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
