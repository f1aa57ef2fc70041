"""The picture on the book's first page: three memories take ten handwritten digits, and are asked for all of them.

Every answer of a linear memory is a mixture of the values that were written. So the page gets the mixtures, which are
few numbers, and mixes the pictures itself (`book/_static/front.js`).
"""

import base64
import struct
import zlib

import numpy as np

from vla_teach.reference import delta_rule, linear_attention, vla_recurrent
from vla_teach.streams import correlated_stream

K, PAIRS, LAMBDA_0, SEED = 16, 10, 0.1, 0  # fewer pairs than dimensions: all of them would fit
LIKENESS = {"unrelated": 0.0, "alike": 0.5, "much alike": 0.9}  # the mean cosine between two keys
PENALTIES = {"along the key": "along the key", "the paper's, untrained": "projected"}
MEMORIES = ("linear attention", "DeltaNet", "VLA")
FIRST = ("alike", "along the key")  # what the page shows first


def digits():
    """The first digit of each kind, 0 to 9, of scikit-learn's: pixels [10, 64], 0 for paper, 1 for ink."""
    from sklearn.datasets import load_digits

    data = load_digits()
    return np.array([data.data[np.argmax(data.target == digit)] for digit in range(PAIRS)]) / 16


def stream(likeness, penalty):
    """Keys and penalty directions of the ten pairs, a `Stream`; likeness of LIKENESS, penalty of PENALTIES."""
    return correlated_stream(PAIRS, K, correlation=LIKENESS[likeness], direction=PENALTIES[penalty], seed=SEED)


def remember(memory, k, v, u):
    """The state S [V, K] after the pairs k [T, K], v [T, V]. VLA has the paper's gain, of length 1."""
    if memory == "VLA":
        return vla_recurrent(k, k, v, u, lambda_0=LAMBDA_0)[1].S
    return {"linear attention": linear_attention, "DeltaNet": delta_rule}[memory](k, k, v)[1].S


def mixtures(memory, likeness, penalty):
    """For t = 1 ... 10 the matrix W [t, t]: the answer for key i is the sum over s of W[i, s] v_s. A list of arrays."""
    k, _, u = stream(likeness, penalty)
    # With one value a direction, each entry of an answer says how much of that value is in it.
    return [k[:t] @ remember(memory, k[:t], np.eye(t, PAIRS), u[:t]).T[:, :t] for t in range(1, PAIRS + 1)]


def error(answers, v):
    """How far answers [n, V] are from v [n, V], each at its best brightness: the mean, 0 for the same, 1 at most."""
    size = np.linalg.norm(answers, axis=1) * np.linalg.norm(v, axis=1)
    cosine = np.sum(answers * v, axis=1) / np.where(size, size, 1)
    return float(np.mean(np.sqrt(np.clip(1 - np.maximum(cosine, 0) ** 2, 0, 1))))


def runs():
    """{name of a run: its mixtures and errors}, as the page needs them; see `name_of`."""
    v, found = digits(), {}
    for memory in MEMORIES:
        for likeness in LIKENESS:
            for penalty in PENALTIES:
                name = name_of(memory, likeness, penalty)
                if name not in found:
                    W = mixtures(memory, likeness, penalty)
                    errors = [round(error(w @ v[: len(w)], v[: len(w)]), 6) for w in W]
                    found[name] = dict(mixtures=[w.round(3).ravel().tolist() for w in W], errors=errors)
    return found


def name_of(memory, likeness, penalty):
    """The run that shows this; only VLA has a penalty."""
    return "/".join([memory, likeness, penalty] if memory == "VLA" else [memory, likeness])


def content():
    """All that the page's script needs, for JSON."""
    keys = {name: stream(name, "along the key").k.round(3).tolist() for name in LIKENESS}
    values = (digits() * 16).round().astype(int).tolist()
    return dict(memories=MEMORIES, keys=keys, values=values, runs=runs(), first=FIRST, penalties=list(PENALTIES))


def ink(answers):
    """Answers [n, 64] as ink from 0 to 1, each as dark as it can be; what is below 0 is paper."""
    return np.clip(answers, 0, None) / np.maximum(answers.max(axis=1, keepdims=True), 1e-9)


def png(pixels):
    """An 8 x 8 picture [64] of ink from 0 to 1, on nothing, as a data address: black, more or less opaque."""
    alpha = (np.clip(pixels, 0, 1) * 255).round().astype(np.uint8).reshape(8, 8)
    rows = b"".join(b"\0" + b"".join(bytes([0, a]) for a in row) for row in alpha)

    def chunk(kind, data):
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    head = struct.pack(">IIBBBBB", 8, 8, 8, 4, 0, 0, 0)
    data = b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", head) + chunk(b"IDAT", zlib.compress(rows, 9)) + chunk(b"IEND", b"")
    return "data:image/png;base64," + base64.b64encode(data).decode()


def sentence(t, errors):
    """The picture in words: t pairs are written, errors {memory: error}."""
    said = ", ".join(f"{memory} {errors[memory]:.2f}" for memory in MEMORIES)
    return (
        f"After {t} of {PAIRS} pairs, asked for all of them, the answers are off by: {said}. (0 is the picture itself.)"
    )


def settings():
    """What the picture was run with, in words."""
    alike = ", ".join(f"{value:g} for {name}" for name, value in LIKENESS.items())
    return (
        f"Run by vla_teach: keys of {K} dimensions, the mean cosine of two keys {alike}; VLA with its published gain "
        f"and λ₀ = {LAMBDA_0:g}. Each answer is drawn as dark as it can be."
    )
