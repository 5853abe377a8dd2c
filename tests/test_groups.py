"""Differences with the same cause and the same fix are one finding with its places, in everything that is written."""

import dataclasses
import json
import re
from typing import Any

import hypothesis
import numpy as np
import pytest
from hypothesis import strategies as st

import compare
from compare.report.findings import Run, settings
from compare.report.grouping import grouped
from compare.report.junit import to_junit
from compare.report.places import collapsed, listed
from compare.report.report import Report
from compare.verdict.divergence import Cause, Detail, DetailKind, Divergence, Part
from compare.verdict.ratio import Quantity

BLOCKS = [(1, 2), (2, 3), (3, 2)]
"""The number of each layer of a residual network, and how many blocks it has."""


def cause(name: str, description: str, fix: str, measured: float = 1e-16) -> Cause:
    explanation = f"{name}: {description}. With this change on the torch side, the difference is {measured:.1e}"
    return Cause(name, explanation, fix, parts=(Part(name, description, fix),))


def padding(measured: float = 1e-16) -> Cause:
    return cause("padding", 'the JAX side pads as "SAME" does', "nnx.Conv(..., padding=((1, 1), (1, 1)))", measured)


def momentum(theirs: str = "0.99", measured: float = 1e-16) -> Cause:
    says = f"torch has momentum=0.1, and the JAX side computes what torch would with {theirs}"
    return cause("momentum", says, "nnx.BatchNorm(..., momentum=0.9)", measured)


def at(stage: str, torch: str, jax: str, why: Cause | None, **fields: Any) -> Divergence:
    modules = (torch, jax) if stage == "forward" and not torch.startswith("between") else None
    return Divergence(0, stage, torch, jax, 0.1, 1e-7, 2e-16, why, modules=modules, **fields)


def norms() -> list[str]:
    """As in a residual network: of the stem, two in each block, and one where the size changes."""
    blocks = [f"layer{layer}.{block}" for layer, count in BLOCKS for block in range(count)]
    inside = [f"{block}.bn{number}" for block in blocks for number in (1, 2)]
    return ["bn1", *inside, "layer2.0.down.1", "layer3.0.down.1"]


def flood() -> Report:
    """Three mistakes, which are 37 independent differences."""
    convolutions = ["layer2.0.conv1", "layer3.0.conv1"]
    kinds = dict.fromkeys(convolutions, "Conv2d") | dict.fromkeys(norms(), "BatchNorm2d")
    first, *others = [
        at(
            "forward",
            name,
            name.replace(".", "/"),
            padding(1e-16 * number),
            details=(Detail(DetailKind.LAYER, "Conv2d(3, 8)", "torch"), Detail(DetailKind.LAYER, "Conv(...)", "jax")),
        )
        for number, name in enumerate(convolutions)
    ]
    decay = cause("weight decay", "torch has 0.01, and the JAX side 0.0001", "optax.adamw(..., weight_decay=0.01)")
    others.append(at("update", "bn1.weight", "bn1/scale", decay))
    for number, name in enumerate(norms()):
        for buffer in ("mean", "var"):
            jax = f"{name.replace('.', '/')}/{buffer}"
            others.append(at("buffers", f"{name}.running_{buffer}", jax, momentum(measured=1e-17 * number)))
    losses = np.ones(2)
    runs = [Run(side, losses.astype(np.float32), losses) for side in ("torch", "flax")]
    quantities = [
        Quantity(stage, "bn1.weight", "bn1/scale", True, [0.1] * 2, [1e-7] * 2, [1e-7] * 2, [1.0] * 2)
        for stage in ("forward", "loss", "gradient", "update", "parameters", "buffers")
    ]
    modules = (kinds, {name.replace(".", "/"): kind.removesuffix("2d") for name, kind in kinds.items()})
    return Report(
        "resnet",
        runs[0],
        runs[1],
        quantities,
        first,
        [],
        settings(2, "cpu"),
        others=others,
        stages=True,
        modules=modules,
    )


@pytest.fixture(scope="module")
def report() -> Report:
    return flood()


def titles(findings: list[Divergence], kinds: dict[str, str]) -> list[str]:
    both = (kinds, {name.replace(".", "/"): kind for name, kind in kinds.items()})
    return [group.summary for group in grouped(findings, both)]


def test_numbered_places_share_an_entry() -> None:
    every = [f"encoder.layers.{layer}.norm{norm}" for layer in range(12) for norm in (1, 2)]
    assert listed(every) == "encoder.layers.0-11.norm1, norm2"
    assert listed(name for name in every if ".3." not in name) == "encoder.layers.{0-2,4-11}.norm1, norm2"
    assert listed(["a/0/b", "a/1/b"], "/") == "a/0-1/b"
    assert listed(["between a.0 and b", "between a.1 and b"]) == "between a.0 and b, between a.1 and b"
    parts = [f"between a.{number}.fc1 and a.{number}.fc2" for number in range(3)]
    assert listed([*parts, "a.0.norm"]) == "a.0-2: between fc1 and fc2; a.0.norm"
    ends = [f"between the start of a.{number} and a.{number}.fc" for number in range(3)]
    assert listed(ends) == "a.0-2: between the start and fc"
    assert listed(["net.0", "net.2", "net.007"]) == "net.{0,2}, 007"


