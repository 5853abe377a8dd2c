"""Tensors that are whole on one side and in parts on the other."""

from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from compare.errors import InputError
from compare.jax_side.layers import pytree_layers
from compare.torch_side.layers import torch_layers
from compare.weights.find import find_links
from compare.weights.fused_projections import part_names
from compare.weights.links import named, to_jax, to_torch


def modules(**layers: nn.Module) -> nn.Module:
    model = nn.Module()
    for name, layer in layers.items():
        model.add_module(name, layer)
    return model


def tree(**sizes: tuple[int, int]) -> dict[str, Any]:
    """Layers of these inputs and outputs."""
    return {name: {"kernel": np.zeros(size), "bias": np.zeros(size[1])} for name, size in sizes.items()}


def copied(model: nn.Module, params: Any, weights: Any = None) -> dict[str, np.ndarray]:
    """Give the arrays that the JAX side is given; and see that nothing is lost."""
    links = find_links(torch_layers(model), pytree_layers(params), weights)
    arrays = {name: tensor.numpy() for name, tensor in model.state_dict().items()}
    like = {link.jax: np.zeros(next(s for p, s in shapes(params) if p == link.jax)) for link in links}
    made = to_jax(links, arrays, like)
    back = to_torch(links, made, {name: np.zeros_like(array) for name, array in arrays.items()})
    for name, array in arrays.items():
        np.testing.assert_array_equal(back[name], array)
    return made


def shapes(params: Any) -> list[tuple[str, tuple[int, ...]]]:
    return [(name, shape) for layer in pytree_layers(params) for name, shape in layer.tensors.items()]


@pytest.mark.parametrize(
    ("name", "parts"),
    [
        ("to_kv", {"k": 6, "v": 6}),
        ("qkv", {"query": 8, "key": 4, "value": 4}),
        ("c_attn", {"q_proj": 8, "k_proj": 2, "v_proj": 2}),
        ("up_gate_proj", {"up": 5, "gate_proj": 5}),
        ("GateValue", {"gate": 3, "value": 7}),
    ],
)
@pytest.mark.parametrize("whole", ["torch", "jax"])
def test_a_fused_layer_is_cut_as_the_other_sides_parts_say(name: str, parts: dict[str, int], whole: str) -> None:
    torch.manual_seed(0)
    total, made = sum(parts.values()), {part: nn.Linear(3, size) for part, size in parts.items()}
    fused = nn.Linear(3, total)
    with torch.no_grad():
        fused.weight.copy_(torch.cat([layer.weight for layer in made.values()]))
        fused.bias.copy_(torch.cat([layer.bias for layer in made.values()]))
    other = {"out": nn.Linear(total, 3), "mlp": nn.Linear(3, 4)}
    separate = tree(**{part: (3, size) for part, size in parts.items()})
    rest = tree(out=(total, 3), mlp=(3, 4))
    if whole == "torch":
        arrays = copied(modules(**{name: fused}, **other), {**separate, **rest})
        for part, layer in made.items():
            np.testing.assert_array_equal(arrays[f"{part}/kernel"], layer.weight.detach().numpy().T)
            np.testing.assert_array_equal(arrays[f"{part}/bias"], layer.bias.detach().numpy())
    else:
        arrays = copied(modules(**made, **other), {**tree(**{name: (3, total)}), **rest})
        np.testing.assert_array_equal(arrays[f"{name}/kernel"], fused.weight.detach().numpy().T)
        np.testing.assert_array_equal(arrays[f"{name}/bias"], fused.bias.detach().numpy())


