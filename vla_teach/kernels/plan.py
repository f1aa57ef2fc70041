"""How the tokens of a call are cut: chunks of CHUNK tokens, anchors of ANCHOR chunks, parts of many chunks.

A chunk is what one program works on. An anchor is where M is inverted afresh. A part is what the backward pass works on
at a time: what its kernels leave for each other is kept for one part only, and of the forward pass only the states at
the parts' starts, so that memory grows with T as the inputs do.
"""

from functools import lru_cache
from typing import NamedTuple

import torch

CHUNK = 64  # tokens
ANCHOR = 8  # chunks at most; fewer in a short call, so that
PROGRAMS = 1024  # chunks times heads, over the chunks of an anchor, come near to this
PART = 2**17  # tokens times heads


class Tiles(NamedTuple):
    """n chunks and m anchors, sequence by sequence, of N sequences; int32 on the device."""

    start: torch.Tensor  # [n]      first token of each chunk, among all tokens of the call
    size: torch.Tensor  # [n]       tokens in it, at most CHUNK
    first: torch.Tensor  # [N + 1]  first chunk of each sequence
    anchor: torch.Tensor  # [m + 1]  first chunk of each anchor
    first_anchor: torch.Tensor  # [N + 1]  first anchor of each sequence


class Plan(NamedTuple):
    """The Tiles of a call, and those of its parts, each of which has `every` chunks of a sequence at most."""

    whole: Tiles
    parts: list
    every: int


@lru_cache(maxsize=32)
def plan(lengths, H, device):
    """The Plan for sequences of these lengths (a tuple) that lie end to end, with H heads each."""
    longest = -(-max(lengths) // CHUNK)
    every = min(longest, max(1, PART // (CHUNK * H * len(lengths))))
    step = min(ANCHOR, max(1, sum(lengths) * H // (CHUNK * PROGRAMS)))
    parts = [tiles(lengths, begin, begin + every, step, device) for begin in range(0, longest, every)]
    return Plan(tiles(lengths, 0, longest, step, device), parts, every)


def tiles(lengths, begin, end, step, device):
    """The Tiles of chunks begin to end of every sequence, as far as it has such, `step` to an anchor."""
    start, size, first, anchor, first_anchor, token = [], [], [0], [], [0], 0
    for length in lengths:
        for i, offset in enumerate(range(begin * CHUNK, min(end * CHUNK, length), CHUNK)):
            if i % step == 0:
                anchor.append(len(start))
            start.append(token + offset)
            size.append(min(CHUNK, length - offset))
        first.append(len(start))
        first_anchor.append(len(anchor))
        token += length
    anchor.append(len(start))
    lists = (start, size, first, anchor, first_anchor)
    return Tiles(*(torch.tensor(x, dtype=torch.int32, device=device) for x in lists))