def test_an_entry_names_nothing_else() -> None:
    """Layer 2 has no second norm, so that the two norms of the others may not stand for it."""
    places = ["1.a.norm1", "1.a.norm2", "2.a.norm1"]
    assert [entry.text for entry in collapsed(places)] == ["1-2.a.norm1", "1.a.norm2"]
    assert sum(entry.paths for entry in collapsed(norms())) == len(norms())


@hypothesis.settings(deadline=None)
@hypothesis.given(
    st.sets(st.lists(st.sampled_from(["a", "b", "0", "1", "2", "x1", "x2"]), min_size=1, max_size=3).map(".".join))
)
def test_entries_stand_for_all_places_once(places: set[str]) -> None:
    assert sum(entry.paths for entry in collapsed(sorted(places))) == len(places)


def test_what_does_not_fit_is_counted() -> None:
    assert listed(["a", "b.c", "d.e.f", "g.h.0", "g.h.1"], most=2) == "a; b.c; and 3 more places"


def test_the_same_cause_and_fix_are_one_finding(report: Report) -> None:
    assert [group.summary for group in report.groups] == [
        "Conv2d padding (2 layers)",
        "BatchNorm2d momentum (17 layers)",
        "weight decay",
    ]
    assert [len(group.findings) for group in report.groups] == [2, 34, 1]
    assert report.groups[1].named(0) == "bn1; layer{1,3}.0-1.bn1, bn2; layer2.0-2.bn1, bn2; layer2-3.0.down.1"
    assert report.groups[1].same_names
    assert len(report.others) == 36


def test_what_differs_is_not_merged() -> None:
    names = ["a.norm", "b.norm", "c.norm"]
    buffers = [f"{name}.running_mean" for name in names]
    kinds = dict.fromkeys(names, "BatchNorm2d")
    jax = [name.replace(".", "/") for name in buffers]
    causes = [momentum(), momentum("0.999"), None]
    found = [at("buffers", *place) for place in zip(buffers, jax, causes, strict=True)]
    assert titles(found, kinds) == [
        "BatchNorm2d momentum",
        "BatchNorm2d momentum",
        "difference at c.norm.running_mean",
    ]


def test_without_a_cause_only_equal_settings_are_one_finding() -> None:
    kinds = dict.fromkeys("abc", "Linear")
    settings = [
        (Detail(DetailKind.LAYER, f"Linear(3, {size})", "torch"), Detail(DetailKind.LAYER, "Linear(...)", "jax"))
        for size in (2, 4)
    ]
    found = [at("forward", name, name, None, details=settings[name == "c"]) for name in "abc"]
    assert titles(found, kinds) == ["difference in Linear (2 layers)", "difference at c"]
    unknown = [at("forward", f"between {name} and d", f"between {name} and d", None) for name in "ab"]
    assert titles(unknown, kinds) == ["difference between a and d", "difference between b and d"]


def test_a_cause_of_two_parts_joins_the_groups_of_its_parts() -> None:
    """The running variance has another momentum, as the running mean has, and is biased besides."""
    biased = Part("biased running variance", "the JAX side divides by n", "multiply by n / (n - 1)")
    both = Cause("biased running variance and momentum", "both", "both", parts=(biased, *momentum().parts))
    found = []
    for name in ("norm1", "norm2"):
        found += [at("buffers", f"{name}.running_mean", f"{name}/mean", momentum())]
        found += [at("buffers", f"{name}.running_var", f"{name}/var", both)]
    kinds = dict.fromkeys(["norm1", "norm2"], "BatchNorm1d")
    assert titles(found, kinds) == [
        "BatchNorm1d momentum (2 layers)",
        "BatchNorm1d biased running variance (2 layers)",
    ]
    groups = grouped(found, (kinds, kinds))
    assert [group.fix for group in groups] == ["nnx.BatchNorm(..., momentum=0.9)", "multiply by n / (n - 1)"]
    # Where nothing has one of its parts alone, it stays one finding.
    assert titles(found[1:2], kinds) == ["BatchNorm1d biased running variance and momentum"]


def test_the_text_is_short_and_has_everything(report: Report) -> None:
    text = str(report)
    lines = text.splitlines()
    assert len(lines) <= 40
    assert max(map(len, lines)) <= 80
    flat = re.sub(r"\s+", " ", text)
    assert (
        "3 things to mend: Conv2d padding (2 layers), BatchNorm2d momentum (17 layers), weight decay 1. step 0, "
        "forward, layer2-3.0.conv1: Conv2d padding" in flat
    )
    for group in report.groups:
        assert group.explanation in flat
        assert group.fix in text
    assert text.count("momentum=0.1") == 1


