"""Ports that nobody here wrote: the PyTorch and the Flax models of transformers 4.57.6, small and random.

>>> compare.check(*pair("gpt2"), steps=3).verdict
<Verdict.MATCH: 'match'>

What goes beside the batch into a raw Linen module is what its own wrapper, the `__call__` of the model, puts there.
"""

import importlib
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
import torch

import compare

transformers: Any = importlib.import_module("transformers")  # typed, and far too large for mypy

BATCH, LENGTH, VOCABULARY, IMAGE = 2, 8, 100, 16
PAD = 1
"""The token that fills a short sentence up. In training its places are masked and no part of the loss."""
IGNORED = -100
"""The target of such a place, by PyTorch's convention (`torch.nn.functional.cross_entropy`)."""

Arrays = dict[str, np.ndarray]
Pair = tuple[compare.Torch, compare.Flax, list[tuple[Arrays, np.ndarray]]]
"""The arguments of `compare.check`."""


class _OlderNumPy:
    """`jax.numpy` with `clip(a_max=)`, by which the Flax T5 models call it and which JAX 0.8 no longer takes."""

    def __getattr__(self, name: str) -> Any:
        return getattr(jnp, name)

    def clip(self, array: Any, a_min: Any = None, a_max: Any = None) -> Any:
        return jnp.clip(array, a_min, a_max)


_MODELS: Any = (
    importlib.import_module("transformers.models.t5.modeling_flax_t5"),
    importlib.import_module("transformers.models.longt5.modeling_flax_longt5"),
)
for model in _MODELS:
    model.jnp = _OlderNumPy()


class Spec(NamedTuple):
    """One architecture."""

    model: str
    """The PyTorch class; "Flax" before it names the Flax class."""
    config: str
    sizes: Mapping[str, Any]
    inputs: Callable[[np.random.Generator], Arrays]
    """Draws what goes into the PyTorch model."""
    extra: Callable[[Arrays], dict[str, Any]] = lambda inputs: {}
    """What the raw Linen module takes beside it, or in its place."""
    output: str = "logits"
    """The field of the output that the loss takes."""
    classes: int = VOCABULARY
    per_token: bool = True
    """Whether there is a target for each token, or one for each example."""
    frozen: tuple[str, ...] = ()
    """Correction: parameters that the Flax model has optax update and that torch's optimizer leaves alone."""
    torch_sizes: Mapping[str, Any] = {}
    """Correction: what the PyTorch model must be given for both to do the same."""


def _sentences(rng: np.random.Generator) -> Arrays:
    """Draw sentences of which the last is two tokens shorter."""
    ids = rng.integers(5, VOCABULARY, (BATCH, LENGTH))
    mask = np.ones((BATCH, LENGTH), np.int64)
    mask[-1, -2:] = 0
    return {"input_ids": np.where(mask, ids, PAD), "attention_mask": mask}


def _translations(rng: np.random.Generator) -> Arrays:
    return _sentences(rng) | _decoded(rng)


def _decoded(rng: np.random.Generator) -> Arrays:
    return {f"decoder_{name}": array for name, array in _sentences(rng).items()}


def _images(rng: np.random.Generator) -> Arrays:
    return {"pixel_values": rng.standard_normal((BATCH, 3, IMAGE, IMAGE)).astype(np.float32)}


def _speech(rng: np.random.Generator) -> Arrays:
    return {"input_features": rng.standard_normal((BATCH, 80, 2 * LENGTH)).astype(np.float32)} | _decoded(rng)


def _captions(rng: np.random.Generator) -> Arrays:
    return _sentences(rng) | _images(rng)


def _positions(inputs: Arrays) -> np.ndarray:
    return np.broadcast_to(np.arange(LENGTH), (BATCH, LENGTH))


def _plain(inputs: Arrays) -> dict[str, Any]:
    return {"position_ids": _positions(inputs)}


def _bert(inputs: Arrays) -> dict[str, Any]:
    segments = np.zeros_like(inputs["input_ids"])
    return {"token_type_ids": segments, "position_ids": _positions(inputs), "head_mask": None}


