"""Which tensor is which: by names, order and shapes, or not without the user's word."""

import re
import types
from typing import Any

import jax.numpy as jnp
import numpy as np
import pytest
import torch
from flax import linen, nnx
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

import compare
from compare.conversion import copy_weights
from compare.errors import InputError
from compare.jax_side.layers import linen_layers, pytree_layers
from compare.torch_side.layers import torch_layers
from compare.weights.find import find_links
from compare.weights.layers import Layer
from compare.weights.links import to_jax, to_torch
from compare.weights.units import View


@settings(max_examples=30, deadline=None)
@given(st.lists(st.sampled_from([3, 4]), min_size=2, max_size=6), st.data())
def test_names_are_believed_whatever_the_order(widths: list[int], data: st.DataObject) -> None:
    """Layers called alike are one, in whatever order either side defines them; the numbers may start anywhere."""
    count = len(widths) - 1
    mine = {
        f"net.fc{n + 1}": [("weight", (widths[n + 1], widths[n])), ("bias", (widths[n + 1],))] for n in range(count)
    }
    theirs = {f"fc{n}": [("kernel", (widths[n], widths[n + 1])), ("bias", (widths[n + 1],))] for n in range(count)}
    sides = []
    for layers, kind, separator in ((mine, "Linear", "."), (theirs, "Dense", "/")):
        order = data.draw(st.permutations(list(layers)))
        sides.append(
            [
                Layer(at, kind, {"kind": "linear"}, {f"{at}{separator}{leaf}": size for leaf, size in layers[at]})
                for at in order
            ]
        )
    links = {link.torch: link.jax for link in find_links(sides[0], sides[1])}
    assert links == {
        f"net.fc{n + 1}.{mine}": f"fc{n}/{theirs}"
        for n in range(count)
        for mine, theirs in (("weight", "kernel"), ("bias", "bias"))
    }


def linear_layers(*paths: str, kernel: str = "weight", separator: str = ".", ordered: bool = True) -> list[Layer]:
    settings = {"kind": "linear", "ordered": ordered}
    return [Layer(path, "Linear", settings, {f"{path}{separator}{kernel}": (4, 4)}) for path in paths]


def jax_linear_layers(*paths: str, ordered: bool = True) -> list[Layer]:
    return linear_layers(*paths, kernel="kernel", separator="/", ordered=ordered)


def pairs(torch: list[Layer], jax: list[Layer], **options: Any) -> list[str]:
    return [link.jax.removesuffix("/kernel") for link in find_links(torch, jax, **options)]


def test_order_counts_where_names_say_nothing() -> None:
    assert pairs(linear_layers("0", "2"), jax_linear_layers("wide", "narrow")) == ["wide", "narrow"]
    order = (["", "0", "2"], ["", "narrow", "wide"])
    assert pairs(linear_layers("0", "2"), jax_linear_layers("wide", "narrow"), order=order) == ["narrow", "wide"]
    # JAX sorts the keys of dictionaries: then only numbers tell the order.
    with pytest.raises(InputError, match="which is which"):
        pairs(linear_layers("0", "2"), jax_linear_layers("wide", "narrow", ordered=False))
    assert pairs(linear_layers("0", "2"), jax_linear_layers("Dense_1", "Dense_0", ordered=False)) == [
        "Dense_0",
        "Dense_1",
    ]


def test_numbers_that_contradict_the_order_are_refused() -> None:
    order = (["fc1", "fc2"], ["Dense_1", "Dense_0"])
    with pytest.raises(InputError) as error:
        pairs(linear_layers("fc1", "fc2"), jax_linear_layers("Dense_0", "Dense_1"), order=order)
    assert str(error.value) == (
        "the weights cannot be matched without guessing:\n"
        "which is which, in torch  in JAX\n"
        "  fc1.weight (4, 4)       Dense_0/kernel (4, 4)\n"
        "  fc2.weight (4, 4)       Dense_1/kernel (4, 4)\n"
        'pass weights={"torch name or regex": "jax/path"} for these, tensors or modules; "path.T" for a matrix to be '
        'transposed, "name[0:8]" for a part of a tensor, and None for what has no partner'
    )
    said = {r"fc(\d).weight": r"Dense_\1/kernel"}
    with pytest.raises(
        InputError, match=r"'fc2.weight' as 'Dense_2/kernel', which is not in the JAX model; did you mean"
    ):
        pairs(linear_layers("fc1", "fc2"), jax_linear_layers("Dense_0", "Dense_1"), order=order, weights=said)
    said = {"fc1": "Dense_1"}
    assert pairs(linear_layers("fc1", "fc2"), jax_linear_layers("Dense_0", "Dense_1"), weights=said) == [
        "Dense_1",
        "Dense_0",
    ]