def test_one_finding_has_no_list(report: Report) -> None:
    alone = dataclasses.replace(report, others=[])
    assert alone.to_mend == ""
    assert "to mend" not in str(alone) + alone.to_markdown() + alone.to_html()
    assert "1. " not in str(alone)
    assert alone.groups[0].explanation.endswith("With this change on the torch side, the difference is 0.0e+00")


def test_every_file_has_the_groups(report: Report) -> None:
    summary = "3 things to mend: Conv2d padding (2 layers), BatchNorm2d momentum (17 layers), weight decay"
    page, markdown, junit = report.to_html(), report.to_markdown(), to_junit([report])
    assert summary in re.sub(r"<[^>]+>", "", page)
    assert summary in markdown
    assert f'name="parity_to_mend" value="{summary}"' in junit
    assert page.count("Independent difference") == 2
    assert markdown.count("momentum=0.1") == 1
    content = json.loads(report.to_json())["reports"][0]
    assert [group["findings"] for group in content["groups"]] == [2, 34, 1]
    assert len(content["others"]) == 36
    assert content["groups"][0]["places"][1] == {"torch": "layer3.0.conv1", "jax": "layer3/0/conv1"}


def test_more_groups_than_can_be_read_are_counted(report: Report) -> None:
    many = [at("forward", f"layer {number}", f"layer {number}", None) for number in range(40)]
    text = re.sub(r"\s+", " ", str(dataclasses.replace(report, others=many)))
    assert text.count("difference at") == 11  # the twelfth shown is the first divergence
    assert "41 findings" in text  # those without a cause may follow from another
    assert "29 more" in text


def test_its_representation_is_one_line(report: Report) -> None:
    expected = "<Report resnet: mismatch at step 0, forward, layer2.0.conv1: padding>"
    assert repr(report) == expected
    assert repr(dataclasses.replace(report, name="res\nnet")) == expected.replace("resnet", "res net")


def test_a_real_port_with_two_mistakes_in_many_layers() -> None:
    import optax
    import torch
    from flax import nnx

    class Original(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layers = torch.nn.ModuleList(torch.nn.Linear(4, 4) for _ in range(3))
            self.norms = torch.nn.ModuleList(torch.nn.LayerNorm(4) for _ in range(3))

        def forward(self, x: Any) -> Any:
            for layer, norm in zip(self.layers, self.norms, strict=True):
                x = x + norm(layer(x))
            return x

    class Port(nnx.Module):
        def __init__(self) -> None:
            rngs = nnx.Rngs(0)
            self.layers = nnx.List([nnx.Linear(4, 4, rngs=rngs) for _ in range(3)])
            self.norms = nnx.List([nnx.LayerNorm(4, rngs=rngs) for _ in range(3)])

        def __call__(self, x: Any) -> Any:
            for layer, norm in zip(self.layers, self.norms, strict=True):
                x = x + norm(layer(x))
            return x

    rng = np.random.default_rng(0)
    found = compare.check(
        compare.Torch(Original(), torch.nn.functional.mse_loss, lambda p: torch.optim.AdamW(p, 1e-3)),
        compare.Flax(Port(), lambda output, target: ((output - target) ** 2).mean(), optax.adamw(1e-3)),
        [tuple(rng.standard_normal((5, 4), dtype=np.float32) for _ in range(2))],
        steps=2,
        device="cpu",
    )
    assert found.to_mend == "2 things to mend: LayerNorm epsilon (3 layers), weight decay", str(found)
    assert found.groups[0].named(0) == "norms.0-2"


def test_weights_that_were_converted_wrongly_in_one_way_are_one_finding() -> None:
    import torch
    from flax import nnx

    original = torch.nn.Sequential(*(torch.nn.Linear(4, 4) for _ in range(5)))
    layers = [nnx.Linear(4, 4, rngs=nnx.Rngs(0)) for _ in range(5)]
    port = nnx.Sequential(*layers)
    compare.copy_weights(original, port)
    for number in (1, 2, 3):
        kernel = layers[number].kernel
        kernel[...] = kernel[...].T if number < 3 else 2 * kernel[...]
    batches = [(np.random.default_rng(0).standard_normal((3, 4), dtype=np.float32), None)]
    found = compare.check(compare.Torch(original), compare.Flax(port), batches, device="cpu")
    assert found.to_mend == "2 things to mend: converted weight (2 places), converted weight", str(found)
    assert [group.named(0) for group in found.groups] == ["1-2.weight", "3.weight"]
    assert all("compare.copy_weights" in group.fix for group in found.groups)
