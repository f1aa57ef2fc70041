"""Readers for the official files of the Long Range Arena (Tay et al., 2020), from a folder that you name.

Nothing is downloaded. lra_release.gz of github.com/google-research/long-range-arena holds ListOps, the pairs for
retrieval, and Pathfinder; the other two tasks take the original IMDb and CIFAR-10 archives. Every reader returns
`Examples`, raises FileNotFoundError naming the file it misses, and ValueError with file and line where one is broken.
`Official` makes tasks of four of them, for `vla_teach.experiments`.
"""

import os
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import numpy as np

from vla_teach.checks import check_count
from vla_teach.tasks.base import Task, check_choice
from vla_teach.tasks.listops import TOKENS
from vla_teach.tasks.png import read_grey_png
from vla_teach.tasks.stored import Examples

RELEASE = "lra_release.gz (github.com/google-research/long-range-arena)"
BYTES = ("", *map(chr, range(256)))  # token 0 is padding, token 1 + b is byte b


def read_listops(folder: str | Path, split: str = "train", length: int = 2000) -> Examples:
    """ListOps from basic_{train,val,test}.tsv: Source, an expression in parentheses, and Target, its value.

    As LRA does, parentheses are dropped, the closing bracket stays. Tokens as in `vla_teach.tasks.listops.ListOps`.
    length: where longer expressions are cut. Returns Examples with 10 classes.
    Raises FileNotFoundError, or ValueError where a file is broken.
    """
    check_choice("split", split, ("train", "val", "test"))
    path = existing(Path(folder) / f"basic_{split}.tsv", RELEASE)
    rows, labels = [], []
    for number, (source, target) in table(path, 2, header=["Source", "Target"]):
        symbols = source.replace("(", " ").replace(")", " ").split()
        if not symbols or not set(symbols) <= TOKENS.keys() - {"<pad>"}:
            raise ValueError(f"{path}, line {number}: {source[:40]!r} is not a ListOps expression")
        rows.append(bytes(TOKENS[symbol] for symbol in symbols))
        labels.append(whole(target, 10, path, number))
    glyphs = ("", *(f"{symbol} " for symbol in list(TOKENS)[1:]))
    return Examples(rows, np.array(labels), check_count("length", length), len(TOKENS), 10, glyphs=glyphs)


def read_text(folder: str | Path, split: str = "train", length: int = 4096) -> Examples:
    """IMDb reviews, byte by byte, from aclImdb/{train,test}/{pos,neg}/*.txt: is the review in favour, 1, or not, 0?

    folder holds aclImdb. LRA has no validation set of its own here: use `split` of what is returned.
    length: where longer reviews are cut. Returns Examples with 2 classes, the unfavourable first.
    Raises FileNotFoundError, or ValueError where a file is broken.
    """
    check_choice("split", split, ("train", "test"))
    origin = "aclImdb_v1.tar.gz (Large Movie Review Dataset, ai.stanford.edu/~amaas/data/sentiment)"
    rows, labels = [], []
    for label, name in enumerate(("neg", "pos")):
        files = sorted(existing(Path(folder) / "aclImdb" / split / name, origin).glob("*.txt"))
        if not files:
            raise FileNotFoundError(f"{Path(folder) / 'aclImdb' / split / name} has no .txt files; expected {origin}")
        rows += [path.read_bytes()[:length] for path in files]
        labels += [label] * len(files)
    return Examples(rows, np.array(labels), check_count("length", length), 257, 2, offset=1, glyphs=BYTES)