def test_query_key_and_value_go_by_name_alone() -> None:
    mine = linear_layers("attn.k_proj", "attn.v_proj", "attn.q_proj", "attn.out_proj")
    theirs = ("attention/query", "attention/key", "attention/value", "attention/out")
    assert pairs(mine, jax_linear_layers(*theirs)) == [theirs[1], theirs[2], theirs[0], theirs[3]]
    with pytest.raises(InputError, match=r"attn.k_proj.weight \(4, 4\) +attn/Dense_0/kernel"):
        pairs(mine, jax_linear_layers(*(f"attn/Dense_{n}" for n in range(4))))


def test_only_what_has_no_partner_is_listed() -> None:
    """A layer that lacks one tensor keeps its partner; one that fits nothing stands beside the likeliest."""
    mine, theirs = linear_layers("a", "b.c"), jax_linear_layers("a", "b/c")
    mine[1].tensors["b.c.bias"] = (4,)
    with pytest.raises(InputError, match=r"(?m)^  b.c.bias \(4,\) +b/c has none$") as error:
        find_links(mine, theirs)
    assert "weight (4" not in str(error.value)
    with pytest.raises(InputError, match=r"(?m)^  b has none +b/c/bias \(4,\)$"):
        find_links(
            linear_layers("a", "b"), [theirs[0], theirs[1]._replace(tensors={**theirs[1].tensors, "b/c/bias": (4,)})]
        )
    other = [theirs[0], theirs[1]._replace(tensors={"b/c/kernel": (4, 5)})]
    with pytest.raises(InputError, match=r"(?m)^  b.c.weight \(4, 4\)  +b/c/kernel \(4, 5\)\n  b.c.bias \(4,\)$"):
        find_links(mine, other)
    links = find_links(mine, theirs, {"b.c.bias": None})
    assert len(links) == 2
    assert links.apart == {"b.c.bias": "left out by weights="}
    assert "not compared: b.c.bias: left out by weights=" in str(links)


def test_weights_that_fit_nothing() -> None:
    sides = linear_layers("a", "b"), jax_linear_layers("a", "b")
    for weights, message in (
        ({"a.wieght": "a/kernel"}, r"'a.wieght', which matches no tensor and no module .*did you mean 'a.weight'"),
        ({"c": None}, "'c', which matches no tensor of either side"),
        ({"a.weight": "c/kernel"}, r"'a.weight' as 'c/kernel', which is not in the JAX model; did you mean"),
        ({"a.weight": "b/kernel", "b.weight": "b/kernel"}, "both as 'b/kernel'"),
        ({"a(": "a"}, "neither a name nor a regular expression"),
    ):
        with pytest.raises(InputError, match=message):
            find_links(*sides, weights)
    sides[1][1].tensors["b/kernel"] = (4, 5)
    with pytest.raises(InputError, match=r"'b.weight', of shape \(4, 4\) in torch, as 'b/kernel', of shape \(4, 5\)"):
        find_links(*sides, {"b.weight": "b/kernel"})


def test_a_matrix_of_unknown_orientation_goes_by_the_others_or_is_refused() -> None:
    mine = torch_layers(nn.Sequential(nn.Linear(4, 4, bias=False), nn.Linear(4, 3, bias=False)))
    tree = {"w1": np.zeros((4, 4)), "w2": np.zeros((4, 3))}
    assert [link.jax_view for link in find_links(mine, pytree_layers(tree))] == [View(axes=(1, 0))] * 2
    tree = {"w1": np.zeros((4, 4)), "w2": np.zeros((3, 4))}
    assert [link.jax_view for link in find_links(mine, pytree_layers(tree))] == [View(), View()]
    mine, theirs = mine[:1], pytree_layers({"w1": np.zeros((4, 4))})
    with pytest.raises(InputError, match=r"which way round, in torch +in JAX\n +0.weight \(4, 4\) +w1 \(4, 4\)"):
        find_links(mine, theirs)
    assert find_links(mine, theirs, {"0.weight": "w1.T"})[0].jax_view == View(axes=(1, 0))
    # Weights that are equal already tell it.
    w = np.random.default_rng(0).standard_normal((4, 4))
    assert find_links(mine, theirs, values=({"0.weight": w}, {"w1": w}))[0].jax_view == View()