@pytest.mark.parametrize("name", ["in_gate", "query_key_value", "proj", "fc"])
def test_a_name_that_does_not_tell_the_order_is_refused(name: str) -> None:
    """The parts of `query_key_value` are interleaved by heads; the others say nothing of "a" and "b"."""
    with pytest.raises(InputError, match=rf"(?m)^  {name}.weight \(6, 3\)"):
        copied(modules(**{name: nn.Linear(3, 6)}), tree(a=(3, 2), b=(3, 4)))
    assert part_names("query_key_value") == ()
    order = {f"{name}.weight[0:4]": "b/kernel", f"{name}.weight[4:6]": "a/kernel"}
    order |= {f"{name}.bias[0:4]": "b/bias", f"{name}.bias[4:]": "a/bias"}
    layer = nn.Linear(3, 6)
    arrays = copied(modules(**{name: layer}), tree(a=(3, 2), b=(3, 4)), order)
    np.testing.assert_array_equal(arrays["a/kernel"], layer.weight[4:].detach().numpy().T)
    np.testing.assert_array_equal(arrays["b/bias"], layer.bias[:4].detach().numpy())


def test_a_table_in_chunks() -> None:
    model = nn.Module()
    model.table_0, model.table_1 = nn.Parameter(torch.randn(3, 4)), nn.Parameter(torch.randn(5, 4))
    arrays = copied(model, {"table": {"embedding": np.zeros((8, 4))}})
    np.testing.assert_array_equal(arrays["table/embedding"], torch.cat([model.table_0, model.table_1]).detach().numpy())
    weights = {"table_1": "table/embedding[0:5]", "table_0": "table/embedding[5:8, :]"}
    arrays = copied(model, {"table": {"embedding": np.zeros((8, 4))}}, weights)
    np.testing.assert_array_equal(arrays["table/embedding"], torch.cat([model.table_1, model.table_0]).detach().numpy())


def test_parts_by_a_regular_expression() -> None:
    model = nn.ModuleList([modules(glu=nn.Linear(3, 4, bias=False)) for _ in range(2)])
    params = {f"block_{n}": {"a": np.zeros((3, 2)), "b": np.zeros((2, 3))} for n in range(2)}
    weights = {
        r"(\d).glu.weight[0:2]": r"block_\1/a.T",
        r"(\d).glu.weight[2:4]": r"block_\1/b[:, :]",
    }
    arrays = copied(model, params, weights)
    last = model.get_parameter("1.glu.weight").detach().numpy()
    np.testing.assert_array_equal(arrays["block_1/a"], last[:2].T)
    np.testing.assert_array_equal(arrays["block_1/b"], last[2:])
    links = find_links(torch_layers(model), pytree_layers(params), weights)
    assert named(links[3], "torch") == "1.glu.weight[2:4]"


@pytest.mark.parametrize(
    ("weights", "message"),
    [
        ({"fc.weight[0:2]": "a"}, r"has fc.weight\[0:2\], but not the rest of 'fc.weight', of shape \(4, 3\)"),
        ({"fc.weight[0:2]": "a", "fc.weight[1:4]": "b"}, r"'a' and 'b' both as 'fc.weight\[1:4\]'"),
        ({"fc.weight[0:2]": "a", "fc.weight[2:4]": "a"}, r"'fc.weight\[0:2\]' and 'fc.weight\[2:4\]' both as 'a'"),
        ({"fc.weight[0:9]": "a"}, r"'fc.weight\[0:9\]', but 'fc.weight' has the shape \(4, 3\)"),
        ({"fc[0:2]": "a"}, r"'fc\[0:2\]': only a tensor has parts, as in 'fc.weight\[0:2\]'"),
        ({"fc.weight": "a[0:1]"}, r"has a\[0:1\], but not the rest of 'a', of shape \(3, 2\)"),
        ({"fc.weight": "c[0:1]"}, r"'fc.weight' as 'c', which is not in the JAX model"),
        ({"fc.weight": "a"}, r"Rows 0 to 8 of a tensor are 'fc.weight\[0:8\]'"),
    ],
)
def test_parts_that_do_not_fit_are_refused(weights: dict[str, str | None], message: str) -> None:
    model = modules(fc=nn.Linear(3, 4, bias=False))
    with pytest.raises(InputError, match=message):
        copied(model, {"a": np.zeros((3, 2)), "b": np.zeros((3, 2))}, weights)
