"""A reader for the plainest PNG files, with the standard library alone: 8-bit grey, not interlaced (ISO/IEC 15948)."""

import struct
import zlib

import numpy as np

SIGNATURE = b"\x89PNG\r\n\x1a\n"


def read_grey_png(path):
    """The grey levels of a PNG file as uint8 [height, width]. Raises ValueError for any other kind of file."""
    data = path.read_bytes()
    if not data.startswith(SIGNATURE):
        raise ValueError(f"{path} is no PNG file")
    try:
        header, packed = chunks(data)
        width, height, *kind = struct.unpack(">IIBBBBB", header)
        if kind != [8, 0, 0, 0, 0]:
            raise ValueError(f"{path} is not 8-bit grey without interlacing; convert it first")
        lines = np.frombuffer(zlib.decompress(packed), np.uint8).reshape(height, 1 + width)
    except (struct.error, zlib.error, KeyError) as error:
        raise ValueError(f"{path} is broken: {error}") from None
    picture = np.zeros((height + 1, width), np.uint8)  # line 0 is the blank one above the first
    for n, line in enumerate(lines):
        picture[n + 1] = unfilter(line[0], line[1:], picture[n], path)
    return picture[1:]


def chunks(data):
    """The header of a PNG file, and its compressed pixels."""
    at, found = len(SIGNATURE), dict(IDAT=b"")
    while at < len(data):
        size, name = struct.unpack_from(">I4s", data, at)
        body = data[at + 8 : at + 8 + size]
        found[name.decode("latin-1")] = found["IDAT"] + body if name == b"IDAT" else body
        at += 12 + size  # four bytes of checksum follow; zlib has its own
    return found["IHDR"], found["IDAT"]


def unfilter(kind, line, above, path):
    """One line of pixels from its differences to what `kind` predicts. line, above uint8 [width]."""
    if kind == 0:
        return line
    if kind == 1:
        return np.cumsum(line, dtype=np.uint8)
    if kind == 2:
        return line + above
    if kind not in (3, 4):
        raise ValueError(f"{path} is broken: line filter {kind}")
    out, left, corner = [], 0, 0
    for difference, up in zip(line.tolist(), above.tolist(), strict=True):
        left = (difference + ((left + up) // 2 if kind == 3 else paeth(left, up, corner))) % 256
        corner = up
        out.append(left)
    return np.array(out, np.uint8)


def paeth(left, up, corner):
    """The neighbour nearest to left + up - corner; of equals the first named."""
    guess = left + up - corner
    return min((left, up, corner), key=lambda neighbour: abs(guess - neighbour))