def test_arrays_in_lists_and_under_names_of_their_own() -> None:
    mine = torch_layers(nn.Sequential(nn.Linear(3, 4), nn.ReLU(), nn.Linear(4, 4), nn.ReLU(), nn.Linear(4, 4)))
    w1, w, b = np.zeros((3, 4)), np.zeros((4, 4)), np.zeros(4)
    links = find_links(mine, pytree_layers([(w1, b), (w, b), (w, b)]))
    assert [link.jax for link in links] == ["0/0", "0/1", "1/0", "1/1", "2/0", "2/1"]
    assert {link.jax_view for link in links if "weight" in link.torch} == {View(axes=(1, 0))}
    links = find_links(mine, pytree_layers({"b1": b, "b2": b, "b3": b, "w1": w1, "w2": w, "w3": w}))
    assert [link.jax for link in links] == ["w1", "b1", "w2", "b2", "w3", "b3"]
    with pytest.raises(InputError, match="which is which"):
        find_links(mine, pytree_layers({"x": b, "y": b, "z": b, "w1": w1, "w2": w, "w3": w}))


def test_a_view_never_copies() -> None:
    array = np.arange(24.0).reshape(2, 3, 4)
    view = View(index=(1,), axes=(1, 0), flip=(0,))
    view(array)[...] = 0
    np.testing.assert_array_equal(array, [np.arange(12).reshape(3, 4), np.zeros((3, 4))])
    with pytest.raises(ValueError, match="copy"):
        View(shape=(24,))(array.T)
    scalar = np.zeros(())
    View(shape=(1,))(scalar)[...] = 1
    assert scalar == 1


def test_the_copy_is_a_copy() -> None:
    model = nn.Sequential(nn.Linear(3, 3), nn.BatchNorm1d(3)).to(torch.bfloat16)
    linear = nnx.Linear(3, 3, rngs=nnx.Rngs(0))
    _, links = copy_weights(model, nnx.Sequential(linear, nnx.BatchNorm(3, rngs=nnx.Rngs(0))))
    before = np.array(linear.kernel[...])
    assert before.dtype == np.float32
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.fill_(7)
    np.testing.assert_array_equal(linear.kernel[...], before)
    assert links.apart == {"1.num_batches_tracked": "it counts batches, and nothing in JAX corresponds"}
    with pytest.raises(InputError, match=r"takes an nnx module or a pair \(linen_module, variables\), not dict"):
        copy_weights(model, {})
    with pytest.raises(InputError, match=r"need a collection 'params', but have 'kernel'"):
        copy_weights(model, (linen.Dense(3), {"kernel": np.zeros((3, 3))}))


