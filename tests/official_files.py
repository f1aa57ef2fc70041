"""Files in the form of the Long Range Arena's own, made up, for the readers and for experiments on them."""

import struct
import zlib
from itertools import product

import numpy as np

from vla_teach.tasks.png import SIGNATURE


def write(path, content):
    """A file, text or bytes, with its folders."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content if isinstance(content, bytes) else content.encode())


def png(picture, filters, kind=0, depth=8, pieces=1):
    """A PNG file as bytes, with the line filters given, as the standard describes them. picture [height, width]."""

    def chunk(name, body):
        return struct.pack(">I", len(body)) + name + body + struct.pack(">I", zlib.crc32(name + body))

    height, width = picture.shape
    padded = np.zeros((height + 1, width + 1), int)
    padded[1:, 1:] = picture
    lines = b""
    for y, f in zip(range(1, height + 1), filters, strict=True):
        line = []
        for x in range(1, width + 1):
            a, b, c = padded[y, x - 1], padded[y - 1, x], padded[y - 1, x - 1]
            p = a + b - c
            nearest = a if abs(p - a) <= min(abs(p - b), abs(p - c)) else b if abs(p - b) <= abs(p - c) else c
            line.append((padded[y, x] - (0, a, b, (a + b) // 2, nearest)[f]) % 256)
        lines += bytes([f, *line])
    data = zlib.compress(lines)
    parts = [data[len(data) * n // pieces : len(data) * (n + 1) // pieces] for n in range(pieces)]
    header = struct.pack(">IIBBBBB", width, height, depth, kind, 0, 0, 0)
    body = b"".join(chunk(b"IDAT", part) for part in parts)
    return SIGNATURE + chunk(b"IHDR", header) + chunk(b"tEXt", b"a\x00b") + body + chunk(b"IEND", b"")


def make_up(folder):
    """A few files of each task below the folder; returns it."""
    rng = np.random.default_rng(0)
    for split, label, i in product(("train", "test"), ("pos", "neg"), range(20)):
        write(folder / "aclImdb" / split / label / f"{i}_7.txt", f"{label} {i} {split} " * 9)
    for split in ("train", "eval", "test"):
        lines = (f"{i % 2}.0\t{i}\t{i + 1}\t{split} one {i}\t{split} two {i}\n" for i in range(12))
        write(folder / f"new_aan_pairs.{split}.tsv", "".join(lines))
    for name in ("test_batch", *(f"data_batch_{n}" for n in range(1, 6))):
        pictures = rng.integers(0, 256, (8, 3073), dtype=np.uint8)
        pictures[:, 0] %= 10
        write(folder / "cifar-10-batches-bin" / f"{name}.bin", pictures.tobytes())
    base, lines = folder / "pathfinder128" / "curv_contour_length_14", ""
    for i in range(60):
        write(base / "imgs" / f"{i}.png", png(rng.integers(0, 256, (5, 5)), [0] * 5))
        lines += f"imgs {i}.png {i} {i % 2} 1.0 14\n"
    write(base / "metadata" / "0.npy", lines)
    return folder
