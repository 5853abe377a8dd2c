"""Finds errors in weights that the user converted: most of the port's own weights are torch's, but some differ."""

from typing import Any

from compare.comparison.own_values import is_one_number
from compare.diagnosis.converted_weights import misconverted
from compare.numerics.distance import EPSILON32, ULPS, distance
from compare.step.stage import Stage
from compare.verdict.divergence import Divergence
from compare.weights.links import to_jax


def wrongly_converted(pair: Any) -> list[Divergence]:
    """List the weights that the user's own conversion got wrong.

    A port with its own weights gets torch's, and its own are not reported. Where a port has more than half of torch's
    weights already, the user has converted them: the others are then wrong.

    Args:
        pair: A `ModelPair` or a `ProgramPair`.

    """
    right = to_jax(pair.links, pair.start, pair.given)
    both = [
        (link, link.jax_view(right[link.jax]), link.jax_view(pair.given[link.jax]))
        for link in pair.links
        if not is_one_number(right[link.jax])  # zeros and ones are equal without any conversion
    ]
    near = ULPS * EPSILON32
    wrong = [(link, ours, theirs) for link, ours, theirs in both if distance(theirs, ours) > near]
    parameters = {link.torch for link, _, _ in both if link.torch in pair.parameters}
    converted = parameters - {link.torch for link, _, _ in wrong}
    # By chance no weight agrees to float32's rounding. More than half: then the user intended to convert them all.
    if 2 * len(converted) <= len(parameters):
        return []
    opinion = f"the port already had torch's weights, except for {len(wrong)} of {len(both)}: check their conversion"
    return [
        Divergence(
            0,
            Stage.PARAMETERS,
            link.torch,
            link.jax,
            distance(theirs, ours),
            near,
            near,  # the weights are float32's on both sides
            cause=misconverted(link, ours, theirs, near),
            opinion=opinion,
        )
        for link, ours, theirs in wrong
    ]
