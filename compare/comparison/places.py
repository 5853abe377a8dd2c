"""Which layers of the JAX side run where two sides begin to differ."""

from collections.abc import Sequence

from compare.verdict.first_difference import Found


def layers_between(found: Found, order: Sequence[str]) -> list[str]:
    """Give the paths of the layers, the culprit first.

    Args:
        found: Where the two sides begin to differ.
        order: The paths of the JAX side's modules, in order of execution.

    """
    ports = found.pairing.ports
    end = ports[1].path if ports else found.pairing.jax.rpartition("/")[0]
    before = found.before.ports[1] if found.before and found.before.ports else None
    after = order.index(before.path) + 1 if before and before.path in order else 0
    until = order.index(end) if end in order else 0
    between = [] if ports is None else order[after:until]  # a buffer is of one module, whatever runs before it
    layers = [path for path in between if not (before and path.startswith(f"{before.path}/"))]
    if ports is None or ports[1].kind == "output":  # of a layer, it or one inside it
        layers = [end, *layers, *(path for path in order[after:] if path.startswith(f"{end}/" if end else ""))]
    return list(dict.fromkeys(layers))