def _albert(inputs: Arrays) -> dict[str, Any]:
    return {"token_type_ids": np.zeros_like(inputs["input_ids"]), "position_ids": _positions(inputs)}


def _roberta(inputs: Arrays) -> dict[str, Any]:
    """Count positions from the padding's index on, as `create_position_ids_from_input_ids` does."""
    real = inputs["input_ids"] != PAD
    return _bert(inputs) | {"position_ids": np.cumsum(real, 1) * real + PAD}


def _opt(inputs: Arrays) -> dict[str, Any]:
    mask = inputs["attention_mask"]
    return {"position_ids": np.cumsum(mask, 1) * mask - 1}


def _bart(inputs: Arrays) -> dict[str, Any]:
    return {"position_ids": _positions(inputs), "decoder_position_ids": _positions(inputs)}


def _whisper(inputs: Arrays) -> dict[str, Any]:
    return {"decoder_position_ids": _positions(inputs)}


def _channels_last(inputs: Arrays) -> dict[str, Any]:
    return {"pixel_values": np.moveaxis(inputs["pixel_values"], 1, -1)}


def _clip(inputs: Arrays) -> dict[str, Any]:
    return _plain(inputs) | _channels_last(inputs)


_GPT = {"vocab_size": VOCABULARY, "bos_token_id": 0, "eos_token_id": 2}
_BERT = {
    "vocab_size": VOCABULARY,
    "hidden_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "intermediate_size": 64,
    "max_position_embeddings": 24,
    "pad_token_id": PAD,
}
_BART = {
    "vocab_size": VOCABULARY,
    "d_model": 32,
    "encoder_layers": 2,
    "decoder_layers": 2,
    "encoder_attention_heads": 2,
    "decoder_attention_heads": 2,
    "encoder_ffn_dim": 64,
    "decoder_ffn_dim": 64,
    "max_position_embeddings": 24,
    "pad_token_id": PAD,
    "forced_eos_token_id": None,
}
_T5 = {
    "vocab_size": VOCABULARY,
    "d_model": 32,
    "d_kv": 16,
    "d_ff": 64,
    "num_layers": 2,
    "num_heads": 2,
    "pad_token_id": PAD,
    "decoder_start_token_id": PAD,
    "relative_attention_num_buckets": 8,
    "relative_attention_max_distance": 20,
}
_LLAMA = {**_BERT, "num_key_value_heads": 1, "max_position_embeddings": 64}
_VIT = {
    "hidden_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "intermediate_size": 64,
    "image_size": IMAGE,
    "patch_size": 8,
    "num_labels": 10,
}
_CLIP_TOWER = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 2}
_CLIP = {
    "projection_dim": 16,
    "text_config": _CLIP_TOWER | {"vocab_size": VOCABULARY, "max_position_embeddings": 24, "eos_token_id": 2},
    "vision_config": _CLIP_TOWER | {"image_size": IMAGE, "patch_size": 8},
}
_RESNET = {"embedding_size": 8, "hidden_sizes": [8, 16], "depths": [1, 2], "num_labels": 10}


def _image_classifier(name: str, sizes: Mapping[str, Any], frozen: tuple[str, ...] = ()) -> Spec:
    return Spec(
        f"{name}ForImageClassification",
        f"{name}Config",
        sizes,
        _images,
        _channels_last,
        classes=10,
        per_token=False,
        frozen=frozen,
    )


