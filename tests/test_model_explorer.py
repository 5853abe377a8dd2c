"""What is written for Model Explorer: a graph of layers, and the digits to which both sides agree at each."""

import json
from pathlib import Path

import pytest

from compare.command_line.main import main

PORT = """
import compare, numpy, torch
from flax import nnx


class Port(nnx.Module):
    def __init__(self, rngs):
        self.layers = nnx.List([nnx.Linear(3, 4, rngs=rngs), nnx.LayerNorm(4, rngs=rngs), nnx.Linear(4, 2, rngs=rngs)])

    def __call__(self, x):
        for layer in self.layers:
            x = layer(x)
        return x


def pair():
    torch.manual_seed(0)
    layers = torch.nn.Sequential(torch.nn.Linear(3, 4), torch.nn.LayerNorm(4), torch.nn.Linear(4, 2))
    batches = [(numpy.random.default_rng(0).normal(size=(5, 3)), None)]
    return compare.Torch(layers), compare.Flax(Port(nnx.Rngs(0))), batches
"""


def test_digits_of_agreement(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    Path("port.py").write_text(PORT)
    files = ["--graph", "graph.json", "--node-data", "digits.json"]
    assert main(["check", "port.py:pair", "--device", "cpu", "--quiet", *files]) == 1
    (graph,) = json.loads(Path("graph.json").read_text())["graphs"]
    assert [node["label"] for node in graph["nodes"]] == ["0: Linear", "1: LayerNorm", "2: Linear"]
    assert [node["incomingEdges"] for node in graph["nodes"]][1:] == [[{"sourceNodeId": "0"}], [{"sourceNodeId": "1"}]]
    attributes = [{each["key"]: each["value"] for each in node["attrs"]} for node in graph["nodes"]]
    assert attributes[1]["JAX side"] == "layers/1"
    assert ["difference" in each for each in attributes] == [False, True, True]  # the epsilon, and what follows it

    data = json.loads(Path("digits.json").read_text())[graph["id"]]
    digits = [data["results"][node["id"]]["value"] for node in graph["nodes"]]
    assert digits[0] > 14
    assert 2 < digits[1] < 8
    assert [each["stop"] for each in data["gradient"]] == [0, 0.5, 1]
