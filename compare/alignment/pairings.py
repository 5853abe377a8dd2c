"""A pair of tensors that are compared, and what is not compared and why."""

from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import NamedTuple

import numpy as np

from compare.step.observation import Observation, Port, to_numpy
from compare.step.stage import Stage
from compare.weights.links import Link, named

Read = Callable[[Observation], np.ndarray]


class NotCompared(NamedTuple):
    """A tensor of one side that is not compared."""

    side: str
    """The side that has it: "torch" or "jax"."""
    name: str
    """Its name on that side."""
    reason: str
    """Why it is not compared."""


class Pairing(NamedTuple):
    """One quantity of both sides, and how to read it from what a step shows."""

    stage: Stage
    torch: str
    jax: str
    torch_array: Read
    jax_array: Read
    operands: Read | None = None
    """What the torch side's quantity is a difference of."""
    decides: bool = True
    """Whether a difference is a mismatch. What happens inside a model only says where one comes from."""
    ports: tuple[Port, Port] | None = None
    """Torch's and the JAX side's, in the forward stage."""
    link: Link | None = None
    """Of a parameter's optimizer state, the parameter's."""
    rank: float = 0.0
    """Of a program: its place in the order in which torch computed everything within a step."""
    after_update: bool = False
    """Whether an optimizer has updated something in the same step before: both sides' rounding has gone through it."""
    to_jax: Callable[[np.ndarray], np.ndarray] | None = None
    """In the forward stage: gives an array of the torch side the JAX side's layout."""
    last: Read | None = None
    """Of several tensors of torch that add up, reads the last alone: of an LSTM's two biases the second."""
    parts: tuple[tuple[str, ...], tuple[str, ...]] = ((), ())
    """The names of the tensors of each side, where several add up to it."""

    def subjects(self, side: int) -> tuple[str, ...]:
        """Name what it belongs to on the torch side (0) or the JAX side (1): its tensors, or the module that gives it.

        What a module takes belongs to none: whether it is right was decided before.
        """
        if self.ports is not None:
            port = self.ports[side]
            return (port.path,) if port.kind == "output" else ()
        return self.parts[side] or ((self.torch, self.jax)[side],)

    accepted: bool = False
    """Whether the user accepts a difference, which is then not a finding."""


def jax_path(pairing: Pairing | None) -> str | None:
    """Name the module of the JAX side that takes or gives a tensor; None where it is no module's."""
    return None if pairing is None or pairing.ports is None else pairing.ports[1].path


def shown(read: Read, observation: Observation) -> np.ndarray | None:
    """Read what a step shows; None where it shows no such thing, as a branch may run at some steps only."""
    try:
        return read(observation)
    except KeyError:
        return None


class Alignment(NamedTuple):
    """All quantities in order of computation, and everything that is left."""

    pairings: list[Pairing]
    not_compared: list[NotCompared]


def align_tensors(
    stage: Stage, field: str, links: Iterable[Link], torch: Observation, jax: Observation
) -> Iterator[Pairing]:
    """Pair one field of both observations ("gradients", "updates", "parameters", "buffers") as the links say.

    Several torch tensors may be one on the JAX side, as the two biases of `torch.nn.LSTM` are: values add up, and each
    has the same gradient. One torch tensor may be several on the JAX side, as a tied weight that a port keeps twice:
    the values are the same, and the gradients add up.
    """
    ours, theirs = getattr(torch, field), getattr(jax, field)
    links = [link for link in links if link.torch in ours and link.jax in theirs]
    by_jax, by_torch = _grouped(links, "jax"), _grouped(links, "torch")
    seen = set()
    for link in links:
        # With c = a + b, dL/da = dL/db = dL/dc: each part has the whole gradient. With copies a1 = a2 = a of
        # one tensor, dL/da = dL/da1 + dL/da2. Values are the other way round: parts add up, copies are equal.
        if stage == Stage.GRADIENT:
            parts, copies = [link], by_torch[_key(link, "torch")]
        else:
            parts, copies = by_jax[_key(link, "jax")] if link.adds else [link], [link]
        ours_named, theirs_named = (
            tuple(named(each, side) for each in group) for side, group in (("torch", parts), ("jax", copies))
        )
        name, partner = " + ".join(ours_named), " + ".join(theirs_named)
        if (name, partner) not in seen:
            seen.add((name, partner))
            yield Pairing(
                stage,
                name,
                partner,
                _sum(field, "torch", parts),
                _sum(field, "jax", copies),
                operands=_sum("parameters", "torch", parts) if stage == Stage.UPDATE else None,
                last=_sum(field, "torch", parts[-1:]) if len(parts) > 1 else None,
                parts=(ours_named, theirs_named),
            )


def _grouped(links: Sequence[Link], side: str) -> dict[str, list[Link]]:
    groups = defaultdict(list)
    for link in links:
        groups[_key(link, side)].append(link)
    return groups


def _key(link: Link, side: str) -> str:
    return f"{getattr(link, side)} {getattr(link, f'{side}_view')}"


def _sum(field: str, side: str, links: Sequence[Link]) -> Read:
    def one(link: Link) -> Read:
        name, view = getattr(link, side), getattr(link, f"{side}_view")
        return lambda observation: view(to_numpy(getattr(observation, field)[name]))

    reads = [one(link) for link in links]
    if len(reads) == 1:
        return reads[0]
    return lambda observation: np.sum([read(observation) for read in reads], axis=0)