SMALL = {"vocab_size": 100, "max_position_embeddings": 64}
BERT = {**SMALL, "hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 32}
BART = {**SMALL, "d_model": 32} | {
    f"{side}_{what}": size
    for side in ("encoder", "decoder")
    for what, size in (("layers", 2), ("attention_heads", 2), ("ffn_dim", 32))
}
VISION = {**BERT, "image_size": 16, "patch_size": 4}
PORTS: dict[str, dict[str, Any]] = {
    "GPT2LMHeadModel": {"vocab_size": 100, "n_embd": 32, "n_layer": 2, "n_head": 2},
    "GPTNeoForCausalLM": {
        **SMALL,
        "hidden_size": 32,
        "num_layers": 2,
        "num_heads": 2,
        "attention_types": [[["global"], 2]],
    },
    "BertForPreTraining": BERT,
    "RobertaForMaskedLM": BERT,
    "DistilBertForMaskedLM": {**SMALL, "dim": 32, "n_layers": 2, "n_heads": 2, "hidden_dim": 32},
    "AlbertForMaskedLM": {**BERT, "embedding_size": 16},
    "ElectraForMaskedLM": {**BERT, "embedding_size": 16},
    "ViTForImageClassification": VISION,
    "CLIPModel": {"text_config": BERT, "vision_config": VISION, "projection_dim": 32},
    "T5ForConditionalGeneration": {
        "vocab_size": 100,
        "d_model": 32,
        "d_kv": 16,
        "d_ff": 32,
        "num_layers": 2,
        "num_heads": 2,
    },
    "BartForConditionalGeneration": BART,
    "OPTForCausalLM": {
        **SMALL,
        "hidden_size": 32,
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
        "ffn_dim": 32,
        "word_embed_proj_dim": 32,
    },
    "LlamaForCausalLM": BERT,
    "WhisperForConditionalGeneration": {**BART, "num_mel_bins": 8, "max_source_positions": 50, "pad_token_id": 1},
}
"""Small ports of `transformers`, all of whose sizes that may be equal are."""


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("name", PORTS)
def test_transformers_ports_map_as_their_own_converter_does(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    transformers = pytest.importorskip("transformers")
    from flax.traverse_util import flatten_dict
    from transformers import modeling_flax_pytorch_utils as own

    clip = jnp.clip
    # The Flax T5 is written for a JAX whose clip took a_max.
    monkeypatch.setattr(
        jnp, "clip", lambda x, *limits, **named: clip(x, *limits, **({"max": named["a_max"]} if named else {}))
    )
    original = getattr(transformers, name)
    config = original.config_class(**PORTS[name])
    model = original(config)
    port = getattr(transformers, f"Flax{name}")(config, _do_init=False)
    variables = {"params": port.params_shape_tree}
    links = find_links(torch_layers(model), linen_layers(variables, port.module))

    rng = np.random.default_rng(0)
    drawn = {
        id(tensor): rng.standard_normal(tensor.shape, np.float32)
        for tensor in model.state_dict(keep_vars=True).values()
    }
    mine = {key: drawn[id(tensor)] for key, tensor in model.state_dict(keep_vars=True).items()}
    shapes = {name: shape for layer in linen_layers(variables) for name, shape in layer.tensors.items()}
    like = {name: np.full(shape, np.nan, np.float32) for name, shape in shapes.items()}
    params = to_jax(links, mine, like)
    stand_in = types.SimpleNamespace(base_model_prefix=port.base_model_prefix, params=port.params_shape_tree)
    truth = {
        "/".join(path): array
        for path, array in flatten_dict(own.convert_pytorch_state_dict_to_flax(dict(mine), stand_in)).items()
    }
    for key, array in params.items():
        np.testing.assert_array_equal(array, truth[key].astype(array.dtype), err_msg=key)
    back = to_torch(links, params, {key: np.full_like(array, np.nan) for key, array in mine.items()})
    for key, array in mine.items():
        np.testing.assert_array_equal(back[key], array, err_msg=key)


def test_a_square_matrix_that_the_user_pairs_is_taken_as_it_is() -> None:
    model = torch.nn.Sequential(torch.nn.Linear(4, 4))
    batches = [(np.random.default_rng(0).normal(size=(3, 4)), None)]
    params = {"w1": jnp.zeros((4, 4)), "b1": jnp.zeros(4)}

    def verdict(transposed: bool, path: str) -> str:
        def apply(params: Any, x: Any) -> Any:
            return x @ (params["w1"].T if transposed else params["w1"]) + params["b1"]

        weights: dict[str, str | None] = {"0.weight": path}
        return compare.check(compare.Torch(model), compare.Jax(apply, params), batches, weights=weights).verdict

    assert [verdict(True, "w1"), verdict(False, "w1.T")] == ["match", "match"]
    assert verdict(False, "w1") == "mismatch"


def test_a_transposed_matrix_is_not_exchanged_for_another_of_its_shape() -> None:
    """As in LoRA: q.B, (6, 2), has the shape of v/A, which is the transpose of v.A."""

    class Adapted(nn.Module):
        def __init__(self, inputs: int, outputs: int) -> None:
            super().__init__()
            self.A, self.B = nn.Parameter(torch.randn(2, inputs)), nn.Parameter(torch.randn(outputs, 2))

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return x @ self.A.T @ self.B.T

    class Adapters(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.q, self.v = Adapted(4, 6), Adapted(6, 5)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            output: torch.Tensor = self.v(torch.tanh(self.q(x)))
            return output

    params = {
        "q": {"A": jnp.zeros((4, 2)), "B": jnp.zeros((2, 6))},
        "v": {"A": jnp.zeros((6, 2)), "B": jnp.zeros((2, 5))},
    }

    def apply(params: Any, x: Any) -> Any:
        hidden = jnp.tanh(x @ params["q"]["A"] @ params["q"]["B"])
        return hidden @ params["v"]["A"] @ params["v"]["B"]

    batches = [(np.random.default_rng(0).normal(size=(3, 4)), None)]
    report = compare.check(compare.Torch(Adapters()), compare.Jax(apply, params), batches)
    assert report.verdict == "match", str(report)


@pytest.mark.parametrize("kind", ["LSTM", "GRU", "RNN", "GRUCell"])
def test_a_cell_written_by_hand_keeps_the_tensors_of_torch(kind: str) -> None:
    model = nn.Sequential(getattr(nn, kind)(4, 3), nn.Identity())
    theirs = {f"0.{name}": np.zeros(each.shape, np.float32) for name, each in model[0].named_parameters()}
    links = find_links(torch_layers(model), pytree_layers(theirs))
    assert {link.torch: link.jax for link in links} == {name: name for name in theirs}
    values = {name: np.random.default_rng(0).normal(size=each.shape) for name, each in theirs.items()}
    mapped = to_jax(links, values, theirs)
    assert all(np.array_equal(mapped[name], values[name].astype(np.float32)) for name in theirs)


@pytest.mark.parametrize("kind", ["LSTM", "GRU", "RNN"])
@pytest.mark.parametrize("names", [("weight_{}", "bias_{}"), ("w_{}", "b_{}"), ("W{}", "b{}")])
def test_a_cell_written_by_hand_may_have_shorter_names(kind: str, names: tuple[str, str]) -> None:
    model = nn.Sequential(nn.Linear(4, 4), getattr(nn, kind)(4, 3))
    theirs: dict[str, dict[str, np.ndarray]] = {"cell": {}, "fc": {"kernel": np.zeros((4, 4)), "bias": np.zeros(4)}}
    partners = {"0.weight": "fc/kernel", "0.bias": "fc/bias"}
    for name, each in model[1].named_parameters():
        what, side, _ = name.split("_")
        ours = names[what == "bias"].format(side)
        theirs["cell"][ours] = np.zeros(each.shape, np.float32)
        partners[f"1.{name}"] = f"cell/{ours}"
    links = find_links(torch_layers(model), pytree_layers(theirs))
    assert {link.torch: link.jax for link in links} == partners


def test_a_class_that_is_called_as_a_recurrent_layer_is_none() -> None:
    class RNN(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.start, self.cell = nn.Parameter(torch.zeros(1, 3)), nn.Linear(7, 3)

    theirs = {"start": np.zeros((1, 3)), "cell": {"kernel": np.zeros((7, 3)), "bias": np.zeros(3)}}
    links = find_links(torch_layers(RNN()), pytree_layers(theirs))
    assert {link.torch: link.jax for link in links}["start"] == "start"


def test_a_recurrent_layer_may_have_a_tensor_more() -> None:
    class Started(nn.LSTM):
        def __init__(self) -> None:
            super().__init__(4, 3)
            self.start = nn.Parameter(torch.zeros(1, 3))

    model = Started()
    theirs = {name: np.zeros(each.shape, np.float32) for name, each in model.named_parameters()}
    links = find_links(torch_layers(model), pytree_layers(theirs))
    assert {link.torch: link.jax for link in links}["start"] == "start"


def parts_of_a_bias(**weights: str | None) -> list[str]:
    torch = [Layer("fc", "Linear", {"kind": "linear"}, {"fc.weight": (9, 3), "fc.bias": (9,)})]
    jax = [Layer("fc", "", {"kind": "", "ordered": False}, {"fc/kernel": (3, 9), "fc/b": (3,)})]
    links = find_links(torch, jax, {"fc.weight": "fc/kernel.T", **weights})
    return list(links.apart)


def test_a_part_of_a_tensor_may_have_no_partner_beside_another_that_has() -> None:
    assert parts_of_a_bias(**{"fc.bias[0:6]": None, "fc.bias[6:9]": "fc/b"}) == ["fc.bias[0:6]"]


@pytest.mark.parametrize(
    ("weights", "says"),
    [
        ({"fc.bias[0:7]": None, "fc.bias[6:9]": "fc/b"}, "name each part of 'fc.bias' once"),
        ({"fc.bias[0:5]": None, "fc.bias[6:9]": "fc/b"}, "but not the rest of 'fc.bias'"),
        ({"fc.bias[0:6:2]": None}, "a part is a range of rows, without a step"),
        ({"fc.bias[0:12]": None}, "has the shape"),
        ({"fc.bais[0:6]": None}, "matches no tensor of torch's; did you mean"),
    ],
)
def test_parts_that_do_not_fit_are_refused(weights: dict[str, str | None], says: str) -> None:
    with pytest.raises(InputError, match=re.escape(says)):
        parts_of_a_bias(**weights)


def test_a_part_that_has_a_partner_is_not_left_out() -> None:
    torch = [Layer("fc", "Linear", {"kind": "linear"}, {"fc.weight": (4, 3), "fc.bias": (4,)})]
    jax = [Layer("fc", "Linear", {"kind": "linear"}, {"fc/kernel": (3, 4), "fc/bias": (4,)})]
    with pytest.raises(InputError, match=re.escape("leaves out 'fc.bias[0:2]', which has the partner 'fc/bias'")):
        find_links(torch, jax, {"fc.bias[0:2]": None})
