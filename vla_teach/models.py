"""Small models around any of the layers: a language model and a sequence classifier, with matched parameter counts."""

from collections.abc import Callable
from functools import partial
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from vla_teach.checks import check_count
from vla_teach.layers import EPS, LayerState, VariationalLinearAttention, check_option
from vla_teach.rivals import DeltaNet, GatedDeltaNet, LinearAttention, Mamba2, MesaNet, SoftmaxAttention
from vla_teach.tensor_checks import check_numbers, check_shape, check_tensor

States = tuple[LayerState, ...]  # one a block

LAYERS = {
    "softmax": SoftmaxAttention,
    "linear": LinearAttention,
    "delta": DeltaNet,
    "gated_delta": GatedDeltaNet,
    "mamba2": Mamba2,
    "mesa": MesaNet,
    "vla": VariationalLinearAttention,
    "vla_published": partial(VariationalLinearAttention, faithful=True, output_norm="layer", bias=True),
}


# ---- blocks -----------------------------------------------------------------------------------------------------


class SwiGLU(nn.Module):
    """W_2 (silu(W_0 x) * W_1 x) (arXiv 2002.05202), x [..., D]."""

    def __init__(self, width: int, mlp_width: int) -> None:
        super().__init__()
        self.into = nn.Linear(width, 2 * mlp_width, bias=False)
        self.out = nn.Linear(mlp_width, width, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        gate, value = self.into(x).chunk(2, -1)
        return self.out(F.silu(gate) * value)


class Block(nn.Module):
    """x + layer(norm(x)), then x + mlp(norm(x))."""

    def __init__(self, layer: nn.Module, width: int, mlp_width: int) -> None:
        super().__init__()
        self.layer, self.mlp = layer, SwiGLU(width, mlp_width)
        self.norms = nn.ModuleList(nn.RMSNorm(width, eps=EPS) for _ in range(2))

    def forward(
        self, x: Tensor, state: LayerState | None = None, relation: Tensor | None = None
    ) -> tuple[Tensor, LayerState]:
        y, state = self.layer(self.norms[0](x), state, relation)
        x = x + y
        return x + self.mlp(self.norms[1](x)), state


class Backbone(nn.Module):
    """What both models share: `depth` blocks and a last norm, x [B, T, D] -> (x [B, T, D], a state for each block).

    layer: a name in LAYERS; heads, layer_options: for its constructor.
    mlp_width: of the hidden layer, 8/3 of the width where None. positions: 0, or for how many tokens learned positions
    are added; a longer sequence is refused.
    """

    def __init__(
        self, width: int, depth: int, layer: str = "vla", heads: int = 4, mlp_width: int | None = None,
        positions: int = 0, layer_options: dict[str, Any] | None = None,
    ) -> None:  # fmt: skip
        super().__init__()
        check_option("layer", layer, tuple(LAYERS))
        check_count("depth", depth)
        mlp_width = check_count("mlp_width", 8 * check_count("width", width) // 3 if mlp_width is None else mlp_width)
        options = {} if layer_options is None else layer_options
        layers = [LAYERS[layer](width, heads, **options) for _ in range(depth)]
        self.blocks = nn.ModuleList(Block(one, width, mlp_width) for one in layers)
        self.positions = nn.Embedding(positions, width) if check_count("positions", positions, least=0) else None
        if positions:
            nn.init.normal_(self.positions.weight, std=0.02)
        self.norm = nn.RMSNorm(width, eps=EPS)

    def forward(self, x: Tensor, states: States | None = None, relation: Tensor | None = None) -> tuple[Tensor, States]:
        if states is not None and (not isinstance(states, tuple) or len(states) != len(self.blocks)):
            raise ValueError(f"states is {type(states).__name__}; expected a tuple of {len(self.blocks)}, one a block")
        states = (None,) * len(self.blocks) if states is None else states
        if self.positions is not None:
            start, T = states[0].tokens if states[0] else 0, x.shape[1]
            if start + T > self.positions.num_embeddings:
                raise ValueError(f"positions is {self.positions.num_embeddings}; expected {start + T} at least")
            x = x + self.positions.weight[start : start + T]
        after = []
        for block, state in zip(self.blocks, states, strict=True):
            x, state = block(x, state, relation)
            after.append(state)
        return self.norm(x), tuple(after)


# ---- models -----------------------------------------------------------------------------------------------------


class LanguageModel(nn.Module):
    """Logits of the next token: `model(tokens [B, T], states=None) -> (logits [B, T, vocab], states)`.

    Fed in pieces with the states handed back, it gives what one pass gives. tie: the head uses the embedding's weights.
    backbone: width, depth, layer, heads, mlp_width, positions, layer_options, see `Backbone`.
    Raises ValueError or TypeError naming the argument that does not fit.
    """

    def __init__(self, vocab: int, width: int, depth: int, tie: bool = True, **backbone: Any) -> None:
        super().__init__()
        self.backbone = Backbone(width, depth, **backbone)
        self.embedding = nn.Embedding(check_count("vocab", vocab), width)
        nn.init.normal_(self.embedding.weight, std=0.02)
        self.head = nn.Linear(width, vocab, bias=False)
        if check_option("tie", tie, (True, False)):
            self.head.weight = self.embedding.weight

    def forward(
        self, tokens: Tensor, states: States | None = None, relation: Tensor | None = None
    ) -> tuple[Tensor, States]:
        x = self.embedding(check_ids("tokens", tokens, self.embedding.num_embeddings))
        x, states = self.backbone(x, states, relation)
        return self.head(x), states


class SequenceClassifier(nn.Module):
    """Logits of a sequence's class: `model(x, lengths=None) -> logits [B, classes]`.

    x: ids [B, T] if built with `vocab`, else numbers [B, T, F] if built with `features` = F.
    pooling: "mean" over the tokens, "last" token, or None for logits of every token, [B, T, classes] (which also does
    for regression on a stream). lengths [B]: how many of each row are pooled, None for all.
    backbone: as for LanguageModel.
    Raises ValueError or TypeError naming the argument that does not fit.
    """

    def __init__(
        self, classes: int, width: int, depth: int, vocab: int | None = None, features: int | None = None,
        pooling: Literal["mean", "last"] | None = "mean", **backbone: Any,
    ) -> None:  # fmt: skip
        super().__init__()
        self.backbone = Backbone(width, depth, **backbone)
        if (vocab is None) == (features is None):
            raise ValueError(f"vocab is {vocab} and features is {features}; expected one of them, the other None")
        if vocab is None:
            self.embedding = nn.Linear(check_count("features", features), width)
        else:
            self.embedding = nn.Embedding(check_count("vocab", vocab), width)
            nn.init.normal_(self.embedding.weight, std=0.02)
        self.pooling = check_option("pooling", pooling, ("mean", "last", None))
        self.head = nn.Linear(width, check_count("classes", classes))

    def forward(self, x: Tensor, lengths: Tensor | None = None, relation: Tensor | None = None) -> Tensor:
        if isinstance(self.embedding, nn.Embedding):
            check_ids("x", x, self.embedding.num_embeddings)
        else:
            F_in = self.embedding.in_features
            check_tensor("x", x, self.embedding.weight.device)
            check_shape("x", x, x.ndim == 3 and x.numel() and x.shape[2] == F_in, f"[B, T, {F_in}], none of them 0")
        y, _ = self.backbone(self.embedding(x), None, relation)
        if self.pooling is None:
            if lengths is not None:
                raise ValueError("lengths is given while pooling is None; expected None")
            return self.head(y)
        B, T, _ = y.shape
        lengths = torch.full((B,), T, device=y.device) if lengths is None else check_row_lengths(lengths, B, T)
        if self.pooling == "last":
            return self.head(y[torch.arange(B, device=y.device), lengths - 1])
        counts = torch.arange(T, device=y.device) < lengths[:, None]
        return self.head((y * counts[..., None]).sum(1) / lengths[:, None])


@torch.no_grad()
def generate(model: LanguageModel, tokens: Tensor, steps: int) -> Tensor:
    """The `steps` likeliest tokens, each given all before it: tokens [B, T] -> [B, steps].

    Raises ValueError or TypeError naming the argument that does not fit.
    """
    new, states = [], None
    for _ in range(check_count("steps", steps)):
        logits, states = model(tokens, states)
        tokens = logits[:, -1:].argmax(-1)
        new.append(tokens)
    return torch.cat(new, 1)


# ---- a fair comparison ------------------------------------------------------------------------------------------


def count(model: nn.Module) -> int:
    """How many numbers a model learns; shared ones once."""
    return sum(p.numel() for p in model.parameters() if p.requires_grad)


def matched(
    kind: Callable[..., nn.Module], variants: dict[str, dict[str, Any]], tolerance: float = 0.02, **options: Any
) -> dict[str, nn.Module]:
    """Models with about the same number of parameters, which differ in their layers: {label: model}.

    kind: LanguageModel or SequenceClassifier. variants: {label: what sets it apart, say dict(layer="delta")}.
    options: what they share. The largest model keeps its mlp_width; the others get a wider one.
    Raises ValueError if a count is further than `tolerance` from the largest.
    """
    if not isinstance(variants, dict) or not variants:
        raise ValueError(f"variants is {variants!r}; expected a dict of one variant or more, by label")
    usual = options.get("mlp_width")
    usual = 8 * check_count("width", options.get("width")) // 3 if usual is None else check_count("mlp_width", usual)
    sizes = {}
    for label, variant in variants.items():
        with torch.device("meta"):  # only to count: no numbers are made
            at, more = (count(kind(**options | variant | dict(mlp_width=usual + extra))) for extra in (0, 1))
        sizes[label] = at, more - at  # the count is a straight line in mlp_width
    target, models = max(at for at, _ in sizes.values()), {}
    for label, (at, slope) in sizes.items():
        mlp_width = usual + round((target - at) / slope)
        off = abs(at + slope * (mlp_width - usual) - target) / target
        if off > tolerance:
            raise ValueError(f"tolerance is {tolerance}; expected {off:.3f}, by which {label} is off, or wider models")
        models[label] = kind(**options | variants[label] | dict(mlp_width=mlp_width))
    return models


# ---- checks -----------------------------------------------------------------------------------------------------


def check_ids(name, ids, vocab):
    """Whole numbers [B, T] below vocab."""
    if not isinstance(ids, torch.Tensor) or ids.dtype not in (torch.int32, torch.int64):
        raise TypeError(f"{name} is {getattr(ids, 'dtype', type(ids).__name__)}; expected a tensor of int32 or int64")
    check_shape(name, ids, ids.ndim == 2 and ids.numel(), "[B, T], none of them 0")
    check_numbers(name, ids, lambda x: (x >= 0) & (x < vocab), f"has ids outside the vocabulary, 0 to {vocab - 1}")
    return ids


def check_row_lengths(lengths, B, T):
    """Whole numbers [B] from 1 to T."""
    if not isinstance(lengths, torch.Tensor) or lengths.dtype not in (torch.int32, torch.int64):
        raise TypeError(f"lengths is {lengths!r}; expected a tensor of int32 or int64")
    check_shape("lengths", lengths, lengths.shape == (B,), f"[B] = [{B}]")
    check_numbers("lengths", lengths, lambda x: (x >= 1) & (x <= T), f"has numbers outside 1 to {T}; expected lengths")
    return lengths
