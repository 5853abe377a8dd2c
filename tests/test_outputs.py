"""The files that the commands write: each for what it is made for, and JSON as its schema says."""

import dataclasses
import importlib.resources
import json
import re
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import jsonschema
import pytest

import compare
from compare.command_line.files import OF_REPORTS, markdown
from compare.command_line.main import main
from compare.report.changed_lines import beside
from compare.step.stage import Stage
from compare.verdict.divergence import DetailKind, Role
from compare.verdict.ratio import Verdict

DATA = importlib.resources.files("compare") / "data"
PAIR = """
import jax.numpy as jnp, numpy as np, optax, torch, compare
from flax import nnx

def mse(output, target):
    return jnp.mean((output - target) ** 2)

def pair(rate=2e-2, loss=True):
    torch.manual_seed(0)
    rng = np.random.default_rng(0)
    batches = [(rng.normal(size=(4, 3)), rng.normal(size=(4, 2)))] * 3
    ours = (torch.nn.functional.mse_loss, lambda p: torch.optim.SGD(p, 1e-2)) if loss else ()
    theirs = (mse, optax.sgd(rate)) if loss else ()
    sides = compare.Torch(torch.nn.Linear(3, 2), *ours), compare.Flax(nnx.Linear(3, 2, rngs=nnx.Rngs(0)), *theirs)
    return (*sides, batches if loss else [inputs for inputs, _ in batches])

def forward():
    return pair(loss=False)

def overflow():
    torch_side, flax_side, batches = pair(1e-2)
    wrong = compare.Flax(nnx.Linear(3, 2, rngs=nnx.Rngs(0)), lambda o, t: mse(o, t) / 0, optax.sgd(1e-2))
    return torch_side, wrong, batches
"""