def read_retrieval(folder: str | Path, split: str = "train", length: int = 4000) -> Examples:
    """Pairs of papers from new_aan_pairs.{train,eval,test}.tsv: label, two ids, two texts. Does one cite the other?

    Columns stand between tabs, without quotes or header, and texts are taken byte by byte as they are written.
    T = 2 length: the first `length` positions hold one text, the others the second, both cut or padded, so that a model
    may read them apart (as LRA's does, with x.reshape(B, 2, length)) or in a row. Returns Examples with 2 classes.
    Raises FileNotFoundError, or ValueError where a file is broken.
    """
    check_choice("split", split, ("train", "eval", "test"))
    path = existing(Path(folder) / f"new_aan_pairs.{split}.tsv", RELEASE)
    rows, labels = [], []
    for number, (label, _, _, *texts) in table(path, 5):
        rows.append(tuple(text.encode()[:length] for text in texts))
        labels.append(whole(label, 2, path, number))
    return Examples(rows, np.array(labels), check_count("length", length), 257, 2, parts=2, offset=1, glyphs=BYTES)


def read_image(folder: str | Path, split: str = "train") -> Examples:
    """CIFAR-10 as 1024 grey levels from cifar-10-batches-bin (the binary version; the Python one is pickled, unsafe).

    split: "train" (the first 45,000 of the 50,000), "val" (the last 5,000, as LRA has it) or "test". Grey is
    0.2989 red + 0.587 green + 0.114 blue, rounded. folder holds cifar-10-batches-bin. Returns Examples with 10 classes.
    Raises FileNotFoundError, or ValueError where a file is broken.
    """
    check_choice("split", split, ("train", "val", "test"))
    names = ["test_batch.bin"] if split == "test" else [f"data_batch_{n}.bin" for n in range(1, 6)]
    origin = "cifar-10-binary.tar.gz (www.cs.toronto.edu/~kriz/cifar.html)"
    parts = []
    for name in names:
        path = existing(Path(folder) / "cifar-10-batches-bin" / name, origin)
        data = np.fromfile(path, np.uint8)
        if not len(data) or len(data) % 3073:
            raise ValueError(f"{path} has {len(data)} bytes; expected images of 3073, a label and 3 x 1024 levels")
        parts.append(data.reshape(-1, 3073))
    data = np.concatenate(parts)
    cut = len(data) * 9 // 10
    data = dict(train=data[:cut], val=data[cut:], test=data)[split]
    if data[:, 0].max() > 9:
        raise ValueError(f"{path.parent} has a label {data[:, 0].max()}; expected 0 to 9")
    grey = np.tensordot([0.2989, 0.587, 0.114], data[:, 1:].reshape(-1, 3, 1024), (0, 1))
    return Examples(list(np.round(grey).astype(np.uint8)), data[:, 0].astype(int), 1024, 256, 10)


def read_pathfinder(
    folder: str | Path, difficulty: str = "curv_contour_length_14", most: int | None = None
) -> Examples:
    """Pathfinder from {folder}/{difficulty}/metadata/*.npy and the PNG files named there, as grey levels row by row.

    The metadata are lines of text in spite of their name: folder, file, number, label, ... for each picture.
    difficulty: LRA's "curv_baseline", "curv_contour_length_9" or, the one it reports, "curv_contour_length_14".
    most: read only the first so many pictures. LRA divides them 80 : 10 : 10, see `Examples.split`.
    folder is pathfinder32 or pathfinder128, say. Returns Examples with 2 classes.
    Raises FileNotFoundError, or ValueError where a file is broken.
    """
    check_choice("difficulty", difficulty, ("curv_baseline", "curv_contour_length_9", "curv_contour_length_14"))
    most = check_count("most", most) if most is not None else None
    base = Path(folder) / difficulty
    files = sorted(existing(base / "metadata", RELEASE).glob("*.npy"), key=lambda path: (len(path.name), path.name))
    if not files:
        raise FileNotFoundError(f"{base / 'metadata'} has no .npy files; expected those of {RELEASE}")
    lines = [(path, n, line) for path in files for n, line in enumerate(path.read_text().splitlines(), 1) if line]
    rows, labels = [], []
    for path, number, line in lines[:most]:
        words = line.split(" ")
        if len(words) < 4:
            raise ValueError(f"{path}, line {number}: {line[:40]!r} has {len(words)} words; expected at least 4")
        picture = read_grey_png(existing(base / words[0] / words[1], RELEASE))
        if rows and picture.size != len(rows[0]):
            raise ValueError(f"{base / words[0] / words[1]} has {picture.size} pixels; expected {len(rows[0])}")
        rows.append(picture.ravel())
        labels.append(whole(words[3], 2, path, number))
    return Examples(rows, np.array(labels), len(rows[0]), 256, 2)


