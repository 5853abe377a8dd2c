"""Causes of structure: edits of torch's operations that make it give what the JAX side gives."""

import pytest
import structure

ONE_OF_EACH_KIND = [
    ("GLU", "gate first"),
    ("SwiGLU", "other branch"),
    ("ViT", "merged without a transpose"),
    ("GPT", "mask off by one"),
    ("MLP-mixer", "reshaped"),
    ("super-resolution", "channels last"),
    ("autoencoder", "relu on the last"),
    ("masked regression loss", "mask left out"),
]

BY_NAME = {each.name: each for each in structure.ARCHITECTURES}


@pytest.mark.parametrize(("name", "fault"), ONE_OF_EACH_KIND)
def test_a_fault_of_structure_is_explained(name: str, fault: str) -> None:
    report = structure.check(BY_NAME[name], frozenset({fault}))
    assert report.divergence is not None
    cause = report.divergence.cause
    assert cause is not None, report
    said = f"{cause.explanation} {cause.fix}".lower()
    assert any(words.lower() in said for words in BY_NAME[name].faults[fault]), said


@pytest.mark.parametrize(
    ("name", "fault", "kind"),
    [
        ("encoder layer", "norm before", "pre-norm for post-norm"),
        ("ViT", "norm behind the sum", "post-norm for pre-norm"),
    ],
)
def test_norms_before_layers_or_behind_sums_are_one_finding(name: str, fault: str, kind: str) -> None:
    report = structure.check(BY_NAME[name], frozenset({fault}))
    assert report.divergence is not None
    assert report.divergence.cause is not None
    assert report.divergence.cause.name == kind
    assert not report.others


@pytest.mark.parametrize("name", ["GLU", "masked regression loss"])
def test_the_right_ports_match(name: str) -> None:
    assert structure.check(BY_NAME[name], frozenset()).ok


def test_two_faults_in_one_window() -> None:
    report = structure.check(BY_NAME["FiLM"], frozenset({"no one", "no shift"}))
    assert report.divergence is not None
    assert report.divergence.cause is not None
    assert report.divergence.cause.explanation.count("leaves out") == 2
