"""Measures how alike two paths are: "encoder.layers.0.self_attn.out_proj" and "Encoder_0/blocks_0/attention/out"."""

import functools
import re
from collections.abc import Iterable
from typing import NamedTuple

SYNONYMS = {
    synonym: word
    for word, synonyms in {
        "attention": "attn mha selfattn selfattention",
        "bias": "b beta offset",
        "cross": "encdec crossattn crossattention",
        "decoder": "dec",
        "embedding": "embed embeddings emb embedder",
        "encoder": "enc",
        "final": "f last",
        "head": "classifier cls logits lm",
        "key": "k",
        "layer": "layers block blocks h blk stage stages",
        "mlp": "ffn feedforward ff",
        "norm": "ln layernorm bn batchnorm rmsnorm groupnorm normalization",
        "out": "output o",
        "position": "pos positional wpe positions",
        "query": "q",
        "reverse": "backward",
        "shortcut": "downsample skip",
        "token": "tok word wte tokens words",
        "value": "v",
        "weight": "kernel w",
    }.items()
    for synonym in synonyms.split()
}

OF_KIND = {
    "linear": "dense linear fc lin general proj projection layer conv d",
    "conv": "conv convolution d layer",
    "transposed": "conv transpose transposed convtranspose deconv d layer",
    "embedding": "embedding layer",
    "norm": "norm layer batch group instance rms d",
    "prelu": "prelu p re lu relu activation act",
    "lstm": "lstm cell rnn gru optimized l forward",
    "gru": "gru cell rnn l forward",
    "rnn": "rnn cell simple l forward",
}
"""Words of a layer's name that only repeat its kind."""

ROLES = frozenset({"query", "key", "value"})
"""Layers with these names often have equal shapes and are defined in any order, so that only the name decides."""


class Word(NamedTuple):
    """One part of a path."""

    stem: str
    """As written, in small letters, without its number."""
    tokens: frozenset[str]
    """The words in it, each put into one form of many; those that only tell the kind are left out."""
    number: int
    """-1 for none."""
    rank: int
    """The place of its number among its siblings' numbers."""
    siblings: int
    """How many siblings there are that differ from it by their number alone, itself included."""


Path = tuple[Word, ...]


def read(paths: Iterable[tuple[str, str]]) -> list[Path]:
    """Take apart the paths of one side, each with the kind of layer that it names."""
    split = [(_numbered(path), kind) for path, kind in paths]
    groups: dict[object, set[int]] = {}

    def group(words: list[tuple[str, int]], at: int, kind: str) -> object:
        return tuple(words[:at]), words[at][0], kind if at == len(words) - 1 else None

    for words, kind in split:
        for at, (_, number) in enumerate(words):
            groups.setdefault(group(words, at, kind), set()).add(number)

    def word(words: list[tuple[str, int]], at: int, kind: str) -> Word:
        stem, number = words[at]
        numbers = sorted(groups[group(words, at, kind)])
        tokens = _tokens(stem)
        if at == len(words) - 1:
            tokens -= set(OF_KIND.get(kind, "").split())
        return Word(stem.lower(), tokens, number, numbers.index(number), len(numbers))

    return [tuple(word(words, at, kind) for at in range(len(words))) for words, kind in split]


def _numbered(path: str) -> list[tuple[str, int]]:
    """Split "layers.0.fc1" or "layers_0/fc1" into ("layers", 0), ("fc", 1); -1 is no number."""
    words: list[tuple[str, int]] = []
    for part in re.split(r"[./]", path):
        stem, number = re.fullmatch(r"(.*?)_?(\d*)", part).groups()  # type: ignore[union-attr]
        if not stem and number and words and words[-1][1] < 0:
            words[-1] = (words[-1][0], int(number))
        elif (stem or number) and part != "~":
            words.append((stem, int(number) if number else -1))
    return words


def _tokens(stem: str) -> frozenset[str]:
    words = re.findall(r"[A-Z]+(?![a-z])|[A-Z]?[a-z]+", stem)
    return frozenset(SYNONYMS.get(word.lower(), word.lower()) for word in words)


def likeness(a: Path, b: Path) -> tuple[int, int]:
    """Weigh two paths, aligned part by part as well as can be.

    Returns:
        What their words say, more for what both have and less for what only one has; and, weaker, what their numbers
        say where the words beside these do not agree, as "fc1" and "Dense_0" do not.

    """
    # Equal parts at both ends can be aligned with each other without loss, which leaves little for the table below.
    start = next((at for at, (one, other) in enumerate(zip(a, b, strict=False)) if one != other), min(len(a), len(b)))
    alike, a, b = a[:start], a[start:], b[start:]
    while a and b and a[-1] == b[-1]:
        alike, a, b = (*alike, a[-1]), a[:-1], b[:-1]
    # Needleman-Wunsch alignment (1970): best[i][j] is the best score of the first i parts of one path
    # against the first j of the other. A part without a counterpart costs its words, so that wrapper
    # modules without words cost nothing.
    best = [[(0, 0)] * (len(b) + 1) for _ in range(len(a) + 1)]
    for i in range(len(a) + 1):
        for j in range(len(b) + 1):
            options = []
            if i:
                options.append(_plus(best[i - 1][j], (-len(a[i - 1].tokens), 0)))
            if j:
                options.append(_plus(best[i][j - 1], (-len(b[j - 1].tokens), 0)))
            if i and j:
                options.append(_plus(best[i - 1][j - 1], _words(a[i - 1], b[j - 1])))
            best[i][j] = max(options, default=(0, 0))
    return functools.reduce(_plus, (_words(word, word) for word in alike), best[-1][-1])


def _plus(a: tuple[int, int], b: tuple[int, int]) -> tuple[int, int]:
    return a[0] + b[0], a[1] + b[1]


def _words(a: Word, b: Word) -> tuple[int, int]:
    shared, other = len(a.tokens & b.tokens), len(a.tokens ^ b.tokens)
    # A shared word weighs four words that only one has: "self_attn" and "attention" name the same thing.
    strong = 4 * shared - other + (a.stem == b.stem != "")
    # The number of an only child, as in "Dense_0", says nothing.
    if a.siblings == 1 or b.siblings == 1:
        return strong, 0
    # Numbers start at 0 or 1, and torch.nn.Sequential counts layers without weights too. So the rank among the siblings
    # is compared if both sides have equally many, and otherwise the number.
    equal = a.rank == b.rank if a.siblings == b.siblings else a.number == b.number
    # With the same word the number is part of the name, and another number is another layer. With other words, as in
    # "fc1" and "Dense_0", numbers are a hint at most: a component of less weight.
    if (a.stem == b.stem != "") or (shared and not other):
        return strong + (2 if equal else -6), 0
    return strong, (1 if equal else -1) if a.siblings == b.siblings else 0