# ---- as tasks ---------------------------------------------------------------------------------------------------

FOLDER = "VLA_TEACH_LRA"  # the environment variable that names the folder: it belongs to a machine, not to a task
SHAPES = dict(text=(257, 2), retrieval=(257, 2), image=(256, 10), path_x=(256, 2))  # vocab, classes


@dataclass(frozen=True)
class Official(Task):
    """One of the arena's tasks from its official files, in the folder that the environment variable FOLDER names.

    which: "text", "retrieval" (both texts in a row), "image", or "path_x", Pathfinder of 128 x 128 pixels.
    split: "train", "val" or "test"; where the arena has none, by shares: a tenth of text's training set to validate,
    and Path-X by 80 : 10 : 10. most: bytes of a text, None for the arena's own limit.
    Raises ValueError naming what does not fit or where no folder is named, and what the readers raise.
    """

    which: str = "image"
    split: str = "train"
    most: int | None = None

    kind = "classify"

    def __post_init__(self):
        check_choice("which", self.which, SHAPES)
        check_choice("split", self.split, ("train", "val", "test"))
        if self.most is not None:
            check_count("most", self.most)

    vocab = property(lambda self: SHAPES[self.which][0])
    classes = property(lambda self: SHAPES[self.which][1])
    length = property(lambda self: self.examples.length)
    examples = property(lambda self: official(os.environ.get(FOLDER), self.which, self.split, self.most))

    def draw(self, B, rng):
        """A Batch of B different examples, x, y [B, T]."""
        return self.examples.draw(B, rng)

    def show(self, batch, i=0):
        """Example i of a batch as text."""
        return self.examples.show(batch, i)


@cache
def official(folder, which, split, most):
    """The Examples of one split."""
    if not folder:
        raise ValueError(f"no folder is named; expected that of the official files, by --data or in {FOLDER}")
    if which == "image":
        return read_image(folder, split)
    if which == "retrieval":
        return read_retrieval(folder, dict(val="eval").get(split, split), most or 4000)
    if which == "text":
        if split == "test":
            return read_text(folder, "test", most or 4096)
        train, val = read_text(folder, "train", most or 4096).split(0.9)
        return train if split == "train" else val
    train, rest = read_pathfinder(Path(folder) / "pathfinder128").split(0.8)
    val, test = rest.split(0.5)
    return dict(train=train, val=val, test=test)[split]


# ---- what the readers share -------------------------------------------------------------------------------------


def existing(path, origin):
    """path, if it is there."""
    if not path.exists():
        raise FileNotFoundError(f"{path} is not there; expected it from {origin}")
    return path


def table(path, columns, header=None):
    """(line number, cells) for every line of a .tsv file; cells stand between tabs, quotes mean nothing."""
    with open(path, encoding="utf-8", newline="\n") as lines:
        for number, line in enumerate(lines, 1):
            cells = line.rstrip("\r\n").split("\t")
            if len(cells) != columns:
                raise ValueError(f"{path}, line {number}: {len(cells)} columns; expected {columns}")
            if header and number == 1:
                if cells != header:
                    raise ValueError(f"{path}, line 1: {cells}; expected the header {header}")
                continue
            yield number, cells


def whole(text, classes, path, number):
    """A class written as a whole number, or as "1.0"."""
    try:
        value = float(text)
    except ValueError:
        value = -1.0
    if value not in range(classes):
        raise ValueError(f"{path}, line {number}: label {text[:20]!r}; expected 0 to {classes - 1}")
    return int(value)
