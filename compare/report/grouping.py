"""Puts findings with the same cause and the same fix into one group."""

import dataclasses
import re
from collections.abc import Collection, Hashable, Mapping, Sequence
from typing import NamedTuple

from compare.report.groups import Group, Modules
from compare.step.stage import Stage
from compare.verdict.divergence import Cause, DetailKind, Divergence, Part


def grouped(findings: Sequence[Divergence], modules: Modules) -> list[Group]:
    """Group findings: that of the first divergence comes first, then those with the most places.

    Args:
        findings: The first divergence, and what differs independently of it.
        modules: The class of each module that ran, by its path, on both sides.

    """
    # A layer with two mistakes, one of which another layer has too, is in two groups: each is one thing to mend.
    alone = {cause.parts for each in findings if (cause := each.cause) and len(cause.parts) == 1}
    by_key: dict[Hashable, list[_Member]] = {}
    for number, finding in enumerate(findings):
        torch, jax = _place(finding, 0, modules[0]), _place(finding, 1, modules[1])
        for parts in _apart(finding.cause, alone):
            member = _Member(finding, torch, jax, parts)
            # A number is no key of another finding, so that what has no key is alone.
            by_key.setdefault(_key(member) or number, []).append(member)
    groups = _after_unpatched([_group(members) for members in by_key.values()])
    # The first divergence explains the headline and stays first; then what mends most places.
    return groups[:1] + sorted(groups[1:], key=lambda group: -len(group.places))


def _after_unpatched(groups: Sequence[Group]) -> list[Group]:
    """Mark the groups that remove an operation after the first difference for which there is no patch."""
    if not any(group._takes_away for group in groups):
        return list(groups)  # without a patch being made, which reads the user's files
    first = min((_position(group) for group in groups if group.patch is None), default=None)
    # A group keeps the patch that it was asked for. So what is marked is a copy, which makes its own.
    return [
        dataclasses.replace(group, after_unpatched=True)
        if first is not None and group._takes_away and _position(group) > first
        else group
        for group in groups
    ]


def _position(group: Group) -> tuple[int, int]:
    return min((finding.step, finding.number) for finding in group.findings)


def _apart(cause: Cause | None, alone: Collection[tuple[Part, ...]]) -> list[tuple[Part, ...]]:
    """Take the parts of a cause that are elsewhere a cause of their own away from the others."""
    if cause is None:
        return [()]
    elsewhere = [(part,) for part in cause.parts if (part,) in alone]
    rest = tuple(part for part in cause.parts if (part,) not in alone)
    return [*([rest] if rest or not elsewhere else []), *elsewhere]


class _Place(NamedTuple):
    name: str
    """The path of a module; of what is none, its name in the report."""
    kind: str
    """The module's class; "" of what is no module."""


def _place(finding: Divergence, side: int, kinds: Mapping[str, str]) -> _Place:
    """Return the module in which a finding is on the torch side (0) or on the JAX side (1), if it is in one."""
    name, separator = (finding.torch, finding.jax)[side], "./"[side]
    if finding.modules is not None and (path := finding.modules[side]) and path in kinds:
        return _Place(path, kinds[path])
    if finding.stage == Stage.BUFFERS:
        module = name.rpartition(separator)[0]
        collection, _, inner = module.partition(separator)  # Linen's "batch_stats/norm/mean" is of "norm"
        for path in (module, inner if collection else ""):
            if path and path in kinds:
                return _Place(path, kinds[path])
    return _Place(name, "")


class _Member(NamedTuple):
    """A finding in a group."""

    finding: Divergence
    torch: _Place
    jax: _Place
    parts: tuple[Part, ...]
    """What of its cause is that of the group; empty if it has none, or one without parts."""


def _key(member: _Member) -> Hashable:
    """Return what is equal of all findings in a group; None of a finding that is a group of its own."""
    finding, kinds = member.finding, (member.torch.kind, member.jax.kind)
    if cause := finding.cause:
        parts = tuple(map(_of_any_block, member.parts))
        return parts or (cause.name, cause.explanation, cause.fix), finding.opinion
    port = tuple(line for line in finding.lines if line.side == "jax")
    if port and not any(kinds):  # a loop over time has a place for each of its turns, and one line to mend
        return finding.stage, port, finding.opinion
    # Without a cause, only layers of the same settings on both sides are the same finding: the details have these. The
    # calls of one layer, as in a loop over time, are one whatever they give.
    values = any(detail.kind == DetailKind.VALUES for detail in finding.details)
    of_layer = (member.torch.name, member.jax.name) if values else finding.details
    return (finding.stage, kinds, of_layer, finding.opinion) if all(kinds) and of_layer else None


def _of_any_block(part: Part) -> Part:
    """Leave out the numbers of blocks: "the output of blocks.0.fc2" and that of blocks.1.fc2 are blocks.*.fc2."""
    texts = (re.sub(r"(?<=[A-Za-z_])([./])\d+(?=[./]|\b)", r"\1*", text) for text in (part.description, part.fix))
    description, fix = texts
    return dataclasses.replace(part, description=description, fix=fix)


def _group(members: Sequence[_Member]) -> Group:
    kinds = {member.torch.kind for member in members}
    findings = tuple(member.finding for member in members)
    places = dict.fromkeys((member.torch.name, member.jax.name) for member in members)
    if len(findings) == 1:
        places = {(findings[0].torch, findings[0].jax): None}
    same = all(member.parts == members[0].parts for member in members)
    parts = members[0].parts if same else tuple(map(_of_any_block, members[0].parts))
    return Group(findings, tuple(places), kinds.pop() if len(kinds) == 1 else "", parts, same=same)