@pytest.fixture(autouse=True)
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with a module of pairs, in which the commands run."""
    (tmp_path / "written_pairs.py").write_text(PAIR)
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.chdir(tmp_path)
    return tmp_path


def strict(schema: Any) -> Any:
    """The schema, under which nothing that it does not name is allowed."""
    if isinstance(schema, list):
        return [strict(item) for item in schema]
    if not isinstance(schema, dict):
        return schema
    closed = {"additionalProperties": False} if isinstance(schema.get("properties"), dict) else {}
    return closed | {key: strict(item) for key, item in schema.items()}


def validate(text: str, name: str = "report") -> Any:
    schema = strict(json.loads((DATA / f"{name}.schema.json").read_text(encoding="utf-8")))
    jsonschema.Draft202012Validator.check_schema(schema)
    content = json.loads(text)
    jsonschema.Draft202012Validator(schema).validate(content)
    return content


def test_the_schema_has_all_kinds() -> None:
    schema = json.loads((DATA / "report.schema.json").read_text(encoding="utf-8"))["$defs"]
    detail, line = schema["divergence"]["properties"]["details"]["items"], schema["lines"]["items"]
    assert schema["stage"]["enum"] == list(Stage)
    assert schema["verdict"]["enum"] == list(Verdict)
    assert detail["properties"]["kind"]["enum"] == list(DetailKind)
    assert set(line["properties"]["role"]["enum"]) == set(Role)


@pytest.mark.parametrize(("function", "status"), [("pair", 1), ("forward", 0), ("overflow", 1)])
def test_check_writes_json_by_the_schema(function: str, status: int, here: Path) -> None:
    command = ["check", f"written_pairs:{function}", "--device", "cpu", "--steps", "2", "--json", "out.json"]
    assert main(command) == status
    (report,) = validate((here / "out.json").read_text(encoding="utf-8"))["reports"]
    assert (report["verdict"] == "mismatch") == bool(status)
    assert report["settings"]["seed"] == 0
    assert report["to_mend"] == ""  # one finding is the headline
    assert report["weights"] == [{"torch": "weight", "jax": "kernel"}, {"torch": "bias", "jax": "bias"}]
    if function == "overflow":
        assert None in report["sides"]["jax"]["losses32"]


def test_the_schema_has_every_stage() -> None:
    schema = json.loads((DATA / "report.schema.json").read_text(encoding="utf-8"))
    assert schema["$defs"]["stage"]["enum"] == list(Stage)


def test_the_notebook_writes_every_kind(
    here: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    import jaxnet

    summary = here / "summary.md"
    summary.write_text("what was there\n")
    monkeypatch.setenv("GITHUB_STEP_SUMMARY", str(summary))
    wrong = compare.altered(jaxnet.module, learning_rate=2e-4)
    files = {kind: here / f"out.{'png' if kind == 'plot' else kind}" for kind in OF_REPORTS}
    options = [text for kind, path in files.items() for text in (f"--{kind}", str(path))]
    monkeypatch.setattr("compare.command_line.commands.run", mixed(wrong))
    assert main(["--variant", "manual", "--variant", "module", "--steps", "3", "--device", "cpu", *options]) == 1
    capsys.readouterr()

    content = validate(files["json"].read_text(encoding="utf-8"))
    assert [report["verdict"] for report in content["reports"]] == ["match", "mismatch"]

    suite = ElementTree.parse(files["junit"]).getroot()
    assert (suite.get("tests"), suite.get("failures")) == ("2", "1")
    cases = list(suite.iter("testcase"))
    assert [case.get("name") for case in cases] == ["manual", "module"]
    found = [{each.get("name"): each.get("value") or "" for each in case.iter("property")} for case in cases]
    assert [each["parity_verdict"] for each in found] == ["match", "mismatch"]
    assert float(found[0]["parity_float64_loss"]) < 1e-12 < float(found[1]["parity_float64_update"])
    assert cases[0].find("failure") is None
    failure = cases[1].find("failure")
    assert failure is not None
    assert failure.get("message", "").startswith("mismatch at step 0, update")
    assert "✗ module: mismatch" in (failure.text or "")

    written = files["markdown"].read_text(encoding="utf-8")
    verdicts = re.findall(r"^### (.*?): (\w+)", written, re.MULTILINE)
    assert verdicts == [
        ("✅ manual", "match"),
        ("❌ module", "mismatch"),
    ]
    assert written.count("<details>") == written.count("</details>") == 2
    assert summary.read_text(encoding="utf-8") == f"what was there\n{written}\n"

    page = files["html"].read_text(encoding="utf-8")
    assert page.count("<iframe srcdoc=") == 2
    assert "<summary>module: mismatch at step 0" in page
    assert files["plot"].read_bytes().startswith(b"\x89PNG")


def mixed(wrong: Any) -> Any:
    """`compare.notebook.run` with a wrong port of one variant."""
    right = compare.notebook.run
    return lambda variant, **settings: right(variant, jax=wrong if variant == "module" else None, **settings)


def test_names_with_marks_of_every_format() -> None:
    """What a name has in it must not become markup, an emoji or a tag."""
    report = compare.notebook.run("manual", steps=2, device="cpu", jax=None)
    name = "[bold]a_b*c`d<e>&:two:|\x00"
    odd = dataclasses.replace(report, name=name, stages=True)
    assert "[bold]a_b*c`d<e>&:two:|" in str(odd)
    assert r"\[bold\]a\_b\*c\`d\<e\>&:two:\|" in markdown([odd])
    case = next(ElementTree.fromstring(OF_REPORTS["junit"].content([odd], "")).iter("testcase"))
    assert case.get("name") == "[bold]a_b*c`d<e>&:two:|�"


def test_published_writes_json_by_its_schema(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["published", "--seeds", "2", "--device", "cpu", "--json", "out.json"]) in (0, 1)
    capsys.readouterr()
    assert len(validate((here / "out.json").read_text(encoding="utf-8"), "published")["cells"]) == 5


def test_the_schema_is_one_that_can_fail(here: Path) -> None:
    report = json.loads(compare.notebook.run("manual", steps=2, device="cpu").to_json())
    validate(json.dumps(report))
    for change in ({"verdict": "fine"}, {"verdicts": None}, {"colour": "red"}):
        with pytest.raises(jsonschema.ValidationError):
            validate(json.dumps(report | {"reports": [report["reports"][0] | change]}))


def test_every_field_is_documented() -> None:
    page = (Path(__file__).parents[1] / "docs" / "report.md").read_text(encoding="utf-8")
    for name in ("report", "published"):
        schema = json.loads((DATA / f"{name}.schema.json").read_text(encoding="utf-8"))
        record = schema["$defs"]["report"] if name == "report" else schema["properties"]["cells"]["items"]
        for field in record["properties"]:
            assert f"`{field}`" in page, field


def test_a_long_line_that_a_fix_changes_is_shown_where_it_changes() -> None:
    old = f"self.norm = nnx.LayerNorm({'width_of_all_' * 6}, rngs=rngs), nnx.Linear(8, classes_, rngs=rngs)"
    new = old.replace(", rngs=rngs), nnx.Linear", ", epsilon=1e-05, rngs=rngs), nnx.Linear").replace(
        "classes_", "classes"
    )
    shown = beside(old, new, 66)
    assert shown[0] != shown[1]
    assert all(len(line) <= 66 and " ... " in f" {line}" for line in beside(f"{old} # old", f"{old} # new", 66))
    assert beside("y = f(x)", "y = f(x, axis=1)", 66) == ("y = f(x)", "y = f(x, axis=1)")  # a short one is whole
