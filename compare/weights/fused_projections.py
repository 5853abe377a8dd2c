"""Cuts a fused tensor, such as `in_proj_weight`, into the parts that are separate tensors on the other side.

A fused projection such as "qkv", "kv_proj" or "gate_up_proj" is one layer in one model and several in another; a large
embedding may be kept in chunks. It is cut only if names and sizes allow exactly one way: the name of the fused layer
gives the order of its parts, and the other side's layers give their sizes. Otherwise it stays whole.
"""

import dataclasses
import math
import re
from collections.abc import Iterable, Mapping, Sequence

from compare.weights.names import OF_KIND, SYNONYMS
from compare.weights.units import INPUT_FIRST, Slot, Unit

ABBREVIATIONS = {"qkv": ("query", "key", "value"), "kv": ("key", "value"), "qk": ("query", "key")}
"""Names of several parts in one word; "wqkv" is one too."""

CONVENTIONS = {"c_attn": "qkv", "in_proj": "qkv"}
"""Names of layers that are known to have query, key and value in this order."""

INTERLEAVED = ("query_key_value",)
"""Names of layers in which each head has its own query, key and value: their parts are not one after another."""


def cut_fused(units: Sequence[Unit], others: Sequence[Unit]) -> list[Unit]:
    """Cut those of one side's units that the other side has in parts."""
    return [part for unit in units for part in _parts(unit, others) or _chunks(unit, others) or [unit]]


def part_names(path: str) -> tuple[str, ...]:
    """Name the parts of a fused layer in their order, by its own name; none if the name does not tell."""
    last = re.split(r"[./]", path)[-1]
    if last.lower() in INTERLEAVED:
        return ()
    words = re.findall(r"[A-Z]+(?![a-z])|[A-Z]?[a-z]+", CONVENTIONS.get(last.lower(), last))
    found: list[str] = []
    for word in map(str.lower, words):
        if (short := word.removeprefix("w")) in ABBREVIATIONS:
            found += ABBREVIATIONS[short]
        elif word not in OF_KIND["linear"].split() and word != "to":
            found.append(SYNONYMS.get(word, word))
    return tuple(found) if len(found) == len(set(found)) > 1 else ()


def _parts(unit: Unit, others: Sequence[Unit]) -> list[Unit]:
    """Cut a fused projection; nothing if the other side has it whole, or no such parts."""
    names = part_names(unit.path)
    if not names or unit.kind not in ("linear", "") or "weight" not in unit.slots:
        return []
    total = unit.sizes["weight"]
    # The other side has a fused layer of this name and size too: the two are partners as they are.
    if any(part_names(each.path) == names and each.sizes.get("weight") == total for each in others):
        return []
    groups: dict[str, dict[str, Unit]] = {}
    for each in others:
        parent, last = re.fullmatch(r"(?:(.*)[./])?([^./]*)", each.path).groups()  # type: ignore[union-attr]
        which = _tokens(last) & set(names)
        if len(which) == 1 and each.slots.keys() == unit.slots.keys():
            groups.setdefault(parent or "", {}).setdefault(which.pop(), each)
    cuts = {
        sizes
        for group in groups.values()
        if group.keys() == set(names) and (sizes := _sizes(unit, [group[name] for name in names]))
    }
    # All layers with these names must suggest the same cut. Grouped queries, for instance, have smaller
    # keys and values.
    return _cut(unit, dict(zip(names, cuts.pop(), strict=True))) if len(cuts) == 1 else []


def _tokens(word: str) -> set[str]:
    return {SYNONYMS.get(part.lower(), part.lower()) for part in re.findall(r"[A-Z]+(?![a-z])|[A-Z]?[a-z]+", word)}


def _sizes(unit: Unit, parts: Iterable[Unit]) -> tuple[int, ...]:
    """Return how many of a fused layer's outputs each part has, or () if the parts are not the whole.

    Each part has as large a share of the outputs as of the numbers. Parts in a stack of layers, which has more numbers
    in all, have the same shares.
    """
    slot = unit.slots["weight"][0]
    outputs = slot.shape[_axis(unit, slot)]
    numbers = [each.sizes["weight"] for each in parts]
    if sum(numbers) % math.prod(slot.shape) or any(outputs * number % sum(numbers) for number in numbers):
        return ()
    return tuple(outputs * number // sum(numbers) for number in numbers)


def _axis(unit: Unit, slot: Slot) -> int:
    """Return the axis of the outputs in a layer's weight: the last one if the inputs are first."""
    input_first = unit.type == "Conv1D" or unit.slots["weight"][0].leaf in INPUT_FIRST
    return len(slot.shape) - 1 if input_first else 0


def _cut(unit: Unit, sizes: Mapping[str, int]) -> list[Unit]:
    made, start = [], 0
    separator = "/" if "/" in unit.slots["weight"][0].name else "."
    for name, size in sizes.items():
        slots = {
            role: tuple(slot.cut(slice(start, start + size), _axis(unit, slot)) for slot in several)
            for role, several in unit.slots.items()
        }
        made.append(dataclasses.replace(unit, path=f"{unit.path}{separator}{name}", slots=slots))
        start += size
    return made


def _chunks(unit: Unit, others: Sequence[Unit]) -> list[Unit]:
    """Cut a table along its rows, if the other side has "table_0", "table_1" and so on in place of "table"."""
    if unit.slots.keys() != {"weight"} or unit.kind not in ("embedding", ""):
        return []
    (slot,) = unit.slots["weight"]
    stem = re.split(r"[./]", unit.path)[-1]
    found = {
        int(match[1]): each.slots["weight"][0].shape
        for each in others
        if each.slots.keys() == {"weight"}
        and (match := re.fullmatch(rf"{re.escape(stem)}[_.]?(\d+)", re.split(r"[./](?!\d+$)", each.path)[-1]))
    }
    numbers = sorted(found)
    if not stem or len(numbers) < 2 or any(found[number][1:] != slot.shape[1:] for number in numbers):
        return []
    rows = [found[number][0] for number in numbers]
    if sum(rows) != slot.shape[0]:
        return []
    made, start = [], 0
    for number, size in zip(numbers, rows, strict=True):
        part = slot.cut(slice(start, start + size))
        made.append(dataclasses.replace(unit, path=f"{unit.path}_{number}", slots={"weight": (part,)}))
        start += size
    return made