SPECS: dict[str, Spec] = {
    # Decoders
    "gpt2": Spec(
        "GPT2LMHeadModel", "GPT2Config", {**_GPT, "n_embd": 32, "n_layer": 2, "n_head": 2}, _sentences, _plain
    ),
    "gpt_neo": Spec(
        "GPTNeoForCausalLM",
        "GPTNeoConfig",
        {
            **_GPT,
            "hidden_size": 32,
            "num_layers": 2,
            "num_heads": 2,
            "attention_types": [[["global", "local"], 1]],
            "window_size": 4,
            "max_position_embeddings": 24,
        },
        _sentences,
        _plain,
    ),
    "gptj": Spec(
        "GPTJForCausalLM",
        "GPTJConfig",
        {**_GPT, "n_embd": 32, "n_layer": 2, "n_head": 2, "rotary_dim": 8, "n_positions": 24},
        _sentences,
        _plain,
    ),
    "opt": Spec(
        "OPTForCausalLM",
        "OPTConfig",
        {**_BERT, "ffn_dim": 64, "word_embed_proj_dim": 32},
        _sentences,
        _opt,
    ),
    "bloom": Spec(
        "BloomForCausalLM", "BloomConfig", {**_GPT, "hidden_size": 32, "n_layer": 2, "n_head": 2}, _sentences
    ),
    "xglm": Spec(
        "XGLMForCausalLM",
        "XGLMConfig",
        {**_GPT, "d_model": 32, "num_layers": 2, "attention_heads": 2, "ffn_dim": 64, "max_position_embeddings": 24},
        _sentences,
        _plain,
    ),
    "llama": Spec("LlamaForCausalLM", "LlamaConfig", _LLAMA, _sentences, _plain),
    "mistral": Spec(
        "MistralForCausalLM",
        "MistralConfig",
        {**_LLAMA, "sliding_window": 4},
        _sentences,
        _plain,
        torch_sizes={"sliding_window": 5},
    ),
    "gemma": Spec("GemmaForCausalLM", "GemmaConfig", {**_LLAMA, "head_dim": 16}, _sentences, _plain),
    # Encoders
    "bert": Spec("BertForMaskedLM", "BertConfig", _BERT, _sentences, _bert),
    "roberta": Spec("RobertaForMaskedLM", "RobertaConfig", _BERT, _sentences, _roberta),
    "roberta_prelayernorm": Spec(
        "RobertaPreLayerNormForMaskedLM", "RobertaPreLayerNormConfig", _BERT, _sentences, _roberta
    ),
    "xlm_roberta": Spec("XLMRobertaForMaskedLM", "XLMRobertaConfig", _BERT, _sentences, _roberta),
    "distilbert": Spec(
        "DistilBertForMaskedLM",
        "DistilBertConfig",
        {**_BERT, "dim": 32, "n_layers": 2, "n_heads": 2, "hidden_dim": 64},
        _sentences,
    ),
    "albert": Spec("AlbertForMaskedLM", "AlbertConfig", {**_BERT, "embedding_size": 16}, _sentences, _albert),
    "electra": Spec("ElectraForMaskedLM", "ElectraConfig", {**_BERT, "embedding_size": 16}, _sentences, _bert),
    "roformer": Spec(
        "RoFormerForMaskedLM",
        "RoFormerConfig",
        {**_BERT, "embedding_size": 32},
        _sentences,
        lambda inputs: {"token_type_ids": np.zeros_like(inputs["input_ids"]), "head_mask": None},
    ),
    # Encoders with decoders
    "t5": Spec("T5ForConditionalGeneration", "T5Config", _T5, _translations),
    "t5_gated": Spec(
        "T5ForConditionalGeneration",
        "T5Config",
        {**_T5, "feed_forward_proj": "gated-gelu", "tie_word_embeddings": False},
        _translations,
    ),
    "longt5": Spec("LongT5ForConditionalGeneration", "LongT5Config", {**_T5, "local_radius": 3}, _translations),
    "bart": Spec("BartForConditionalGeneration", "BartConfig", _BART, _translations, _bart),
    "mbart": Spec("MBartForConditionalGeneration", "MBartConfig", _BART, _translations, _bart),
    "pegasus": Spec("PegasusForConditionalGeneration", "PegasusConfig", _BART, _translations, _bart),
    "marian": Spec(
        "MarianMTModel",
        "MarianConfig",
        {**_BART, "decoder_start_token_id": PAD},
        _translations,
        _bart,
        frozen=("final_logits_bias",),
    ),
    "blenderbot": Spec("BlenderbotForConditionalGeneration", "BlenderbotConfig", _BART, _translations, _bart),
    "whisper": Spec(
        "WhisperForConditionalGeneration",
        "WhisperConfig",
        {**_BART, "max_source_positions": LENGTH, "max_target_positions": 24, "decoder_start_token_id": PAD},
        _speech,
        _whisper,
        frozen=("encoder/embed_positions/embedding",),
    ),
    # Images
    "vit": _image_classifier("ViT", _VIT),
    "beit": _image_classifier("Beit", {**_VIT, "use_relative_position_bias": True}),
    "dinov2": _image_classifier("Dinov2", {**_VIT, "mlp_ratio": 2}, frozen=("mask_token",)),
    "resnet": _image_classifier("ResNet", _RESNET),
    "regnet": _image_classifier("RegNet", {**_RESNET, "groups_width": 4}),
    "clip": Spec(
        "CLIPModel", "CLIPConfig", _CLIP, _captions, _clip, output="logits_per_image", classes=BATCH, per_token=False
    ),
}


