"""How the tokens of a call are cut: chunks of CHUNK tokens, anchors of ANCHOR chunks, parts of many chunks.

A chunk is what one program works on. An anchor is where M is inverted afresh. A part is what the backward pass works on
at a time: what its kernels leave for each other is kept for one part only, and of the forward pass only the states at
the parts' starts, so that memory grows with T as the inputs do.
"""

from functools import lru_cache
from itertools import pairwise
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
    """The Tiles of a call and of its parts, and where the states at the parts' starts are kept."""

    whole: Tiles
    parts: list
    keep: torch.Tensor  # [n]  the row in which the state before a chunk of the whole is kept, or -1
    rows: list  # a part: [N], the row with the state at its start; 0 for a sequence that has no chunk in it; int64
    kept: int  # rows


@lru_cache(maxsize=32)
def plan(lengths, H, device):
    """The Plan for sequences of these lengths (a tuple) that lie end to end, with H heads each."""
    chunks = [-(-length // CHUNK) for length in lengths]
    step = min(ANCHOR, max(1, sum(lengths) * H // (CHUNK * PROGRAMS)))
    cuts = part_starts(chunks, max(1, PART // (CHUNK * H)))
    parts = [tiles(lengths, begin, end, step, device) for begin, end in pairwise([*cuts, max(chunks)])]
    keep, rows, kept = [], [[0] * len(chunks) for _ in cuts], 0
    for n, count in enumerate(chunks):
        at = [-1] * count
        for part, cut in enumerate(cuts):
            if cut < count:
                at[cut] = rows[part][n] = kept
                kept += 1
        keep += at
    whole = tiles(lengths, 0, max(chunks), step, device)
    return Plan(whole, parts, numbers(keep, device), [numbers(x, device, torch.int64) for x in rows], kept)


def part_starts(chunks, limit):
    """Where parts start, as a chunk's place in its sequence, so that a part has about `limit` chunks of all together.

    chunks: of each sequence. A part takes the chunks of every sequence between two such places.
    """
    cuts, filled = [0], 0
    for place in range(max(chunks)):
        alive = sum(count > place for count in chunks)
        if filled and filled + alive > limit:
            cuts.append(place)
            filled = 0
        filled += alive
    return cuts


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
    return Tiles(*(numbers(x, device) for x in (start, size, first, anchor, first_anchor)))


def numbers(x, device, dtype=torch.int32):
    return torch.tensor(x, dtype=dtype, device=device)
