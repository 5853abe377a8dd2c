"""Values that a step of the JAX side is given in the place of those that it computes: see `watching.Instead`."""

from collections.abc import Collection, Mapping
from typing import Any, NamedTuple

import numpy as np

from compare.jax_side.watching import Instead
from compare.step.observation import Port


class Given(NamedTuple):
    """What a step is given. It still shows what it computed itself at these places."""

    ports: Mapping[Port, np.ndarray] = {}
    """What modules take and give, each of a shape that broadcasts to what the JAX side has there."""
    gradients: Mapping[str, np.ndarray] = {}
    """What optimizers take, by parameter."""
    used: Collection[Port] | None = None
    """Those of `ports` that are given now; None is for all. Another choice of them compiles nothing."""
    own: Collection[str] = ()
    """The parameters for which the optimizer takes the gradient that is computed, and none of `gradients`."""
    onward: Collection[Port] = ()
    """Those of `ports` from which on all that uses the same variable takes the given value, and not the module alone:
    in `x + layer(norm(x))`, what the norm takes is added as well."""

    @property
    def chosen(self) -> np.ndarray:
        """Whether each port is given, and whether onward, in sorted order, of shape `(ports, 2)`."""
        used = self.ports if self.used is None else self.used
        return np.array([(port in used, port in used and port in self.onward) for port in sorted(self.ports)], bool)

    def arguments(self) -> tuple[Any, ...]:
        """Give it as arguments of a step, which is compiled once for all choices of the ports that are used."""
        known = np.array([name not in self.own for name in sorted(self.gradients)], bool)
        return dict(self.ports), self.chosen, dict(self.gradients), known


def instead(ports: Mapping[Port, Any], chosen: Any, gradients: Mapping[str, Any], known: Any) -> Instead:
    """Pair these arguments, as a traced step has them, with whether they are used."""
    return Instead(
        {port: (ports[port], chosen[number]) for number, port in enumerate(sorted(ports))},
        {name: (gradients[name], known[number]) for number, name in enumerate(sorted(gradients))},
    )