def pair(name: str, *, corrected: bool = False) -> Pair:
    """Build one pair of `SPECS`, with three batches.

    The models stay apart: each has random weights of its own. PyTorch's are drawn all afresh, since biases of 0 and
    scales of 1, with which models begin, hide what becomes of them.

    Args:
        name: A key of `SPECS`.
        corrected: Undo the differences between the two models that docs/transformers.md lists.

    """
    spec = SPECS[name]
    config, torch_config = (
        getattr(transformers, spec.config)(**sizes, use_cache=False, attn_implementation="eager")
        for sizes in (spec.sizes, {**spec.sizes, **(spec.torch_sizes if corrected else {})})
    )
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = getattr(transformers, spec.model)(torch_config).eval()
        with torch.no_grad():
            for param in filter(lambda param: param.requires_grad, model.parameters()):
                param.add_(0.1 * torch.randn_like(param))
    flax_model = getattr(transformers, f"Flax{spec.model}")(config, seed=1)
    params = flax_model.params
    optimizer = optax.adamw(1e-3, weight_decay=1e-2)
    return (
        compare.Torch(model, loss=_torch_loss(spec.output), optimizer=lambda of: torch.optim.AdamW(of, 1e-3)),
        compare.Flax(
            (flax_model.module, params if "params" in params else {"params": params}),
            loss=_jax_loss(spec.output),
            optimizer=_without(spec.frozen, optimizer) if corrected and spec.frozen else optimizer,
            batch=lambda inputs, target: ({**inputs, **spec.extra(inputs)}, target),
        ),
        _batches(spec),
    )


def _without(frozen: tuple[str, ...], optimizer: optax.GradientTransformation) -> optax.GradientTransformation:
    """Leave parameters alone whose paths end so."""

    def label(path: Any, _: Any) -> str:
        return "frozen" if jax.tree_util.keystr(path, simple=True, separator="/").endswith(frozen) else "trained"

    return optax.multi_transform(
        {"trained": optimizer, "frozen": optax.set_to_zero()},
        lambda params: jax.tree_util.tree_map_with_path(label, params),
    )


def _batches(spec: Spec) -> list[tuple[Arrays, np.ndarray]]:
    rng = np.random.default_rng(2)
    batches = []
    for _ in range(3):
        inputs = spec.inputs(rng)
        target = rng.integers(0, spec.classes, (BATCH, LENGTH) if spec.per_token else BATCH)
        if spec.per_token:
            mask = inputs.get("decoder_attention_mask", inputs.get("attention_mask", np.ones_like(target)))
            target = np.where(mask, target, IGNORED)
        batches.append((inputs, target))
    return batches


def _torch_loss(field: str) -> Callable[[Any, torch.Tensor], torch.Tensor]:
    def loss(output: Any, target: torch.Tensor) -> torch.Tensor:
        logits = output[field]
        return torch.nn.functional.cross_entropy(logits.flatten(0, -2), target.flatten(), ignore_index=IGNORED)

    return loss


def _jax_loss(field: str) -> Callable[[Any, Any], Any]:
    def loss(output: Any, target: Any) -> Any:
        logits = output[field]
        counted = target != IGNORED
        losses = optax.softmax_cross_entropy_with_integer_labels(logits, jnp.where(counted, target, 0))
        return jnp.sum(losses * counted) / jnp.sum(counted)

    return loss
